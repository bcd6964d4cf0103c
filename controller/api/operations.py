"""Operations: listing, waiting, cancelling. And who the caller is."""

from collections.abc import Callable

from aiohttp import web

from common.errors import NotFound
from common.ids import Id
from common.kinds import kind_named
from common.kinds.kind import AnyKind, Role
from controller.api.body import refuse_body
from controller.api.call import Call, Contexts
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.ports import Store, Watch
from controller.api.query import LIST_DEFAULT, LIST_MOST, bad, integer, refuse_unknown
from controller.api.render import WhoAmI, answer, operation_one, operation_view
from controller.api.waiting import Waiting
from controller.auth.caller import Caller, authorise, sees_history
from controller.kinds import admission
from controller.kinds.admission import Admission
from controller.store.rows import Operation

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
            (op for op in self._store.seen.operations() if wanted(op) and _sees(call.caller, op)),
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
        if found is None or not _sees(caller, found):
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
        kind = kind_named(operation.kind)
        authorise(call.caller, kind, _need(kind, operation.verb), operation.project, "changed")

        def make() -> Admission:
            return admission.cancel(self._contexts.of(call.caller), self._found(call))

        return await self._committer.answer(call, make)

    def _found(self, call: Call) -> Operation:
        identity = call.request.match_info["id"]
        operation = self._store.seen.operation(Id(identity))
        if operation is None or not _sees(call.caller, operation):
            raise NotFound(
                f"there is no operation {identity[:80]}", fix="it may be an old one: see /v1/events for what happened"
            )
        return operation


class Callers:
    """The handler that tells a caller who it is."""

    def __init__(self, link_url: str) -> None:
        self._link_url = link_url

    async def whoami(self, call: Call) -> web.Response:
        """Answer whose token it is."""
        refuse_unknown(call.request.query, ())
        caller = call.caller
        return answer(
            WhoAmI(
                actor=caller.actor,
                project=caller.project,
                role=caller.role.name.lower(),
                link_url=self._link_url if caller.operates else "",
            )
        )


def _sees(caller: Caller, operation: Operation) -> bool:
    return sees_history(caller, operation.kind, operation.project)


def _is_news(operation: Operation, known: int) -> bool:
    """Say whether there is something to answer: without `known`, only an end or a block is."""
    if operation.finished_at is not None:
        return True
    return operation.revision != known if known else operation.state == "blocked"


def _need(kind: AnyKind, verb: str) -> Role | None:
    """Return the role that takes a wish back: that of the opposite wish."""
    if verb == "create":
        return kind.delete
    return next((one.role for one in kind.verbs if one.name == verb), kind.change)


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
