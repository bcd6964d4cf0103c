"""Who calls, and what they may do and know of: pure decisions over the roles that somebody holds."""

from collections.abc import Iterable

import msgspec

from common.errors import Denied, NotFound
from common.ids import Id, RequestId
from common.kinds import KINDS, actions, kind_named
from common.kinds.kind import SYSTEM_PROJECT, AnyKind, AnyResource, Role, Scope
from controller.auth.rights import Held, Permit, Subject, collection_of, subject_of
from controller.store.working import OF_A_DOMAIN, WorkingSet, is_public


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever sends a request, for its length."""

    actor: str
    """`project/token` or `user@domain`, as the event table shows it."""
    request: RequestId
    held: tuple[Held, ...]
    only: tuple[Permit, ...] = ()
    """Of what the roles allow only this; empty: all of it."""
    project: str = ""
    """A token's own; empty for a user."""
    domain: str = ""
    """The id of the domain that the token's project or the user belongs to; empty: it is one of the whole cloud."""
    user: Id = Id("")
    expires_at: float = 0
    """0: never."""

    def may(self, action: str, subject: Subject) -> bool:
        """Say whether an action on a thing is allowed."""
        if self.user and action in ("user.read", "user.password") and (subject.collection or subject.id == self.user):
            return True
        if self.only and not any(action in permit.actions and permit.fits(subject) for permit in self.only):
            return False
        for held in self.held:  # noqa: SIM110 - asked three times for each line of a list: half the time of any()
            if held.permit(subject, action):
                return True
        return False

    def everywhere(self, action: str) -> bool:
        """Say whether an action is allowed on everything in the cloud."""
        permits = [permit for held in self.held if not (held.project or held.domain) for permit in held.permits]
        return all(
            any(action in permit.actions and permit.whole for permit in some)
            for some in (permits, *((self.only,) if self.only else ()))
        )

    @property
    def operates(self) -> bool:
        """Say whether this is one of the cloud's operators: an admin of all of it."""
        return all(map(self.everywhere, actions.of_role(Role.ADMIN)))

    def has(self, wanted: Iterable[Permit], project: str, domain: str) -> str:
        """Return the first action of these permits that the caller doesn't have there; empty: all are the caller's."""
        here = [
            permit
            for held in self.held
            if not (held.project or held.domain)
            or (held.project == project if held.project else held.domain == domain and bool(domain))
            for permit in held.permits
        ]
        for permit in wanted:
            for action in sorted(permit.actions):
                limits = (here, *((self.only,) if self.only else ()))
                if not all(any(mine.covers(permit, action) for mine in some) for some in limits):
                    return action
        return ""


def built_in(actor: str, project: str, role: Role, request: RequestId, domain: str = "") -> Caller:
    """Return a caller with a built-in role in a project. Of project `system`: in the whole cloud."""
    permits = (Permit(actions=actions.of_role(role)),)
    place = "" if project == SYSTEM_PROJECT else project
    held = Held(role=role.name.lower(), permits=permits, project=place, domain=domain)
    return Caller(actor=actor, request=request, held=(held,), project=project, domain=domain)


def authorise(caller: Caller, action: str, subject: Subject) -> None:
    """Let a call pass, or raise Denied with the action that is missing, and who could grant it."""
    if action not in actions.matching(action):
        kind = kind_named(subject.kind)
        made = f"make a new {kind.name} in its place"
        raise Denied(f"nobody has {action}: {kind.plural} can't be changed so by anybody", fix=made)
    if not caller.may(action, subject):
        raise Denied(
            f"{caller.actor} lacks {action} {_on(subject)}: {_has(caller, action)}", fix=_who_grants(subject, action)
        )


def _on(subject: Subject) -> str:
    what = f"on {subject.kind} {subject.name}" if subject.name else f"on {kind_named(subject.kind).plural}"
    return f"{what} in project {subject.project}" if subject.project else what


def _has(caller: Caller, action: str) -> str:
    """Say what the caller has instead."""
    roles = ", ".join(sorted({f"{held.role} {held.where}" for held in caller.held})[:5]) or "no role anywhere"
    some = any(action in permit.actions for held in caller.held for permit in held.permits)
    if some and caller.only and not any(action in permit.actions for permit in caller.only):
        return "the token is one for other actions only"
    narrow = ", which has it for other things" if some else ""
    return f"it is {roles}{narrow}"


def _who_grants(subject: Subject, action: str) -> str:
    kind = kind_named(subject.kind)
    least = next(one.role for one in actions.ACTIONS if one.name == action).name.lower()
    if kind.scope is Scope.PROJECT and subject.project:
        return (
            f"of the built-in roles {least} has it; an admin of project {subject.project} or of its domain gives it:"
            " skerry token create, or skerry binding create"
        )
    if kind.name in OF_A_DOMAIN:
        return "an admin of the domain has it: that is a user with role admin (skerry user set NAME --role admin)"
    return f"that is for the cloud's operators: an admin token of project {SYSTEM_PROJECT}, or a user bound there"


