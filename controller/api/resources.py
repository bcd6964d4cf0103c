"""The things of all kinds: list, show, create, change, delete and verbs, the same for each kind."""

from collections.abc import Callable, Collection

from aiohttp import web

from common.errors import Denied
from common.kinds.kind import AnyKind, AnyResource, Scope, Verb
from controller.api.body import read_fields, read_json, refuse_body
from controller.api.call import Call, Contexts
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.ports import Store
from controller.api.query import Ordered, check_match, flag, list_query, refuse_unknown, require_match, select
from controller.api.render import answer, etag, names_of, resource_view
from controller.auth.caller import authorise, find, sees
from controller.auth.rights import subject_of
from controller.kinds import admission
from controller.kinds.admission import Admission, NewResource, Patch
from controller.store.working import WorkingSet


def found(seen: WorkingSet, call: Call, kind: AnyKind) -> AnyResource:
    """Return the thing that a call's address means.

    Raises NotFound, in the same words for what is not there and not to be seen; Denied where the call's action on this
    very thing is not allowed.
    """
    row = find(call.caller, seen, kind, call.project, call.name, action=call.action)
    authorise(call.caller, call.action, subject_of(row, seen))
    return row


def own(seen: WorkingSet, call: Call, kind: AnyKind) -> AnyResource:
    """Like `found`, for a change: a public thing can be changed in its own project only."""
    row = find(call.caller, seen, kind, call.project, call.name, action=call.action)
    if kind.scope is Scope.PROJECT and row.project != call.project:
        raise Denied(
            f"{kind.name} {row.name} is a public one of project {row.project}",
            fix=f"change it there, with a token of project {row.project}",
        )
    authorise(call.caller, call.action, subject_of(row, seen))
    return row


DELETE_PARAMETERS = {"now": "true: free it at once, though its project keeps what is deleted; it can't be restored"}
"""Of kinds whose things are kept."""


class Resources:
    """The handlers of every kind."""

    def __init__(self, store: Store, contexts: Contexts, committer: Committer) -> None:
        self._store = store
        self._contexts = contexts
        self._committer = committer
        self._ordered = Ordered(store.seen)

    async def list(self, kind: AnyKind, call: Call) -> web.Response:
        """Answer one page of a collection."""
        wanted = list_query(call.request.query)
        seen = self._store.seen
        there = self._ordered.behind(kind, call.project, wanted.after)
        rows, following = select((row for row in there if sees(call.caller, seen, row)), wanted)
        return answer(
            {
                "items": [resource_view(row, seen, call.caller) for row in rows],
                "names": names_of(rows, seen, call.caller),
                "next": following,
                "revision": seen.revision,
            }
        )

    async def show(self, kind: AnyKind, call: Call) -> web.Response:
        """Answer one thing."""
        refuse_unknown(call.request.query, ())
        row = found(self._store.seen, call, kind)
        body = {
            "resource": resource_view(row, self._store.seen, call.caller),
            "names": names_of([row], self._store.seen, call.caller),
        }
        return answer(body, headers={"ETag": etag(row)})

    async def create(self, kind: AnyKind, call: Call) -> web.Response:
        """Accept a new thing."""
        refuse_unknown(call.request.query, MUTATION_PARAMETERS)
        body = await read_json(call.request, NewResource, f"the new {kind.name}")
        return await self._committer.answer(
            call, lambda: admission.create(self._contexts.of(call.caller), kind, call.project, body)
        )

    async def change(self, kind: AnyKind, call: Call) -> web.Response:
        """Accept a change, made on the state that If-Match names."""
        refuse_unknown(call.request.query, MUTATION_PARAMETERS)
        body = await read_json(call.request, Patch, f"the change of a {kind.name}")
        match = call.request.headers.get("If-Match")

        def make() -> Admission:
            row = own(self._store.seen, call, kind)
            require_match(match, row)
            return admission.change(self._contexts.of(call.caller), row, body)

        return await self._committer.answer(call, make)

    async def delete(self, kind: AnyKind, call: Call) -> web.Response:
        """Accept a deletion: what its project keeps can be restored for a while, unless `now` is asked for."""
        now = flag(call.request.query, "now") if kind.keeps else True
        known = (*MUTATION_PARAMETERS, *(DELETE_PARAMETERS if kind.keeps else ()))
        return await self._bodiless(
            kind, call, lambda context, row: admission.delete(context, row, keep=not now), known
        )

    async def verb(self, kind: AnyKind, verb: Verb, call: Call) -> web.Response:
        """Accept a one-shot verb, with what it takes as the body."""
        if not verb.takes.__struct_fields__:
            return await self._bodiless(kind, call, lambda context, row: admission.verb(context, row, verb))
        given = await read_fields(call.request, f"what {verb.name} takes")
        return await self._on_it(kind, call, lambda context, row: admission.verb(context, row, verb, given))

    async def reissue(self, kind: AnyKind, call: Call) -> web.Response:
        """Accept the making of a new secret, and show it."""
        return await self._bodiless(kind, call, admission.reissue)

    async def _bodiless(
        self,
        kind: AnyKind,
        call: Call,
        admit: Callable[[admission.Context, AnyResource], Admission],
        known: Collection[str] = MUTATION_PARAMETERS,
    ) -> web.Response:
        await refuse_body(call.request)
        return await self._on_it(kind, call, admit, known)

    async def _on_it(
        self,
        kind: AnyKind,
        call: Call,
        admit: Callable[[admission.Context, AnyResource], Admission],
        known: Collection[str] = MUTATION_PARAMETERS,
    ) -> web.Response:
        refuse_unknown(call.request.query, known)
        match = call.request.headers.get("If-Match")

        def make() -> Admission:
            row = own(self._store.seen, call, kind)
            check_match(match, row)
            return admit(self._contexts.of(call.caller), row)

        return await self._committer.answer(call, make)
