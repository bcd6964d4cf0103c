"""One authority after another, carried out: this controller does what the phase asks of it, and moves the phase on.

The phase is a fact that all controllers read (`controller.pki.succession`). Every look begins from it and from the
files, so a controller that dies at any line goes on at its next start. The next authority's key goes from the one that
made it to the others over the link's port, where both show a controller's certificate. It is never in the database.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import msgspec
import structlog

from common.clock import Clock
from common.codec import from_json
from common.errors import Conflict, Invalid, SkerryError, Temporary
from common.ids import HostId, Id
from common.joining import NextAuthority
from common.protocol import Renew
from common.secret import Secret
from controller.fleet.sessions import Sessions
from controller.pki.authority import Authority
from controller.pki.succession import FACT, Standing, Succession, advanced, behind, decode, is_behind
from controller.store.rows import Change, Fact
from controller.store.store import Store

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
ASKED_AGAIN_S = 60.0
RENEWALS_PER_S = 100.0
"""Hosts are asked to renew over so long a time that no more than this come in a second."""

FETCH_LIMIT_S = 10.0
TRIES = 5

Ask = Callable[[str], Awaitable[NextAuthority]]
"""Asks the controller at an address for the next authority. Raises SkerryError."""


class Successor:
    """The succession as one controller takes part in it. `me` is its id."""

    def __init__(
        self, store: Store, authority: Authority, sessions: Sessions, *, me: str, clock: Clock, ask: Ask
    ) -> None:
        self._store = store
        self._seen = store.seen
        self._authority = authority
        self._sessions = sessions
        self._me = me
        self._clock = clock
        self._ask = ask
        self._asked: dict[HostId, float] = {}
        self._moved = asyncio.Event()
        store.listen(self._committed)

    def _committed(self, changes: Sequence[Change], _poked: set[Id]) -> None:
        if any(isinstance(change.row, Fact) for change in changes):
            self._moved.set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Have the authority in the state that the cloud is in, before anything is served.

        Raises Invalid where the cloud's authority is another one, and nobody gives it.
        """
        value = self._seen.fact(FACT)
        own = self._authority.own_fingerprint()
        if not value:
            first = Succession(current=self._seen.fact("authority") or own, since=self._clock())
            await self._store.swap_fact(FACT, "", first.encode())
        elif not self._store.shared and (found := decode(value)) and self._authority.lacks(found):
            # One controller's own database beside a new authority: it was made anew by hand, and hosts join anew.
            await self._store.swap_fact(FACT, value, Succession(current=own, since=self._clock()).encode())
        await self._follow(self.now())

    async def run(self) -> None:
        """Take part until cancelled."""
        while True:
            self._moved.clear()
            try:
                await self.look()
            except SkerryError as err:
                log.warning("succession of authorities waits", problem=err.detail)
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._moved.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Do what the phase asks, ask hosts that are behind to renew, and move the phase on where it is done."""
        succession = self.now()
        await self._follow(succession)
        if succession.phase != "settled" and self._me not in succession.ready:
            ready = msgspec.structs.replace(succession, ready=(*succession.ready, self._me))
            await self._swap(succession, ready)
            return
        self._ask_to_renew(succession)
        following = advanced(succession, self._living(), self.standing().behind, self._clock())
        if following and await self._swap(succession, following):
            log.info("succession of authorities moved on", phase=following.phase, current=following.current[:16])

    async def _follow(self, succession: Succession) -> None:
        if self._authority.lacks(succession) and succession.next:
            await self._fetch(succession)
        await asyncio.to_thread(self._authority.follow, succession, self._clock())

    async def _fetch(self, succession: Succession) -> None:
        """Fetch the next authority from a controller that has it."""
        problem = "no other controller is there"
        for one in self._seen.controllers():
            if one.id == self._me or not one.alive:
                continue
            try:
                found = await self._ask(one.url)
                await asyncio.to_thread(self._authority.take_next, found.certificate, Secret(found.key))
            except SkerryError as err:
                problem = err.detail
                continue
            if not self._authority.lacks(succession):
                log.info("next authority fetched", url=one.url)
                return
        raise Temporary(f"the next authority's key is not here, and could not be fetched: {problem}")

    async def _swap(self, before: Succession, after: Succession) -> bool:
        value = self._seen.fact(FACT)
        return decode(value) == before and await self._store.swap_fact(FACT, value, after.encode())

    def _living(self) -> tuple[str, ...]:
        living = tuple(one.id for one in self._seen.controllers() if one.alive)
        return living or (self._me,)

    def _ask_to_renew(self, succession: Succession) -> None:
        """Ask the hosts that are connected here; one that does not come back is asked again."""
        now = self._clock()
        sessions = self._sessions.all()
        for session in sessions:
            enrolment = self._seen.enrolment(session.host)
            if enrolment is None or not is_behind(succession, enrolment):
                self._asked.pop(session.host, None)
            elif enrolment.authority and enrolment.authority not in succession.trusted:
                session.close("its certificate is of an authority that another one has followed")
            elif now - self._asked.get(session.host, 0.0) > ASKED_AGAIN_S:
                self._asked[session.host] = now
                session.send(Renew(within_s=len(sessions) / RENEWALS_PER_S))

    # --- for operators --------------------------------------------------------------------------------------------

    def now(self) -> Succession:
        """Return the phase the cloud is in."""
        found = decode(self._seen.fact(FACT))
        assert found is not None, "begin comes first"
        return found

    def standing(self) -> Standing:
        """Say how it stands: who is behind, and why."""
        succession = self.now()
        enrolments = tuple(self._seen.enrolments())
        connected = {one.host for one in enrolments if self._seen.host(one.host).connected}
        waits_for = behind(succession, enrolments, connected, self._clock())
        return Standing(
            succession=succession,
            hosts=sum(bool(one.certificate_serial) for one in enrolments),
            behind=waits_for,
            unready=tuple(sorted(set(self._living()) - set(succession.ready))) if succession.next else (),
        )

    async def rotate(self, *, go_on: bool = False) -> Standing:
        """Have a new authority follow; `go_on`: without waiting longer for those that are behind.

        Raises Conflict where one follows already, or there is nothing to go on with.
        """
        for _ in range(TRIES):
            succession = self.now()
            if await self._swap(succession, await self._begun(succession, go_on=go_on)):
                return self.standing()
        raise Temporary("the succession moved on at every try", fix="see how it stands: skerry ca status")

    async def _begun(self, succession: Succession, *, go_on: bool) -> Succession:
        if go_on:
            return self._without_waiting(succession)
        if succession.phase != "settled":
            raise Conflict(
                f"an authority is being followed by another one already: {succession.phase}",
                fix="see how it stands: skerry ca status",
            )
        name = await asyncio.to_thread(self._authority.make_next, self._clock())
        return msgspec.structs.replace(succession, phase="sharing", next=name, since=self._clock(), ready=())

    def _without_waiting(self, succession: Succession) -> Succession:
        if succession.phase == "overlap":
            return msgspec.structs.replace(succession, phase="switching", since=self._clock(), ready=())
        if succession.phase == "sharing":  # the controller that has the key may be gone for good
            return Succession(current=succession.current, since=self._clock())
        raise Conflict("there is nothing that is waited for", fix="see how it stands: skerry ca status")


def next_authority(authority: Authority) -> NextAuthority | None:
    """Return what is given to another controller; None: nothing is to follow, or its key is not here."""
    found = authority.next_pair()
    return NextAuthority(certificate=found[0], key=found[1].reveal()) if found else None


def asks(authority: Authority) -> Ask:
    """Return what asks other controllers, with this one's certificate."""

    async def ask(url: str) -> NextAuthority:
        timeout = aiohttp.ClientTimeout(total=FETCH_LIMIT_S)
        connector = aiohttp.TCPConnector(ssl=authority.peer_context(), force_close=True)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
                http.get(f"{url}/authority/next") as answer,
            ):
                raw = await answer.read()
                if answer.status != 200:
                    raise Temporary(f"{url} answered with status {answer.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise Temporary(f"{url} gave no answer: {type(err).__name__}") from err
        try:
            return from_json(raw, NextAuthority, "another controller's answer")
        except Invalid as err:
            raise Temporary(f"{url} gave what can't be read: {err.detail}") from err

    return ask