def require_operator(caller: Caller, what: str) -> None:
    """Raise Denied unless the caller is one of the cloud's operators."""
    if not caller.operates:
        raise Denied(f"{what} is for the cloud's operators", fix=f"use an admin token of project {SYSTEM_PROJECT}")


def require_everywhere(caller: Caller, action: str, what: str) -> None:
    """Raise Denied unless the caller has an action in the whole cloud: for what shows every project at once."""
    if not caller.everywhere(action):
        raise Denied(
            f"{caller.actor} lacks {action} in the whole cloud, which {what} needs: it is about every project",
            fix=f"use a token of project {SYSTEM_PROJECT}; a reader will do",
        )


def sees(caller: Caller, seen: WorkingSet, row: AnyResource) -> bool:
    """Say whether a caller may know of a thing, its name included."""
    return caller.may(f"{row.kind}.read", subject_of(row, seen))


def find(caller: Caller, seen: WorkingSet, kind: AnyKind, project: str, name: str, *, action: str = "") -> AnyResource:
    """Return the thing that a caller means by a name or id, in a project or a public one: one that they may read, or
    do the action on.

    Raises NotFound, in the same words for what is not there and for what is not the caller's to see.
    """
    try:
        row = seen.find(kind.name, project, name)
    except NotFound as err:
        raise NotFound(err.detail, fix=_instead(caller, seen, kind, project)) from err
    subject = subject_of(row, seen)
    if not (caller.may(f"{row.kind}.read", subject) or (action and caller.may(action, subject))):
        where = f" in project {project}" if kind.scope is Scope.PROJECT else ""
        raise NotFound(f"there is no {kind.name} {name}{where}", fix=_instead(caller, seen, kind, project))
    return row


def _instead(caller: Caller, seen: WorkingSet, kind: AnyKind, project: str) -> str:
    own = "" if kind.scope is Scope.CLOUD else project
    there = sorted(
        row.name
        for row in seen.of_kind(kind.name)
        if (row.project == own or is_public(row)) and sees(caller, seen, row)
    )
    if not there:
        return f"there is none yet; make one: {kind.example}" if kind.create else "there is none"
    return f"there is {', '.join(there[:10])}" + (f" and {len(there) - 10} more" if len(there) > 10 else "")


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """An event, an operation or a grave, as far as it matters who may see it."""

    kind: str
    project: str
    domain: str
    name: str
    id: Id
    at: float
    public: bool = False


def sees_past(caller: Caller, seen: WorkingSet, past: Past) -> bool:
    """Say whether a caller may know of something that was.

    A name may be given again: what was in a project before the present one of that name was made is not its own. What
    was done to a project itself is its domain's history, and what was done to hosts and sizes the operators'.
    """
    if past.kind not in _KINDS or past.kind in OF_THE_CLOUD:
        return caller.everywhere(f"{past.kind}.read" if past.kind in _KINDS else "project.read")
    kind, name = past.kind, "" if past.kind == "project" else past.name
    subject = Subject(kind=kind, project="", domain=past.domain, name=name, id=past.id, public=past.public)
    live = seen.get(past.id)
    live = live if live and (live.kind, live.project) == (past.kind, past.project) else None
    if past.project and is_its_own(seen, past):
        where = collection_of(kind_named(past.kind), past.project, seen)
        subject = msgspec.structs.replace(subject, project=past.project, domain=where.domain)
    elif past.project:
        subject = msgspec.structs.replace(subject, domain="", name="")
    if live is not None:
        known = subject_of(live, seen)
        subject = msgspec.structs.replace(
            subject, labels=known.labels, public=past.public or known.public, domain=subject.domain or known.domain
        )
    return caller.may(f"{kind}.read", subject)


def is_its_own(seen: WorkingSet, past: Past) -> bool:
    """Say whether what was belongs to the present project of that name, and not to an earlier one."""
    owner = seen.named("project", "", past.project)
    return not past.project or (owner is not None and owner.created_at <= past.at)


def projects_of(caller: Caller, seen: WorkingSet) -> frozenset[str] | None:
    """Return the projects in which a caller has a role, and for who has one in a domain the empty name, for what is
    of no project; None: all there are."""
    found: set[str] = set()
    for held in caller.held:
        if held.project:
            found.add(held.project)
        elif not held.domain:
            return None
        else:
            found.add("")
            found.update(row.name for row in seen.of_kind("project") if row.spec.domain == held.domain)
    return frozenset(found)


def require_project(caller: Caller, seen: WorkingSet, project: str) -> None:
    """Raise Denied, in the same words whether there is such a project, unless the caller has a role in it."""
    known = projects_of(caller, seen)
    if known is not None and project not in known:
        there = ", ".join(sorted(known - {""})[:5]) or "no project"
        raise Denied(f"{caller.actor} has no role in project {project[:63]}", fix=f"it has one in {there}")


OF_THE_CLOUD = frozenset(kind.name for kind in KINDS if kind.scope is Scope.CLOUD) - OF_A_DOMAIN - {"domain"}
"""Kinds whose things belong to nobody but the cloud: readers of anything see them, but not their history."""

_KINDS = frozenset(action.kind for action in actions.ACTIONS)
