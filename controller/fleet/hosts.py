"""What the controller knows of its hosts, and tells them: who may join, who is there, what each should have and said.

Every document that a commit puts goes to its host at once; a host whose digest differs at its hello gets all of them.
What a host reports is taken only for documents that it has: it may speak of nothing else.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from common.boots import words
from common.clock import Clock
from common.codec import from_pack
from common.documents import Desired, DocKey, DomainDoc, Report, VolumeDoc
from common.errors import Conflict, Denied, Invalid, NotFound, SkerryError, Temporary
from common.ids import HostId, Id, RequestId
from common.joining import Enrolled, Vouched, VouchRequest, parse_join_token
from common.kinds.kind import AnyResource
from common.protocol import (
    PROTOCOL,
    DesiredBatch,
    Found,
    Hello,
    HostEvent,
    Metrics,
    Refused,
    Reports,
    Survey,
    Welcome,
    digest,
    reports_digest,
)
from common.secret import digest_of
from common.tls import Peer
from controller.fleet.attached import volumes_moved
from controller.fleet.audit import Difference, compare
from controller.fleet.booted import settled_boot
from controller.fleet.figures import Figures
from controller.fleet.lies import Lie, Lies, clipped, is_late, judge
from controller.fleet.links import ALONE, Links
from controller.fleet.repair import Plan, plan_repairs
from controller.fleet.sessions import Session, Sessions, Told
from controller.metrics.intake import SLOT_S, UNKEPT, Measures
from controller.pki.authority import Authority, Signed
from controller.pki.certificates import Machine
from controller.store.rows import EPOCH, Change, Document, Enrolment, Event, Given, Link, Put
from controller.store.store import Store
from controller.store.writes import AnyWrite, PutEnrolment

log = structlog.get_logger(__name__)

MOST_STEPS = 24
"""Of one document that a host may tell of."""

EVENT_CHARACTERS = 500
"""Of a host's own words in the event table."""

TURNED_AWAY_S = 600.0
"""A host that is turned away for the same reason again and again leaves one event in so long."""

_BOOTS = 4
_ACTION = re.compile(r"^(?:domain|volume|snapshot|network|port)\.[a-z-]{1,24}$")
"""What a host may call an event. Without the prefix it would be the controller's own."""

Changed = Callable[[HostId], None]
Poke = Callable[[Id], None]


