"""From a caller's words to rows that can be committed, or a refusal that says what to do: pure.

Every mutation of every kind passes here: names, references and bounds are checked for all kinds alike, then the
kind's own `admit` has its say. What comes out is one `Admission`, which the store commits in one transaction.
"""

import os
from collections.abc import Sequence
from typing import Any

import msgspec

from common.clock import iso
from common.codec import convert, plain, to_json
from common.errors import Conflict, FieldError, Invalid, NotFound
from common.ids import Entropy, Revision, new_id
from common.kinds import kind_named
from common.kinds.kind import AnyKind, AnyResource, Field, Labels, Name, Resource, Scope, Spec, Verb, fields, kept_until
from common.secret import Secret, new_token
from controller.auth.caller import Caller, authorise, find, sees
from controller.auth.rights import subject_of
from controller.kinds.lifetime import kept_for, refuse_kept, refuse_protected
from controller.kinds.planners import planner_of
from controller.kinds.quotas import Standard, counts_of, set_limits
from controller.store.rows import Event, Operation
from controller.store.working import WorkingSet, home_of, spec_told
from controller.store.writes import AnyWrite, Mutation, PutPassword, RemoveToken

NONE = Revision(0)


class NewResource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a create."""

    name: Name
    labels: Labels = {}
    spec: dict[str, Any] = {}


class Patch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a change: fields that are absent stay."""

    labels: Labels | None = None
    spec: dict[str, Any] = {}


