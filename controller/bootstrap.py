"""What must exist before anybody can call: the operators' project, and a first token of it."""

import msgspec

from common.clock import Clock
from common.errors import Conflict, NotFound
from common.ids import new_request_id
from common.kinds import kind_named
from common.kinds.kind import SYSTEM_PROJECT, Role
from common.secret import Secret
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import Context, NewResource
from controller.store.store import Store


def _context(store: Store, clock: Clock) -> Context:
    """Speak as the machine's own root, who can read the database anyway."""
    caller = built_in("skerry-controller", SYSTEM_PROJECT, Role.ADMIN, new_request_id())
    return Context(seen=store.seen, caller=caller, now=clock())


async def ensure_system_project(store: Store, clock: Clock) -> None:
    """Have the project of the operators' tokens."""
    if store.seen.named("project", "", SYSTEM_PROJECT) is None:
        body = NewResource(name=SYSTEM_PROJECT, spec={"description": "the cloud's operators"})
        try:
            await store.admit(admission.create(_context(store, clock), kind_named("project"), "", body))
        except Conflict:
            if store.seen.named("project", "", SYSTEM_PROJECT) is None:  # else another controller was first
                raise


async def issue_token(store: Store, clock: Clock, *, project: str, name: str, role: str) -> Secret:
    """Return a fresh token of that name; one that it had before stops being good.

    Raises NotFound for an unknown project, Conflict where the name stands for another role, Invalid for a bad name.
    """
    context = _context(store, clock)
    if store.seen.named("project", "", project) is None:
        raise NotFound(f"there is no project {project}", fix=f"use {SYSTEM_PROJECT}, or make it: skerry project create")
    there = store.seen.named("token", project, name)
    if there is None:
        body = msgspec.convert({"name": name, "spec": {"role": role}}, NewResource)
        done = await store.admit(admission.create(context, kind_named("token"), project, body))
    elif there.spec.role != role:
        raise Conflict(f"token {name} of project {project} has role {there.spec.role}", fix="choose another name")
    else:
        done = await store.admit(admission.reissue(context, there))
    assert done.revealed is not None
    return done.revealed