class Hosts:
    """The fleet's books. `run` sends whole lists of documents; all else happens as messages and commits come."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        sessions: Sessions,
        *,
        images: Path,
        version: str,
        clock: Clock,
        changed: Changed,
        poke: Poke,
        links: Links = ALONE,
        measures: Measures = UNKEPT,
    ) -> None:
        self._links = links
        self._linked: set[HostId] = set()
        """The hosts that were noted as connected here."""
        self._store = store
        self._seen = store.seen
        self._authority = authority
        self._sessions = sessions
        self._images = images
        self._version = version
        self._clock = clock
        self._changed = changed
        self._poke = poke
        self._syncs: asyncio.Queue[Session] = asyncio.Queue()
        self.foreign_reports = 0
        """Reports that spoke of documents their host does not have."""
        self._lies = Lies(self._about, clock)
        self._figures = Figures(self._seen, self._lies, measures, poke)
        self._turned_away: dict[HostId, tuple[str, float]] = {}
        self._boots: dict[HostId, tuple[str, ...]] = {}
        """The machines' boots that were seen of a host, the newest last: none comes back after another one."""
        store.listen(self._committed)

    # --- joining --------------------------------------------------------------------------------------------------

    async def enrol(self, token: str, csr_pem: str) -> Enrolled:
        """Redeem a join token. Raises Denied where it is unknown, used or out of date, Invalid for a bad request."""
        parsed = parse_join_token(token)
        wanted = digest_of(parsed.secret.reveal())
        enrolment = self._awaiting(wanted)
        if enrolment is None:
            await self._store.catch_up()  # another controller may have given the token out a moment ago
            enrolment = self._awaiting(wanted)
        row = self._seen.get(enrolment.host) if enrolment else None
        if enrolment is None or row is None or row.deleted_at is not None:
            raise Denied("this join token is not known: it was used, replaced, or its host deleted", fix=_NEW_TOKEN)
        if enrolment.join_expires_at < self._clock():
            raise Denied(f"the join token of host {row.name} is out of date", fix=_NEW_TOKEN)
        signed = self._authority.sign_host(csr_pem, enrolment.host, self._clock())
        if await self._store.use_join_token(wanted, _given(signed)) is None:
            raise Denied(f"the join token of host {row.name} was used meanwhile", fix=_NEW_TOKEN)
        await self._happened(row, "joined", "its agent joined")
        return Enrolled(host_id=enrolment.host, host_name=row.name, certificate=signed.pem, ca=self._authority.ca_pem)

    def _awaiting(self, join_digest: str) -> Enrolment | None:
        return next((one for one in self._seen.enrolments() if one.join_digest == join_digest), None)

    async def renew(self, peer: Peer, csr_pem: str) -> Enrolled:
        """Give a host its next certificate."""
        row = self._row(peer.host)
        signed = self._authority.sign_host(csr_pem, peer.host, self._clock())
        if await self._store.renewed(peer.host, peer.serial, _given(signed)) is None:
            raise Denied(f"host {row.name} is not enrolled any more", fix=_NEW_TOKEN)
        return Enrolled(host_id=peer.host, host_name=row.name, certificate=signed.pem, ca=self._authority.ca_pem)

    async def vouch(self, peer: Peer, request: VouchRequest) -> Vouched:
        """Certify a host's key for those of the machines that are on it."""
        here = {one.owner for one in self._seen.placed_on(peer.host)}
        found = {}
        for vm in request.machines:
            row = self._seen.get(vm)
            if row is not None and row.kind == "vm" and vm in here:
                machine = Machine(id=vm, project=row.project)
                found[vm] = self._authority.sign_machine(request.csr, machine, self._clock())
            elif not is_late(self._seen, peer.host, DocKey(f"domain/{vm}")):
                await self._lies.told(peer.host, "claim", f"asked to speak for {vm[:40]}, which is not on it")
        return Vouched(certificates=found)

    async def left(self, peer: Peer) -> None:
        """Let a host go: its certificate opens nothing any more. Raises Conflict where anything should be on it."""
        row, enrolment = self._row(peer.host), self._seen.enrolment(peer.host)
        wanted = {document.owner for document in self._seen.documents(peer.host) if not document.gone}
        wanted |= {placement.owner for placement in self._seen.placed_on(peer.host)}
        if wanted:
            names = sorted(f"{one.kind} {one.name}" if (one := self._seen.get(owner)) else owner for owner in wanted)
            raise Conflict(
                f"host {row.name} should have {', '.join(names[:5])}{' and more' if len(names) > 5 else ''}",
                fix=f"have them deleted first: skerry host drain {row.name} --dry-run lists the machines",
            )
        if enrolment is not None:
            let_go = msgspec.structs.replace(
                enrolment, join_digest="", join_expires_at=0.0, certificate_serial="", previous_serial=""
            )
            await self._happened(row, "left", "its agent took it out of the cloud", PutEnrolment(enrolment=let_go))

    def is_revoked(self, host: HostId, serial: str) -> bool:
        """Say whether this certificate is no longer let in."""
        enrolment, row = self._seen.enrolment(host), self._seen.get(host)
        good = (enrolment.certificate_serial, enrolment.previous_serial) if enrolment else ()
        return row is None or row.deleted_at is not None or not serial or serial not in good

    def join_text(self, secret: str) -> str:
        """Return a join token as it is handed to a person: the secret and the CA it may be shown to."""
        return f"{secret}.{self._authority.fingerprint()}"

    # --- sessions -------------------------------------------------------------------------------------------------

    def session(self, host: HostId) -> Session | None:
        """Return a host's session; None while it is not connected."""
        return self._sessions.get(host)

    async def connected(self, session: Session, hello: Hello) -> Welcome | Refused:
        """Take a host in: note what it has, and have it sent what it lacks."""
        row = self._row(session.host)
        enrolment = self._seen.enrolment(session.host)
        if enrolment is None:
            return Refused(reason=f"host {row.name} is not enrolled")
        self._linked.add(session.host)
        await self._links.take(session.host)
        await self._note_boot(session.host, hello)
        anew = await self._is_of_another_past(session.host, hello)
        if session.peer.serial == enrolment.certificate_serial and not enrolment.confirmed:
            await self._store.confirm(session.host, session.peer.serial)
        vtep, mtu = hello.inventory.vtep, hello.inventory.underlay_mtu
        if (vtep, mtu) != (enrolment.vtep, enrolment.underlay_mtu):
            await self._store.note_endpoint(session.host, vtep, mtu)
            self._poke_networks()
        known = digest((one.key, one.revision) for one in self._seen.documents(session.host))
        if anew or known != hello.desired_digest:
            self._syncs.put_nowait(session)
        await self._happened(row, "connected", "")
        view = self._seen.host(session.host)
        view.connected, view.since = True, self._clock()
        view.inventory, view.agent_version = hello.inventory, hello.agent_version
        self._changed(session.host)
        return Welcome(
            protocol=min(PROTOCOL, hello.protocol),
            controller_version=self._version,
            host_name=row.name,
            send_reports=anew or not view.reported or reports_digest(view.reports.values()) != hello.observed_digest,
            metrics_every_s=SLOT_S,
            urls=self._links.urls,
            epoch=self._seen.fact(EPOCH),
            anew=anew,
        )

    async def _is_of_another_past(self, host: HostId, hello: Hello) -> bool:
        """Say whether a host knows documents of a past that this database does not have: it was restored."""
        if hello.epoch == self._seen.fact(EPOCH) and hello.newest > self._seen.revision:
            said = f"revision {hello.newest}, this one ends at {self._seen.revision}; if it was restored from an older "
            await self._lies.told(host, "past", f"{said}backup: skerry-controller restored")
            return True
        return hello.epoch != self._seen.fact(EPOCH)

    async def _note_boot(self, host: HostId, hello: Hello) -> None:
        """A boot that comes back after another one is a second machine with the first one's certificate."""
        boot = hello.inventory.boot_id
        before = self._boots.get(host, ())
        if before[-1:] == (boot,):
            return
        if boot in before:
            said = f"boots {before[-1]} and {boot} speak in turn; skerry host token NAME shuts out both"
            await self._lies.told(host, "twin", said)
        self._boots[host] = (*(one for one in before if one != boot), boot)[-_BOOTS:]

    async def disconnected(self, session: Session, reason: str) -> None:
        """Note that a host is not heard of any more. What it said stays, as what was last seen."""
        if session.host not in self._linked and self._seen.link(session.host):
            return  # it is connected to another controller by now
        self._linked.discard(session.host)
        await self._figures.keep()
        await self._links.leave(session.host)
        link = self._seen.link(session.host)
        if link is None or self._links.mine(link):
            view = self._seen.host(session.host)
            view.connected, view.since, view.metrics = False, self._clock(), None
        self._changed(session.host)
        if row := self._seen.get(session.host):
            try:
                await self._happened(row, "disconnected", reason)
            except SkerryError as err:  # it may have gone because the database did
                log.warning("end of a link not noted", host=session.host, error=err.detail)

    async def turned_away(self, host: HostId, reason: str) -> None:
        """Note that a host with a good certificate was not let in."""
        before, at = self._turned_away.get(host, ("", 0.0))
        if reason == before and self._clock() - at < TURNED_AWAY_S:
            return
        self._turned_away[host] = (reason, self._clock())
        await self._about(host, "turned-away", reason)

    async def lied(self, host: HostId, lie: Lie, detail: str) -> None:
        """Note what a host did that no host does."""
        await self._lies.told(host, lie, detail)

    def image(self, digest: str) -> Path | None:
        """Return the file of an image, for another controller."""
        return self._images / digest.removeprefix("sha256:")

    def may_fetch(self, host: HostId, digest: str) -> Path | None:
        """Return the file of an image that is in a host's documents."""
        for document in self._seen.documents(host):
            doc = document.doc
            image = doc.image if isinstance(doc, VolumeDoc) else doc.kernel if isinstance(doc, DomainDoc) else None
            if image is not None and image.digest == digest and not document.gone:
                return self._images / digest.removeprefix("sha256:")
        return None

    # --- down -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send whole lists to the hosts that need them, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sum_up_lies())
            group.create_task(self._figures.run())
            while True:
                session = await self._syncs.get()
                group.create_task(self.sync(session))

    async def _sum_up_lies(self) -> None:
        while True:
            await asyncio.sleep(SLOT_S)
            try:
                await self._lies.sum_up()
            except SkerryError as err:
                log.warning("lies of hosts not noted", error=err.detail)

    async def drain(self) -> None:
        """Do at once what else waits a moment, lists and figures, one after another: for a simulator."""
        await self._figures.keep()
        while not self._syncs.empty():
            await self.sync(self._syncs.get_nowait())

    async def sync(self, session: Session) -> None:
        """Send a host all that it should have."""
        wanted = [_desired(document) for document in self._seen.documents(session.host)]
        try:
            await session.send_documents(wanted, full=True)
        except Temporary as err:
            log.info("documents not sent", host=session.host, error=err.detail)

    def _committed(self, changes: Sequence[Change], _poked: set[Id]) -> None:
        """Send every document that a commit put, one message a host."""
        news: dict[HostId, list[Desired]] = defaultdict(list)
        for change in changes:
            row = change.row
            if isinstance(change, Put) and isinstance(row, Document):
                news[row.host].append(_desired(row))
            elif isinstance(row, Enrolment):
                self._cut_revoked(row.host)
            elif isinstance(row, Link):
                self._link_changed(row, there=isinstance(change, Put))
        for host, items in news.items():
            if session := self._sessions.get(host):
                session.send(DesiredBatch(items=tuple(items)))

    def _link_changed(self, link: Link, *, there: bool) -> None:
        """A host came to one of several controllers, or went. What it said here is old where it speaks elsewhere."""
        session = self._sessions.get(link.host)
        if there and not self._links.mine(link):
            if session and link.host in self._linked:
                session.close("the host connected to another controller")
            self._linked.discard(link.host)
            self._figures.forget(link.host)
            view = self._seen.host(link.host)
            view.inventory, view.metrics, view.reports, view.reported = None, None, {}, False
        self._changed(link.host)

    def _cut_revoked(self, host: HostId) -> None:
        session = self._sessions.get(host)
        if session and self.is_revoked(host, session.peer.serial):
            session.close("its certificate was revoked")

    def _poke_networks(self) -> None:
        for network in self._seen.of_kind("network"):
            self._poke(network.id)

    # --- up -------------------------------------------------------------------------------------------------------

    async def received(self, session: Session, message: Told) -> None:
        """Take in what a host said."""
        match message:
            case Reports():
                if await self._is_in_turn(session, message):
                    await self._reports(session.host, message)
            case Metrics():
                await self._figures.take(session.host, message)
            case HostEvent():
                await self._event(session.host, message)

    async def _is_in_turn(self, session: Session, message: Reports) -> bool:
        """Say whether reports are the next ones. Where some were lost the digests are compared anew."""
        if message.number <= session.heard:
            said = f"reports number {message.number}, after number {session.heard}"
            await self._lies.told(session.host, "replay", said)
            return False
        if message.number > session.heard + 1:
            session.close(f"reports number {session.heard + 1} were lost: {message.number} came after {session.heard}")
            return False
        session.heard = message.number
        return True

    async def _reports(self, host: HostId, message: Reports) -> None:
        view = self._seen.host(host)
        fit = [clipped(report) for report in await self._fit(host, message.reports)]
        own = tuple(self._without_steps(host, report) for report in fit)
        booted = [found for report in own if (found := settled_boot(self._seen, host, report))]
        moved = volumes_moved(view.reports, own)
        if message.full:
            view.reports = {report.key: report for report in own}
            view.reported = True
        else:
            view.reports.update((report.key, report) for report in own)
        gone = [(report.key, report.revision) for report in own if self._is_gone(host, report)]
        owners_told = {document.owner for report in own if (document := self._seen.document(host, report.key))}
        for one in owners_told | moved:
            self._poke(one)
        for row, boot in booted:
            await self._happened(row, "first-boot", words(boot), actor=host)
        if gone:
            owners = await self._store.acknowledge(host, gone)
            for key, _ in gone:
                if self._seen.document(host, key) is None:
                    view.reports.pop(key, None)
            for owner in owners:
                self._poke(owner)

    def _without_steps(self, host: HostId, report: Report) -> Report:
        """Pass on the steps that a report tells of; what is kept of it has none."""
        document = self._seen.document(host, report.key)
        if not report.steps or document is None:
            return report
        self._seen.took(document.owner, host, report.key, report.steps[-MOST_STEPS:])
        return msgspec.structs.replace(report, steps=())

    async def _fit(self, host: HostId, reports: Iterable[Report]) -> list[Report]:
        """Return the reports that a host may make; what can't be so is noted, once a lie."""
        found: list[Report] = []
        lies: dict[Lie, list[str]] = defaultdict(list)
        for report in reports:
            lie = judge(self._seen, host, report)
            if lie is not None:
                lies[lie[0]].append(lie[1])
            elif self._seen.document(host, report.key) is not None:
                found.append(report)
            else:
                self.foreign_reports += 1
        for one, details in lies.items():
            await self._lies.told(host, one, details[-1], times=len(details))
        return found

    def _is_gone(self, host: HostId, report: Report) -> bool:
        document = self._seen.document(host, report.key)
        return document is not None and document.gone and report.done and report.revision == document.revision

    async def _event(self, host: HostId, message: HostEvent) -> None:
        document = self._seen.document(host, DocKey(message.subject)) if message.subject else None
        subject = self._seen.get(document.owner) if document else self._seen.get(host)
        if message.subject and document is None:
            self.foreign_reports += 1
            if not is_late(self._seen, host, DocKey(message.subject)):
                await self._lies.told(host, "claim", f"an event of {message.subject[:80]}, which is not on it")
        elif not _ACTION.match(message.action):
            await self._lies.told(host, "event", message.action)
        elif subject is not None:
            await self._happened(subject, message.action, message.message[:EVENT_CHARACTERS], actor=host)

    # --- auditing -------------------------------------------------------------------------------------------------

    async def audit(self, host: HostId, request: RequestId) -> tuple[Difference, ...]:
        """Compare what a host should have with what it finds on itself. Raises Temporary where it is not there."""
        row = self._row(host)
        session = self._sessions.get(host)
        if session is None:
            raise Temporary(f"host {row.name} is not connected", fix="try again once it is back: skerry host list")
        raw = await session.call(Survey(), request)
        try:
            found = from_pack(raw, tuple[Found, ...], f"the survey of host {row.name}")
        except Invalid as err:
            await self._lies.told(host, "survey", err.detail)
            raise Temporary(
                f"host {row.name} answered with what is no survey", fix="see the log of its agent; is it one of ours?"
            ) from err
        return compare(self._seen, host, found)

    def plan_repairs(self, host: HostId, differences: Iterable[Difference], request: RequestId) -> Plan:
        """Decide what is done about each difference that an audit found."""
        return plan_repairs(self._seen, host, differences, request)

    # --- small things ---------------------------------------------------------------------------------------------

    def _row(self, host: HostId) -> AnyResource:
        row = self._seen.get(host)
        if row is None or row.deleted_at is not None:
            raise NotFound(f"host {host} is not known here: it was deleted", fix=_NEW_TOKEN)
        return row

    async def _about(self, host: HostId, what: str, message: str) -> None:
        if row := self._seen.get(host):
            await self._happened(row, what, message)

    async def _happened(
        self, row: AnyResource, what: str, message: str, *writes: AnyWrite, actor: str = "skerry"
    ) -> None:
        await self._store.append(
            Event(
                seq=0,
                at=self._clock(),
                actor=actor,
                request=RequestId(""),
                action=f"{row.kind}.{what}",
                kind=row.kind,
                resource=row.id,
                project=row.project,
                name=row.name,
                message=message,
                before=b"",
                after=b"",
            ),
            *writes,
        )


def _given(signed: Signed) -> Given:
    return Given(serial=signed.serial, expires_at=signed.expires_at, authority=signed.authority, trusts=signed.trusts)


_NEW_TOKEN = "ask an operator for a new one: skerry host token NAME"  # noqa: S105 - advice, no secret


def _desired(document: Document) -> Desired:
    return Desired(
        key=document.key,
        revision=document.revision,
        doc=document.doc,
        gone=document.gone,
        request=document.request,
    )
