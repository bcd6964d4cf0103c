"""What roles mean: grants of actions on things, held somewhere, and held against one thing. Pure.

Built-in roles and roles of one's own are the same here: sets of actions, perhaps only on things with a name or a label.
A role is held in a project, in a domain (all its projects, and what else is the domain's), or in the whole cloud.
"""

import msgspec

from common.ids import Id
from common.kinds import actions, kind_named
from common.kinds.kind import SYSTEM_PROJECT, AnyKind, AnyResource, Role, Scope
from common.kinds.role import Grant
from controller.store.working import OF_A_DOMAIN, WorkingSet, home_of, is_public


class Permit(msgspec.Struct, frozen=True, kw_only=True):
    """A grant, its patterns spelt out."""

    actions: frozenset[str]
    names: frozenset[str] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def whole(self) -> bool:
        """Say whether it holds for all things."""
        return not self.names and not self.labels

    def fits(self, subject: "Subject") -> bool:
        """Say whether it holds for this one. A whole collection is fit for a permit of any of it."""
        if self.whole or subject.collection:
            return True
        if self.names and subject.name not in self.names:
            return False
        return all(subject.labels is not None and subject.labels.get(key) == value for key, value in self.labels)

    def covers(self, other: "Permit", action: str) -> bool:
        """Say whether whoever has this one has the other one too, as to an action."""
        if action not in self.actions:
            return False
        names = not self.names or (bool(other.names) and other.names <= self.names)
        return names and set(self.labels) <= set(other.labels)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What something is to be done to."""

    kind: str
    project: str
    domain: str
    """The id of its domain, that of its project; empty: it is the cloud's."""
    name: str = ""
    id: Id = Id("")
    labels: dict[str, str] | None = None
    """None: not known any more."""
    public: bool = False
    collection: bool = False
    """All things of the kind there, or any."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A role, and where it is held: in a project (of a domain), in a domain, or (neither is set) in the whole cloud."""

    role: str
    permits: tuple[Permit, ...]
    project: str = ""
    domain: str = ""

    @property
    def where(self) -> str:
        """Say where, for people."""
        if self.project:
            return f"in project {self.project}"
        return "in its domain" if self.domain else "in the whole cloud"

    def reaches(self, subject: Subject, action: str) -> bool:
        """Say whether this is held where the thing is."""
        if not self.project and not self.domain:
            return True
        reads = action.endswith(".read")
        if kind_named(subject.kind).scope is Scope.PROJECT:
            if subject.public and reads:
                return True
            return self.project == subject.project if self.project else self.domain == subject.domain
        if subject.kind in OF_A_DOMAIN:
            return self._reaches_of_a_domain(subject, action in actions.LOOKS)
        if subject.kind == "domain":
            return not self.project and action in actions.LOOKS and (subject.collection or self.domain == subject.id)
        return reads

    def _reaches_of_a_domain(self, subject: Subject, reads: bool) -> bool:
        if subject.collection:
            return reads or not self.project
        if subject.kind in ("role", "user") and reads:
            return subject.domain == self.domain or (subject.kind == "role" and not subject.domain)
        if subject.kind == "project" and reads and self.project:
            return self.project == subject.name
        return not self.project and self.domain == subject.domain

    def permit(self, subject: Subject, action: str) -> bool:
        """Say whether this allows an action on a thing."""
        if not self.reaches(subject, action):
            return False
        for permit in self.permits:  # noqa: SIM110 - asked for each line of a list: half the time of any()
            if action in permit.actions and permit.fits(subject):
                return True
        return False


def spelt_out(grants: tuple[Grant, ...]) -> tuple[Permit, ...]:
    """Return grants with the actions that their patterns stand for."""
    return tuple(
        Permit(
            actions=frozenset().union(*(actions.matching(pattern) for pattern in grant.actions)),
            names=frozenset(grant.names),
            labels=tuple(sorted(grant.labels.items())),
        )
        for grant in grants
    )


def permits_of(role: str, custom: Id | None, seen: WorkingSet) -> tuple[Permit, ...]:
    """Return what a role grants: a built-in one, or (`custom`) one that somebody made."""
    if custom:
        row = seen.get(Id(custom))
        return spelt_out(row.spec.grants) if row and row.deleted_at is None else ()
    return () if role in ("none", "custom") else _BUILT_IN[role]


_BUILT_IN = {role.name.lower(): (Permit(actions=actions.of_role(role)),) for role in Role}


def held_in(project: str, role: str, custom: Id | None, seen: WorkingSet) -> Held:
    """Return a role held in a project. Project `system` stands for the whole cloud."""
    permits = permits_of(role, custom, seen)
    name = seen.name_of(custom) if custom else role
    if project == SYSTEM_PROJECT:
        return Held(role=name, permits=permits)
    return Held(role=name, permits=permits, project=project, domain=seen.domain_of(project) or "nowhere")


def subject_of(row: AnyResource, seen: WorkingSet) -> Subject:
    """Return a thing as it is held against what somebody may do."""
    return Subject(
        kind=row.kind,
        project=row.project,
        domain=_domain_of(row.project, seen) if row.project else home_of(row),
        name=row.name,
        id=row.id,
        labels=row.labels,
        public=is_public(row),
    )


def _domain_of(project: str, seen: WorkingSet) -> str:
    """Return a project's domain. What is in project `system` is the cloud's: no domain's admin gets at it."""
    return "" if project == SYSTEM_PROJECT else seen.domain_of(project) or ""


def collection_of(kind: AnyKind, project: str, seen: WorkingSet) -> Subject:
    """Return all things of a kind in a project, or in the cloud."""
    domain = _domain_of(project, seen) if kind.scope is Scope.PROJECT else ""
    return Subject(kind=kind.name, project=project, domain=domain, collection=True)
