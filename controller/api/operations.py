"""Operations: listing, waiting, cancelling. And who the caller is."""

from collections.abc import Callable

from aiohttp import web

from common.errors import NotFound
from common.ids import Id
from common.kinds import kind_named
from common.kinds.kind import AnyKind
from controller.api.body import refuse_body
from controller.api.call import Call, Contexts
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.ports import Store, Watch
from controller.api.query import LIST_DEFAULT, LIST_MOST, bad, integer, refuse_unknown
from controller.api.render import RoleHeld, WhoAmI, answer, operation_one, operation_view
from controller.api.waiting import Waiting
from controller.auth.caller import Caller, Past, authorise, is_its_own, sees_past
from controller.auth.rights import collection_of, subject_of
from controller.kinds import admission
from controller.kinds.admission import Admission
from controller.store.rows import Operation
from controller.store.working import WorkingSet

WAIT_MOST_S = 60

LIST_PARAMETERS = {
    "project": "only those of this project",
    "state": "only those in this state: running, blocked, done, failed, cancelled; or open: running or blocked",
    "resource": "only those of the thing with this id",
    "request": "only those of the request with this id",
    "limit": f"how many at most, 1 to {LIST_MOST}",
    "after": "the cursor that the page before gave as `next`",
}
SHOW_PARAMETERS = {
    "wait_s": f"wait up to so many seconds (0 to {WAIT_MOST_S}) until it ends, is blocked, or differs from `seen`",
    "seen": "the revision of the operation that the caller knows",
}
STATES = ("running", "blocked", "done", "failed", "cancelled", "open")


class Operations:
    """The handlers of operations."""

    def __init__(self, store: Store, contexts: Contexts, waiting: Waiting, committer: Committer) -> None:
        self._store = store
        self._contexts = contexts
        self._waiting = waiting
        self._committer = committer

    async def list(self, call: Call) -> web.Response:
        """Answer one page of operations, newest first."""
        query = call.request.query
        refuse_unknown(query, LIST_PARAMETERS)
        limit = integer(query, "limit", LIST_DEFAULT, 1, LIST_MOST)
        state = _state(query.get("state", ""))
        wanted = _filter(query.get("project"), state, query.get("resource"), query.get("request"))
        after = self._cursor(query.get("after"), call.caller)
        rows = sorted(
            (
                op
                for op in self._store.seen.operations()
                if wanted(op) and sees_operation(call.caller, self._store.seen, op)
            ),
            key=lambda op: (op.created_at, op.id),
            reverse=True,
        )
        if after:
            rows = [op for op in rows if (op.created_at, op.id) < (after.created_at, after.id)]
        page = rows[:limit]
        following = page[-1].id if len(rows) > limit else None
        return answer({"items": [operation_view(op) for op in page], "next": following})

    def _cursor(self, text: str | None, caller: Caller) -> Operation | None:
        if not text:
            return None
        found = self._store.seen.operation(Id(text))
        if found is None or not sees_operation(caller, self._store.seen, found):
            raise bad("after", f"{text[:80]!r} is no cursor", "give what the page before showed as `next`")
        return found

    async def show(self, call: Call) -> web.Response:
        """Answer one operation, at once or when it has something new to say."""
        query = call.request.query
        refuse_unknown(query, SHOW_PARAMETERS)
        wait_s = integer(query, "wait_s", 0, 0, WAIT_MOST_S)
        known = integer(query, "seen", 0, 0, 2**63 - 1)
        operation = self._found(call)
        if wait_s and not _is_news(operation, known):
            operation = await self._awaited(operation, known, wait_s)
        return answer(operation_one(operation))

    async def _awaited(self, operation: Operation, known: int, wait_s: float) -> Operation:
        with self._store.watch() as watch:
            try:
                async with self._waiting.at_most(wait_s):
                    return await self._news(watch, operation, known)
            except TimeoutError:
                return self._store.seen.operation(operation.id) or operation

    async def _news(self, watch: Watch, operation: Operation, known: int) -> Operation:
        while True:
            latest = self._store.seen.operation(operation.id)
            if latest is None or _is_news(latest, known):
                return latest or operation
            operation = latest
            await watch.next()

    async def cancel(self, call: Call) -> web.Response:
        """Take a wish back."""
        refuse_unknown(call.request.query, MUTATION_PARAMETERS)
        await refuse_body(call.request)
        operation = self._found(call)
        seen = self._store.seen
        row = seen.get(operation.resource)
        kind = kind_named(operation.kind)
        subject = subject_of(row, seen) if row else collection_of(kind, operation.project, seen)
        authorise(call.caller, f"{kind.name}.{_opposite(kind, operation.verb)}", subject)

        def make() -> Admission:
            return admission.cancel(self._contexts.of(call.caller), self._found(call))

        return await self._committer.answer(call, make)

    def _found(self, call: Call) -> Operation:
        identity = call.request.match_info["id"]
        operation = self._store.seen.operation(Id(identity))
        if operation is None or not sees_operation(call.caller, self._store.seen, operation):
            raise NotFound(
                f"there is no operation {identity[:80]}", fix="it may be an old one: see /v1/events for what happened"
            )
        return operation


