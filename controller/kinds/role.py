"""role: a row that users, bindings and tokens refer to."""

import msgspec

from common.kinds.kind import AnyResource, Spec
from common.kinds.role import RoleSpec
from controller.auth.caller import Caller
from controller.auth.rights import spelt_out
from controller.kinds.giving import refuse_misspelt, refuse_more
from controller.kinds.outcome import Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet


def admit(row: AnyResource, was: AnyResource | None, _seen: WorkingSet, caller: Caller) -> Spec:
    """Put it into the maker's domain where it names none. Whoever makes or changes one has all that it grants."""
    spec: RoleSpec = row.spec
    if was is None and not row.spec.domain:
        spec = msgspec.structs.replace(spec, domain=caller.domain)
    refuse_misspelt(row, row.spec.grants, "grants")
    refuse_more(caller, spelt_out(row.spec.grants), row, "", spec.domain)
    return spec


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one goes when nobody has it any more."""
    return plan_plain(row, seen)
