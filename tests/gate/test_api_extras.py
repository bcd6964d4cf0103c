"""Every extra that a kind declares has a handler in the API, and no handler is without a kind."""

from typing import Any, cast

from common.kinds import KINDS
from controller.api.call import Door
from controller.api.extras import HostExtras, Reasons, VmExtras, extras
from controller.api.history import Histories
from controller.api.login import Sessions
from controller.api.quotas import Quotas
from controller.api.resources import Resources
from controller.api.upload import Upload
from controller.api.waiting import Waiting

NOTHING = cast(Any, None)
"""Handlers are found, not called."""


class _Store:
    seen = None


def test_every_extra_of_every_kind_has_a_handler() -> None:
    found = extras(
        Resources(cast(Any, _Store()), NOTHING, NOTHING),
        HostExtras(NOTHING, NOTHING, NOTHING, NOTHING),
        Upload(NOTHING, NOTHING, NOTHING, blobs=NOTHING, limit_bytes=0, entropy=NOTHING),
        VmExtras(NOTHING, NOTHING, Door(NOTHING, NOTHING, NOTHING), Waiting()),
        Histories(NOTHING, NOTHING, NOTHING, NOTHING),
        reasons=Reasons(NOTHING),
        quotas=Quotas(NOTHING, {}),
        sessions=Sessions(_Store(), NOTHING, NOTHING, clock=NOTHING, entropy=NOTHING, lasts_s=0),
    )
    declared = {(kind.name, extra.name) for kind in KINDS for extra in kind.extras}

    assert set(found) == declared, "wire it in controller/api/extras.py"