class Callers:
    """The handler that tells a caller who it is."""

    def __init__(self, store: Store, link_url: str) -> None:
        self._store = store
        self._link_url = link_url

    async def whoami(self, call: Call) -> web.Response:
        """Answer who it is, with which roles, and until when."""
        refuse_unknown(call.request.query, ())
        caller, name_of = call.caller, self._store.seen.name_of
        roles = tuple(
            RoleHeld(role=held.role, project=held.project, domain=name_of(held.domain) if not held.project else "")
            for held in caller.held
        )
        return answer(
            WhoAmI(
                actor=caller.actor,
                project=caller.project,
                domain=name_of(caller.domain),
                role=roles[0].role if caller.project else ", ".join(map(_in_words, roles)) or "none",
                roles=roles,
                limited=bool(caller.only),
                expires_at=caller.expires_at or None,
                link_url=self._link_url if caller.everywhere("host.create") else "",
            )
        )


def sees_operation(caller: Caller, seen: WorkingSet, operation: Operation) -> bool:
    """Say whether a caller may know of an operation: who may read the thing, or who asked for it."""
    past = Past(
        kind=operation.kind,
        project=operation.project,
        domain=operation.domain,
        name=operation.name,
        id=operation.resource,
        at=operation.created_at,
    )
    return sees_past(caller, seen, past) or (operation.actor == caller.actor and is_its_own(seen, past))


def _in_words(held: RoleHeld) -> str:
    if held.project:
        return f"{held.role} in project {held.project}"
    return f"{held.role} in domain {held.domain}" if held.domain else f"{held.role} in the whole cloud"


def _is_news(operation: Operation, known: int) -> bool:
    """Say whether there is something to answer: without `known`, only an end or a block is."""
    if operation.finished_at is not None:
        return True
    return operation.revision != known if known else operation.state == "blocked"


def _opposite(kind: AnyKind, verb: str) -> str:
    """Return the word of the action that takes a wish back: that of the opposite wish."""
    if verb == "create":
        return "delete"
    return verb if any(one.name == verb for one in kind.verbs) else "change"


def _state(text: str) -> str:
    if text and text not in STATES:
        raise bad("state", f"there is no state {text[:40]!r}", f"there is {', '.join(STATES)}")
    return text


def _filter(project: str | None, state: str, resource: str | None, request: str | None) -> Callable[[Operation], bool]:
    states = ("running", "blocked") if state == "open" else (state,)
    return lambda op: (
        (project is None or op.project == project)
        and (not state or op.state in states)
        and (resource is None or op.resource == resource)
        and (request is None or op.request == request)
    )