class Admission(Mutation, frozen=True, kw_only=True):
    """One accepted request, ready to be committed."""

    revealed: Secret | None = None
    """Shown once to the caller, stored nowhere."""

    @property
    def reveals(self) -> bool:
        """Say whether its answer shows a secret."""
        return self.revealed is not None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What every admission needs beside its subject."""

    seen: WorkingSet
    caller: Caller
    now: float
    entropy: Entropy = os.urandom
    standard: Standard = {}


def create(context: Context, kind: AnyKind, project: str, body: NewResource) -> Admission:
    """Admit a new resource. Raises Invalid, Denied, NotFound (a reference) or Conflict (the name is taken)."""
    where = "" if kind.scope is Scope.CLOUD else project
    if where:
        owner = context.seen.named("project", "", where)
        if owner is None:
            find(context.caller, context.seen, kind_named("project"), "", where)
        elif owner.deleted_at is not None:
            raise Conflict(f"project {where} is being deleted", fix="use another project")
    if taken := context.seen.named(kind.name, where, body.name):
        raise Conflict(_taken(context, kind, taken), fix="choose another name")
    spec = _decode(context, kind, where, body.spec, {})
    row: AnyResource = Resource(
        id=new_id(kind.prefix, context.entropy),
        kind=kind.name,
        project=where,
        name=body.name,
        labels=body.labels,
        generation=1,
        observed_generation=0,
        spec=spec,
        status=kind.status(),
        owner=None,
        created_at=context.now,
        deleted_at=None,
        revision=NONE,
    )
    row = _admitted(context, row, None)
    authorise(context.caller, f"{kind.name}.create", subject_of(row, context.seen))
    planner = planner_of(kind.name)
    revealed = new_token(planner.reveals, context.entropy) if planner.reveals else None
    writes = planner.reveal(row, revealed, context.now) if revealed else ()
    return _admission(context, "create", row, None, writes=writes, revealed=revealed)


def change(context: Context, row: AnyResource, body: Patch) -> Admission:
    """Admit a change of spec or labels. Raises Invalid, also for a field that is fixed, and Conflict."""
    kind = kind_named(row.kind)
    _refuse_deleting(row)
    refuse_kept(row)
    for field in body.spec:
        if field in kind.fixed:
            raise Invalid(
                f"{kind.name} {row.name}: {field} can't change once it is made",
                fix=_other_way(kind, row, field),
                errors=(FieldError(field=f"spec.{field}", message="can't change"),),
            )
    spec = _decode(context, kind, row.project, body.spec, plain(row.spec))
    labels = row.labels if body.labels is None else body.labels
    after = msgspec.structs.replace(row, spec=spec, labels=labels, generation=row.generation + 1)
    authorise(context.caller, f"{kind.name}.change", subject_of(after, context.seen))
    return _admission(context, "set", _admitted(context, after, row), row)


def verb(context: Context, row: AnyResource, what: Verb, given: dict[str, Any] | None = None) -> Admission:
    """Admit a one-shot verb, with what it was given, as the change of spec that says it."""
    _refuse_deleting(row)
    if not what.restores:
        refuse_kept(row)
    elif not kept_until(row):
        raise Conflict(f"{row.kind} {row.name} is not deleted", fix="there is nothing to restore")
    takes = convert(given or {}, what.takes, f"{row.kind} {what.name}")
    takes = _resolved(context, takes, row.project, {field.name: field for field in fields(what.takes)})
    after = msgspec.structs.replace(row, spec=what.change(row.spec, takes), generation=row.generation + 1)
    return _admission(context, what.name, _admitted(context, after, row), row)


def record(context: Context, row: AnyResource, spec: Spec, what: str) -> Admission:
    """Admit what Skerry itself found out and writes into a spec (an upload's digest)."""
    _refuse_deleting(row)
    after = msgspec.structs.replace(row, spec=spec, generation=row.generation + 1)
    return _admission(context, what, after, row)


def reissue(context: Context, row: AnyResource) -> Admission:
    """Admit a new secret for a thing that reveals one; the one before it stops being good."""
    _refuse_deleting(row)
    planner = planner_of(row.kind)
    revealed = new_token(planner.reveals, context.entropy)
    writes = planner.reveal(row, revealed, context.now)
    after = msgspec.structs.replace(row, generation=row.generation + 1)
    return _admission(context, "token", after, row, writes=writes, revealed=revealed)


def password(context: Context, row: AnyResource, hash: Secret) -> Admission:  # noqa: A002 - it is one
    """Admit a new password for a user, whose sessions end with it."""
    _refuse_deleting(row)
    writes = (PutPassword(user=row.id, hash=hash), RemoveToken(resource=row.id))
    after = msgspec.structs.replace(row, generation=row.generation + 1)
    return _admission(context, "password", after, row, writes=writes)


def repair(context: Context, row: AnyResource, writes: tuple[AnyWrite, ...], said: str) -> Admission:
    """Admit what an audit of a host found to be repaired."""
    _refuse_deleting(row)
    after = msgspec.structs.replace(row, generation=row.generation + 1)
    admitted = _admission(context, "repair", after, row, writes=writes)
    return msgspec.structs.replace(admitted, event=msgspec.structs.replace(admitted.event, message=said))


def delete(context: Context, row: AnyResource, *, keep: bool = False) -> Admission:
    """Admit a deletion: accepted in every state of the thing, refused only while others that are wanted use it.

    `keep`: where its project keeps what is deleted, it can be restored until then.
    """
    refuse_protected(row)
    if row.owner is not None and (owner := context.seen.get(row.owner)) and owner.deleted_at is None:
        raise Conflict(
            f"{row.kind} {row.name} belongs to {owner.kind} {owner.name}", fix=f"delete {owner.kind} {owner.name}"
        )
    planner_of(row.kind).admit_delete(row, context.seen)
    if wanted := context.seen.wanted(context.seen.holders(row.id)):
        raise Conflict(f"{row.kind} {row.name} is used by {_users(context, wanted)}", fix="delete those first")
    keep_s = kept_for(row, context.seen) if keep and kind_named(row.kind).keeps else 0
    if row.deleted_at is not None:
        after = row
    elif keep_s:
        spec = msgspec.structs.replace(row.spec, kept_until=kept_until(row) or context.now + keep_s)
        after = msgspec.structs.replace(row, spec=spec, generation=row.generation + 1)
    else:
        after = msgspec.structs.replace(row, deleted_at=context.now, generation=row.generation + 1)
    return _admission(context, "delete", after, row)


def cancel(context: Context, operation: Operation) -> Admission:
    """Admit the withdrawal of a wish: a create is deleted again, a change set back. A delete can't be taken back."""
    row = context.seen.get(operation.resource)
    if operation.finished_at is not None or row is None:
        raise Conflict(f"operation {operation.id} has ended ({operation.state})", fix="there is nothing to cancel")
    if operation.verb == "delete":
        raise Conflict(
            f"{operation.kind} {operation.name} is being destroyed: a delete can't be taken back",
            fix="wait for it, then make a new one",
        )
    if operation.verb == "create":
        return delete(context, row)
    if row.generation != operation.generation:
        raise Conflict(
            f"{operation.kind} {operation.name} was changed after operation {operation.id}",
            fix="cancel the later operation, or set what you want",
        )
    kind = kind_named(row.kind)
    if any(verb.final and verb.name == operation.verb for verb in kind.verbs):
        raise Conflict(f"{operation.verb} of {row.kind} {row.name} can't be taken back", fix="wait for it")
    before = msgspec.json.decode(operation.previous_spec, type=kind.spec)
    numbers = {field.name: getattr(row.spec, field.name) for field in fields(kind.spec) if field.counts}
    before = msgspec.structs.replace(before, **numbers)
    after = msgspec.structs.replace(row, spec=before, generation=row.generation + 1)
    return _admission(context, "cancel", _admitted(context, after, row), row)


def _admitted(context: Context, row: AnyResource, before: AnyResource | None) -> AnyResource:
    spec = planner_of(row.kind).admit(row, before, context.seen, context.caller)
    return msgspec.structs.replace(row, spec=spec)


def _admission(
    context: Context,
    what: str,
    row: AnyResource,
    was: AnyResource | None,
    *,
    writes: tuple[AnyWrite, ...] = (),
    revealed: Secret | None = None,
) -> Admission:
    caller = context.caller
    if row.deleted_at is None:
        row = msgspec.structs.replace(row, counts=counts_of(row, context.seen))
        writes = (*writes, *set_limits(row, was, context.standard))
    operation = Operation(
        id=new_id("op", context.entropy),
        verb=what,
        kind=row.kind,
        resource=row.id,
        project=row.project,
        name=row.name,
        generation=row.generation,
        actor=caller.actor,
        request=caller.request,
        state="running",
        message="accepted",
        progress=0.0,
        why=None,
        previous_spec=to_json(was.spec) if was else b"",
        created_at=context.now,
        finished_at=None,
        revision=NONE,
        domain=home_of(row),
    )
    if was is not None and row.deleted_at is None:
        writes = (*writes, *planner_of(row.kind).along(row, was, context.seen))
    overtaken = context.seen.open_operations(row.id) if what in ("delete", "cancel") else ()
    return Admission(
        resource=row,
        was=was,
        operation=operation,
        event=event_of(context, f"{row.kind}.{what}", row, was),
        writes=writes,
        revealed=revealed,
        closes=tuple(
            msgspec.structs.replace(
                op, state="cancelled", message=f"overtaken by {what} {operation.id}", finished_at=context.now
            )
            for op in overtaken
            if op.verb != "delete"
        ),
    )


def event_of(context: Context, action: str, row: AnyResource, was: AnyResource | None) -> Event:
    """Return the event of a mutation, with the spec before and after."""
    return Event(
        seq=0,
        at=context.now,
        actor=context.caller.actor,
        request=context.caller.request,
        action=action,
        kind=row.kind,
        resource=row.id,
        project=row.project,
        name=row.name,
        message="",
        before=spec_told(was) if was else b"",
        after=b"" if row.deleted_at is not None else spec_told(row),
        result="accepted",
    )


def _refuse_deleting(row: AnyResource) -> None:
    if row.deleted_at is not None:
        raise Conflict(f"{row.kind} {row.name} is being deleted", fix="wait until it is gone, then make a new one")


def _other_way(kind: AnyKind, row: AnyResource, field: str) -> str:
    """Say how else a field that is fixed can be had: by a verb that takes it, or anew."""
    verb = next((verb for verb in kind.verbs if field in verb.takes.__struct_fields__), None)
    if verb is None:
        return f"make a new {kind.name} with another {field}"
    return f"use the verb {verb.name}: skerry {kind.name} {verb.name} {row.name} --{field.replace('_', '-')} …"


def _users(context: Context, wanted: Sequence[AnyResource]) -> str:
    """Name the users of a thing, and count those whose names are not the caller's to know (of a public image)."""
    known = [
        f"{user.kind} {user.name}{' (deleted, and kept)' if kept_until(user) else ''}"
        for user in wanted
        if sees(context.caller, context.seen, user)
    ]
    parts = known[:5]
    if len(known) > 5:
        parts.append(f"{len(known) - 5} more")
    if others := len(wanted) - len(known):
        parts.append(f"{others} of other projects")
    return ", ".join(parts)


def _taken(context: Context, kind: AnyKind, taken: AnyResource) -> str:
    if not sees(context.caller, context.seen, taken):
        return f"the name {taken.name} is taken: names of {kind.plural} are the cloud's"
    going = ", which is being deleted" if taken.deleted_at is not None else ""
    if until := kept_until(taken):
        going = f", which is deleted and kept until {iso(until)} (skerry {kind.name} delete {taken.name} --now)"
    where = f" in project {taken.project}" if taken.project else ""
    return f"there is a {kind.name} {taken.name}{where} already{going}"


def _decode(context: Context, kind: AnyKind, project: str, given: dict[str, Any], base: dict[str, Any]) -> Spec:
    """Turn a body's spec over a base into the kind's spec, references resolved to ids."""
    known = {field.name: field for field in fields(kind.spec)}
    for name in given:
        if name in known and known[name].server_set:
            raise Invalid(
                f"{kind.name}: {name} is set by Skerry, not by a request",
                fix="leave it out" + (f"; use the verbs {', '.join(v.name for v in kind.verbs)}" if kind.verbs else ""),
                errors=(FieldError(field=f"spec.{name}", message="is set by Skerry"),),
            )
    spec: Spec = convert(base | given, kind.spec, f"{kind.name} spec")
    said = {name: field for name, field in known.items() if name in given or name not in base}
    return _resolved(context, spec, project, said)


def _resolved(context: Context, spec: Spec, project: str, known: dict[str, Field]) -> Spec:
    """Turn the names in these fields into ids."""
    resolved: dict[str, Any] = {}
    for field in known.values():
        value = getattr(spec, field.name)
        if field.ref and value:
            resolved[field.name] = _resolve(context, field.name, field.ref, project, value)
    return msgspec.structs.replace(spec, **resolved)


def _resolve(context: Context, field: str, kind: str, project: str, value: Any) -> Any:
    if not isinstance(value, str):
        return tuple(_resolve(context, field, kind, project, one) for one in value)
    try:
        found = find(context.caller, context.seen, kind_named(kind), project, value)
    except NotFound as err:
        raise NotFound(
            err.detail, fix=err.fix, errors=(FieldError(field=f"spec.{field}", message=err.detail),)
        ) from err
    if found.deleted_at is not None:
        raise Conflict(f"{kind} {found.name} is being deleted", fix=f"use another {kind}")
    return found.id
