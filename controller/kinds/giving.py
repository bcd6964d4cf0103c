"""What kinds that give rights share: which role is meant, and that nobody gives what they don't have."""

import msgspec

from common.errors import Denied, FieldError, Invalid, NotFound
from common.ids import Id
from common.kinds import actions
from common.kinds.kind import AnyResource, Spec
from common.kinds.role import Grant
from controller.auth.caller import Caller
from controller.auth.rights import Permit
from controller.auth.tokens import place_of
from controller.store.working import WorkingSet


def with_role(row: AnyResource, domain: str, seen: WorkingSet) -> Spec:
    """Return a spec whose `role` says `custom` where, and only where, it has a role of one's own.

    That one is of the domain, or the cloud's. Raises NotFound, Invalid.
    """
    spec: Spec = row.spec
    custom = seen.get(Id(row.spec.custom_role)) if row.spec.custom_role else None
    if custom is not None and custom.spec.domain not in ("", domain):
        raise NotFound(f"there is no role {custom.name} in this domain", fix="skerry role list")
    if custom is None and row.spec.role == "custom":
        raise Invalid(
            f"{row.kind} {row.name}: a custom role is wanted, and none is named",
            fix="name it as custom_role, or give a built-in role",
            errors=(FieldError(field="spec.custom_role", message="is missing"),),
        )
    return msgspec.structs.replace(spec, role="custom") if custom else spec


def refuse_misspelt(row: AnyResource, grants: tuple[Grant, ...], field: str) -> None:
    """Raise Invalid for a pattern that stands for no action: it would grant nothing, and nobody would notice."""
    for pattern in (one for grant in grants for one in grant.actions):
        if not actions.matching(pattern):
            kind = pattern.partition(".")[0]
            own = [one.name for one in actions.ACTIONS if one.kind == kind]
            raise Invalid(
                f"{row.kind} {row.name}: there is no action {pattern}",
                fix=f"there is {', '.join(own)}" if own else "docs/reference/actions.md has all of them",
                errors=(FieldError(field=f"spec.{field}", message=f"there is no action {pattern}"),),
            )


def refuse_more_in_project(
    caller: Caller, permits: tuple[Permit, ...], row: AnyResource, project: str, seen: WorkingSet
) -> None:
    """Raise Denied where somebody gives more in a project than they have there."""
    refuse_more(caller, permits, row, *place_of(project, seen))


def refuse_more(caller: Caller, permits: tuple[Permit, ...], row: AnyResource, project: str, domain: str) -> None:
    """Raise Denied where somebody gives more than they have in a project, a domain, or (neither) in the whole cloud."""
    if lacking := caller.has(permits, project, domain):
        where = f"in project {project}" if project else "in the whole domain" if domain else "in the whole cloud"
        raise Denied(
            f"{caller.actor} can't give {lacking} {where} to {row.kind} {row.name}, since it lacks that there itself",
            fix="give less, or have it done by somebody who has it",
        )
