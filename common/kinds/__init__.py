"""Every kind there is, in the order in which pages and help texts show them. A new kind is one line here."""

from common.counters import Counter
from common.kinds.binding import BINDING
from common.kinds.domain import DOMAIN
from common.kinds.group import GROUP
from common.kinds.host import HOST
from common.kinds.image import IMAGE
from common.kinds.keypair import KEYPAIR
from common.kinds.kind import AnyKind
from common.kinds.network import NETWORK
from common.kinds.project import PROJECT
from common.kinds.rack import RACK
from common.kinds.region import REGION
from common.kinds.role import ROLE
from common.kinds.schedule import SCHEDULE
from common.kinds.size import SIZE
from common.kinds.snapshot import SNAPSHOT
from common.kinds.token import TOKEN
from common.kinds.user import USER
from common.kinds.vm import VM
from common.kinds.volume import VOLUME
from common.kinds.zone import ZONE

KINDS: tuple[AnyKind, ...] = (
    DOMAIN,
    PROJECT,
    USER,
    ROLE,
    BINDING,
    TOKEN,
    REGION,
    ZONE,
    RACK,
    HOST,
    SIZE,
    IMAGE,
    KEYPAIR,
    NETWORK,
    GROUP,
    VOLUME,
    SNAPSHOT,
    SCHEDULE,
    VM,
)

COUNTERS: tuple[Counter, ...] = tuple(
    dict.fromkeys(counter for kind in reversed(KINDS) for counter in kind.counters or ())
)
"""All that quotas can limit, what machines use first."""


_NAMED = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> AnyKind:
    """Return the kind of that name. Raises KeyError for an unknown one."""
    return _NAMED.get(name) or _unknown(name)


def _unknown(name: str) -> AnyKind:
    raise KeyError(f"there is no kind {name}; there are {', '.join(kind.name for kind in KINDS)}")
