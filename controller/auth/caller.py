"""Who calls, and what they may do: pure decisions over a token's project and role."""

import msgspec

from common.errors import Denied
from common.ids import RequestId
from common.kinds.kind import SYSTEM_PROJECT, AnyKind, Role, Scope


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
    if caller.project not in (project, SYSTEM_PROJECT):
        raise Denied(
            f"{caller.actor} is a token of project {caller.project}, not of {project}",
            fix=f"use a token of project {project}",
        )
    if caller.role < need:
        raise Denied(
            f"{caller.actor} is a {caller.role.name.lower()}; to have a {kind.name} {doing} needs {need.name.lower()}",
            fix=f"ask an admin of project {project} for a token with role {need.name.lower()}",
        )


def _who_makes(kind: AnyKind) -> str:
    return f"Skerry makes and deletes each {kind.name} with the thing that needs it"
