"""What a dry run shows: the checks that were passed, what would change, and what would come of it. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from common.codec import plain
from common.errors import SkerryError
from common.ids import HostId, Id, Revision
from common.kinds.kind import AnyResource
from common.refusal import Refusal
from controller.auth.caller import Caller, sees
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Place, Wait
from controller.kinds.quotas import Standard, Use, uses_of
from controller.scheduler.choose import Choice
from controller.store.rows import Address, Change, Gone, Placement, Put
from controller.store.working import WorkingSet, references
from controller.store.writes import AnyWrite, Mutation


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked, and held: a dry run that fails one is answered as the real request would be."""

    name: str
    detail: str


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A field that would change."""

    before: Any
    after: Any


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """What would come of it at first, once accepted."""

    what: Literal["placed", "blocked", "waits", "step", "as wished"]
    message: str
    host: str = ""
    """Where it would be placed."""
    why: Refusal | None = None
    """Why no host fits, with what each constraint costs."""


class QuotaAfter(msgspec.Struct, frozen=True, kw_only=True):
    """What a change would add to what a project or domain uses of a counter."""

    of: str
    name: str
    counter: str
    used: int
    after: int
    limit: int | None
    """None: there is none."""


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a dry run's answer that is of no real one."""

    checks: tuple[Check, ...]
    changes: dict[str, Changed]
    next: Following
    quota: tuple[QuotaAfter, ...] = ()
    """What it changes in what its project and domain use."""
    effects: tuple[str, ...]
    """What goes along with it: what is reserved, given back, destroyed or overtaken."""


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """The first step that would follow: what its planner says, and the host that would be chosen."""

    outcome: Outcome
    choice: Choice | Refusal | None
    """None: nothing is to be placed."""
    seen_at: Revision
    """What was looked at for the choice."""

    @property
    def writes(self) -> tuple[AnyWrite, ...]:
        """What the step would write, to be tried with the mutation."""
        match self.outcome:
            case Do():
                return self.outcome.writes
            case Place() if isinstance(self.choice, Choice):
                return (self.outcome.claim(self.choice, "", self.seen_at), *self.outcome.writes)
            case _:
                return ()


def preview(
    mutation: Mutation,
    intent: Intent,
    tried: tuple[Iterable[Change], SkerryError | None],
    seen: WorkingSet,
    who: Caller,
) -> Preview:
    """Return what a dry run shows. `tried`: what the first step would change, and what stopped it."""
    row, was = mutation.resource, mutation.was
    changes, problem = tried
    if row.deleted_at is not None:
        effects = [*_goes_along(row, seen), *_overtaken(mutation)]
    else:
        effects = [*_taken(changes, row, seen), *_overtaken(mutation)]
    return Preview(
        checks=tuple(_checks(mutation, seen, who)),
        changes=_changes(row, was),
        next=_following(intent, problem, seen),
        effects=tuple(dict.fromkeys(effects)),
    )


def _checks(mutation: Mutation, seen: WorkingSet, who: Caller) -> Iterator[Check]:
    row = mutation.resource
    roles = ", ".join(sorted({f"{held.role} {held.where}" for held in who.held}))
    yield Check(name="role", detail=f"{who.actor} may do this, being {roles}")
    used = [found for one in references(row) if (found := seen.get(one)) and sees(who, seen, found)]
    if used and row.deleted_at is None:
        named = ", ".join(f"{one.kind} {one.name}" for one in used)
        yield Check(name="references", detail=f"there is {named}")
    if row.deleted_at is not None:
        yield Check(name="users", detail=f"nothing that is wanted uses {row.kind} {row.name}")
    else:
        yield Check(name="rules", detail=f"every bound and every rule of a {row.kind} holds")
    what = (
        "the name is free" if mutation.was is None else f"nobody changed it since generation {mutation.was.generation}"
    )
    yield Check(name="books", detail=f"written and taken back: {what}")


def _changes(row: AnyResource, was: AnyResource | None) -> dict[str, Changed]:
    if was is None or row.deleted_at is not None:
        return {}
    before, after = plain(was.spec), plain(row.spec)
    found = {
        f"spec.{name}": Changed(before=before.get(name), after=after.get(name))
        for name in after
        if before.get(name) != after.get(name)
    }
    if was.labels != row.labels:
        found["labels"] = Changed(before=was.labels, after=row.labels)
    return found


