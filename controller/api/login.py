"""Passwords for sessions: logging in and out, and setting a password."""

import asyncio
from typing import Annotated

import msgspec
import structlog
from aiohttp import web

from common.clock import Clock
from common.errors import Conflict, Denied, Invalid, Unauthenticated
from common.ids import Entropy, Id, RequestId
from common.kinds.kind import AnyResource
from common.kinds.user import USER
from common.secret import Secret, digest_of, new_token
from controller.api.body import read_json, refuse_body
from controller.api.call import REQUEST_ID, Call, Contexts
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.limits import Limits
from controller.api.ports import Store
from controller.api.query import refuse_unknown
from controller.api.render import answer
from controller.api.resources import own
from controller.auth import passwords
from controller.auth.tokens import SESSION, digest_in
from controller.kinds import admission
from controller.kinds.user import refuse_stronger
from controller.store.rows import Event, Token
from controller.store.writes import PutToken, RemoveToken

log = structlog.get_logger(__name__)

TRIES_A_MINUTE, TRIES_AT_ONCE = 6, 10
"""Logins under one name; one address may try ten times as many."""

AT_A_TIME = 2
"""Passwords that are hashed beside each other: each takes 64 MiB, and a core for 100 ms."""

Password = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class LoginBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a login."""

    user: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    password: Password


class LoggedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A session."""

    token: str
    """Send it as bearer token."""
    user: str
    expires_at: float


class PasswordBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that sets a password."""

    password: Annotated[str, msgspec.Meta(min_length=10, max_length=1024)]
    current: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    """The present one: whoever sets their own gives it."""


class Passwords:
    """Checks and makes hashes, off the event loop and few at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = asyncio.Semaphore(AT_A_TIME)

    async def right(self, user: AnyResource | None, given: str) -> bool:
        """Say whether it is a user's password. It takes as long where there is no such user."""
        stored = await self._store.password(user.id if user else Id(""))
        async with self._turn:
            return await asyncio.to_thread(passwords.verify, stored, Secret(given))

    async def hashed(self, given: str) -> Secret:
        """Return what is stored of a password."""
        async with self._turn:
            return Secret(await asyncio.to_thread(passwords.hashed, Secret(given)))


class Sessions:
    """The handlers of logins, logouts and passwords."""

    def __init__(
        self,
        store: Store,
        contexts: Contexts,
        committer: Committer,
        *,
        clock: Clock,
        entropy: Entropy,
        lasts_s: float,
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._committer = committer
        self._clock = clock
        self._entropy = entropy
        self._lasts_s = lasts_s
        self._passwords = Passwords(store)
        rate = TRIES_A_MINUTE / 60
        self._by_name = Limits(rate_per_s=rate, burst=TRIES_AT_ONCE, clock=clock)
        self._by_peer = Limits(rate_per_s=10 * rate, burst=10 * TRIES_AT_ONCE, clock=clock)

    async def login(self, request: web.Request) -> web.Response:
        """Answer a session's token to who knows the password. Raises Unauthenticated, whatever of it is wrong."""
        refuse_unknown(request.query, ())
        body = await read_json(request, LoginBody, "the login")
        self._by_peer.spend(f"address {request.remote}")
        self._by_name.spend(f"login as {body.user}")
        user = self._store.seen.named("user", "", body.user)
        right = await self._passwords.right(user, body.password)
        user = self._store.seen.named("user", "", body.user)
        if not (right and user and user.spec.enabled and user.deleted_at is None):
            log.warning("login refused", user=user.name if user else "", peer=request.remote)
            raise Unauthenticated(
                "user and password don't fit, or the user may not log in",
                fix="try again; an admin of your domain sets a new password: skerry user password NAME",
            )
        secret = new_token(SESSION, self._entropy)
        ends = self._clock() + self._lasts_s
        token = Token(digest=digest_of(secret.reveal()), resource=user.id, expires_at=ends)
        await self._store.append(self._event(user, "login", request[REQUEST_ID]), PutToken(token=token))
        return answer(LoggedIn(token=secret.reveal(), user=user.name, expires_at=ends))

    async def logout(self, call: Call) -> web.Response:
        """End the session. Raises Conflict for a token, which is no session."""
        refuse_unknown(call.request.query, ())
        await refuse_body(call.request)
        user = self._store.seen.get(call.caller.user)
        if user is None:
            raise Conflict(
                f"{call.caller.actor} is a token and no session",
                fix="to revoke a token delete it: skerry token delete NAME",
            )
        digest = digest_in(call.request.headers.get("Authorization"))
        event = self._event(user, "logout", call.caller.request)
        await self._store.append(event, RemoveToken(resource=user.id, digest=digest))
        return answer({"user": user.name})

    async def password(self, call: Call) -> web.Response:
        """Set a user's password: one's own with the present one, another's by who has at least their rights."""
        refuse_unknown(call.request.query, MUTATION_PARAMETERS)
        body = await read_json(call.request, PasswordBody, "the password")
        user = own(self._store.seen, call, USER)
        if body.password in (user.name, body.current):
            raise Invalid("the password is the user's name, or the one before", fix="choose another one")
        refuse_stronger(call.caller, user, self._store.seen)
        if call.caller.user == user.id:
            self._by_name.spend(f"login as {user.name}")
            if not await self._passwords.right(user, body.current):
                raise Denied("the present password is another one", fix="give it as `current`")
        hashed = await self._passwords.hashed(body.password)

        def make() -> admission.Admission:
            fresh = own(self._store.seen, call, USER)
            refuse_stronger(call.caller, fresh, self._store.seen)
            return admission.password(self._contexts.of(call.caller), fresh, hashed)

        return await self._committer.answer(call, make)

    def _event(self, user: AnyResource, what: str, request: RequestId) -> Event:
        return Event(
            seq=0,
            at=self._clock(),
            actor=f"{user.name}@{self._store.seen.name_of(user.spec.domain)}",
            request=request,
            action=f"user.{what}",
            kind="user",
            resource=user.id,
            project="",
            name=user.name,
            message="",
            before=b"",
            after=b"",
        )
