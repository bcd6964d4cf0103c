"""The planner of each kind, found by the kind's name: `controller/kinds/<kind>.py`.

Each such module is one page, the whole life of its kind: `plan`, and where the defaults below don't do, `admit`,
`along`, `admit_delete`, `counts`, `REVEALS` and `reveal`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module

import msgspec

from common.counters import Counter
from common.errors import SkerryError
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Spec
from common.secret import Secret
from controller.auth.caller import Caller
from controller.kinds.outcome import Outcome
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite

Plan = Callable[[AnyResource, WorkingSet, float], Outcome]
Admit = Callable[[AnyResource, AnyResource | None, WorkingSet, Caller], Spec]
Along = Callable[[AnyResource, AnyResource, WorkingSet], tuple[AnyWrite, ...]]
AdmitDelete = Callable[[AnyResource, WorkingSet], None]
CountsOf = Callable[[AnyResource, WorkingSet], Mapping[Counter, int]]
Reveal = Callable[[AnyResource, Secret, float], tuple[AnyWrite, ...]]


class Planner(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller knows of one kind. All functions are pure."""

    plan: Plan
    """(row, what is seen, now) -> the one next step, or why there is none."""
    admit: Admit
    """(row as it would be, row as it is, what is seen, who asks) -> the spec to store. Raises what the caller did."""
    along: Along
    """(row as it would be, row as it is, what is seen) -> the writes that are committed with the change."""
    admit_delete: AdmitDelete
    """(row, what is seen): raises Conflict where others would be harmed."""
    counts: CountsOf
    """(row, what is seen) -> how much it is of each of its kind's counters."""
    reveals: str
    """The prefix of the secret that creating one shows once; empty: none."""
    reveal: Reveal
    """(row, secret, now) -> the writes that make it good."""


def _admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, _caller: Caller) -> Spec:
    spec: Spec = row.spec
    return spec


def _along(_row: AnyResource, _was: AnyResource, _seen: WorkingSet) -> tuple[AnyWrite, ...]:
    return ()


def _admit_delete(_row: AnyResource, _seen: WorkingSet) -> None:
    return


def _counts(row: AnyResource, _seen: WorkingSet) -> Mapping[Counter, int]:
    return dict.fromkeys(kind_named(row.kind).counters or (), 1)


def _reveal(row: AnyResource, _secret: Secret, _now: float) -> tuple[AnyWrite, ...]:
    raise SkerryError(f"{row.kind} reveals nothing")


@cache
def planner_of(kind: str) -> Planner:
    """Return the planner of a kind. Raises ModuleNotFoundError where its page is missing."""
    page = import_module(f"controller.kinds.{kind}")
    return Planner(
        plan=page.plan,
        admit=getattr(page, "admit", _admit),
        along=getattr(page, "along", _along),
        admit_delete=getattr(page, "admit_delete", _admit_delete),
        counts=getattr(page, "counts", _counts),
        reveals=getattr(page, "REVEALS", ""),
        reveal=getattr(page, "reveal", _reveal),
    )