def _following(intent: Intent, problem: SkerryError | None, seen: WorkingSet) -> Following:
    match intent.outcome:
        case Place() if isinstance(intent.choice, Refusal):
            return Following(what="blocked", message=intent.choice.summary, why=intent.choice)
        case _ if problem is not None:
            return Following(what="blocked", message=problem.detail, why=problem.refusal)
        case Place() if isinstance(intent.choice, Choice):
            host = seen.name_of(intent.choice.host)
            return Following(what="placed", message=f"placed on host {host}, as things are now", host=host)
        case Place():
            return Following(what="waits", message="for a host")
        case Do(say=say):
            return Following(what="step", message=say)
        case Wait(message=message):
            return Following(what="waits", message=message)
        case Blocked(why=why):
            return Following(what="blocked", message=why.summary, why=why)
        case Done(status=status):
            return Following(what="as wished", message=status.state)


def _taken(changes: Iterable[Change], row: AnyResource, seen: WorkingSet) -> Iterator[str]:
    """Say what the first step would reserve or give back for this thing."""
    for change in changes:
        match change:
            case Put(Placement() as one) if one.owner == row.id:
                yield f"reserves {_amount(one)} on host {seen.name_of(one.host)}"
            case Put(Address() as one) if one.vm == row.id:
                yield f"takes address {one.address} of network {seen.name_of(one.network)}"
            case Gone(Address() as one) if one.vm == row.id:
                yield f"gives back address {one.address} of network {seen.name_of(one.network)}"
            case _:
                pass


def _goes_along(row: AnyResource, seen: WorkingSet) -> Iterator[str]:
    """Say what a deletion takes along."""
    for document in seen.owned_documents(row.id):
        if not document.gone:
            what = document.key.partition("/")[0]
            yield f"destroys the {what} of {row.kind} {row.name} on host {seen.name_of(document.host)}"
    for child in seen.children(row.id):
        yield f"deletes {child.kind} {child.name}, which it made"
        yield from _goes_along(child, seen)
    if placement := seen.placement(row.id):
        yield f"gives back {_amount(placement)} on host {seen.name_of(placement.host)}"
    for address in seen.addresses(row.id):
        yield f"gives back address {address.address} of network {seen.name_of(address.network)}"
    if (enrolment := seen.enrolment(HostId(row.id))) and enrolment.certificate_serial:
        yield f"revokes the certificate of host {row.name}: its agent is not let in any more"
    if row.kind == "token":
        yield f"revokes token {row.name} at once"


def _overtaken(mutation: Mutation) -> Iterator[str]:
    for operation in mutation.closes:
        yield f"cancels operation {operation.id} ({operation.verb} {operation.kind} {operation.name})"


def _amount(one: Placement) -> str:
    cpus = f"{one.vcpus} vCPU{'s' if one.vcpus != 1 else ''}"
    return f"{cpus}, {one.memory_mib} MiB of memory and {one.disk_gib} GiB of disk"


def quota_after(mutation: Mutation, seen: WorkingSet, caller: Caller, standard: Standard) -> tuple[QuotaAfter, ...]:
    """Return what a mutation would add to what its project and domain use. Of a deletion: once the thing is gone."""
    row, was = mutation.resource, mutation.was
    project = seen.named("project", "", row.project) if row.project else None
    if project is None:
        return ()
    before, after = was.counts if was else {}, {} if row.deleted_at is not None else row.counts
    more = {name: after.get(name, 0) - before.get(name, 0) for name in {*before, *after}}
    return (
        *_after(project, uses_of(project, seen, standard), more),
        *(
            one
            for domain in (known_domain(project, seen, caller),)
            if domain
            for one in _after(domain, uses_of(domain, seen, {}), more)
            if one.limit is not None
        ),
    )


def _after(row: AnyResource, uses: tuple[Use, ...], more: dict[str, int]) -> Iterator[QuotaAfter]:
    for use in uses:
        if added := more.get(use.counter):
            yield QuotaAfter(
                of=row.kind,
                name=row.name,
                counter=use.counter,
                used=use.used,
                after=use.used + added,
                limit=use.limit,
            )


def known_domain(row: AnyResource, seen: WorkingSet, caller: Caller) -> AnyResource | None:
    """Return a project's domain, where the caller may know of it."""
    domain = seen.get(Id(row.spec.domain)) if row.kind == "project" else None
    return domain if domain and sees(caller, seen, domain) else None
