"""Who calls, and what they may do: pure decisions over a token's project and role."""

import msgspec

from common.errors import Denied
from common.ids import RequestId
from common.kinds import KINDS
from common.kinds.kind import SYSTEM_PROJECT, AnyKind, AnyResource, Role, Scope
from controller.store.working import is_public


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated token, for the length of one request."""

    actor: str
    """`project/token-name`, as the event table shows it."""
    project: str
    role: Role
    request: RequestId

    @property
    def operates(self) -> bool:
        """Say whether this is one of the cloud's operators (an admin of the system project)."""
        return self.project == SYSTEM_PROJECT and self.role is Role.ADMIN

    def speaks_for(self, project: str) -> bool:
        """Say whether this token is one of that project, or of the system project, which sees every project."""
        return self.project in (project, SYSTEM_PROJECT)


def authorise(caller: Caller, kind: AnyKind, need: Role | None, project: str, doing: str) -> None:
    """Let a call pass, or raise Denied with who could do it.

    Things of a project: a token of that project with the role, or an operator. Things of the cloud: every token
    reads them where a reader may; everything else is the operators'. `need` None: nobody may.
    """
    if need is None:
        raise Denied(f"{kind.plural} can't be {doing} by anybody", fix=_who_makes(kind))
    if caller.operates:
        return
    if kind.scope is Scope.CLOUD:
        if need is Role.READER and caller.role >= kind.read:
            return
        raise Denied(
            f"{caller.actor} can't have a {kind.name} {doing}: that is for the cloud's operators",
            fix=f"use an admin token of project {SYSTEM_PROJECT}",
        )
    if not caller.speaks_for(project):
        raise Denied(
            f"{caller.actor} is a token of project {caller.project}, not of {project}",
            fix=f"use a token of project {project}",
        )
    if caller.role < need:
        raise Denied(
            f"{caller.actor} is a {caller.role.name.lower()}; to have a {kind.name} {doing} needs {need.name.lower()}",
            fix=f"ask an admin of project {project} for a token with role {need.name.lower()}",
        )


def sees(caller: Caller, row: AnyResource) -> bool:
    """Say whether a caller may know of a thing, its name included.

    A project's tokens know that project, what is in it, what is public, and the cloud's hosts and sizes: of other
    projects not even their names.
    """
    if row.kind == "domain":
        return caller.operates
    if row.kind == "project":
        return caller.speaks_for(row.name)
    return not row.project or caller.speaks_for(row.project) or is_public(row)


def sees_history(caller: Caller, kind: str, project: str) -> bool:
    """Say whether a caller may see operations and events of a kind in a project (empty: of the cloud)."""
    read = next((known.read for known in KINDS if known.name == kind), Role.ADMIN)
    return caller.speaks_for(project) and caller.role >= read


def _who_makes(kind: AnyKind) -> str:
    return f"Skerry makes and deletes each {kind.name} with the thing that needs it"


def require_operator(caller: Caller, what: str) -> None:
    """Raise Denied unless the caller is one of the cloud's operators."""
    if not caller.operates:
        raise Denied(f"{what} is for the cloud's operators", fix="use an admin token of project system")
