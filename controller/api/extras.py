"""The routes that are neither CRUD nor a verb: which handler serves which extra of which kind."""

import asyncio
from typing import Any

from aiohttp import web

from common.errors import Conflict, Temporary
from common.ids import HostId
from common.kinds import KINDS
from common.kinds.domain import DOMAIN
from common.kinds.host import HOST
from common.kinds.kind import WHY, AnyKind, AnyResource
from common.kinds.project import PROJECT
from common.kinds.vm import VM
from common.protocol import AttachConsole, ReadSerialLog
from controller.api.body import refuse_body
from controller.api.call import Call, Contexts, Door, Handler
from controller.api.commit import MUTATION_PARAMETERS, Committer
from controller.api.console import bridge, require_upgrade
from controller.api.history import Histories
from controller.api.login import Sessions
from controller.api.ports import Fleet, Session, Store
from controller.api.query import integer, refuse_unknown
from controller.api.quotas import Quotas
from controller.api.render import answer
from controller.api.resources import Resources, found, own
from controller.api.upload import Upload
from controller.api.waiting import Waiting
from controller.api.why import EVENTS, explain
from controller.kinds import admission
from controller.kinds.admission import Admission
from controller.store.rows import EventQuery

CALL_LIMIT_S = 30.0
AUDIT_LIMIT_S = 60.0
LOG_DEFAULT_BYTES, LOG_MOST_BYTES = 64 * 1024, 1024 * 1024

EXPLAINED = tuple(kind for kind in KINDS if WHY in kind.extras)

OF_A_HOST = frozenset(
    {("host", "audit"), ("host", "repair"), ("vm", "console"), ("vm", "log")}
    | {(kind.name, WHY.name) for kind in EXPLAINED}
)
"""What only the controller that has the host's link can answer."""

REPAIR_PARAMETERS = {"plan": "carry out only this plan, as a dry run named it; 409 where it is another by now"}
LOG_PARAMETERS = {"tail_bytes": f"how much of its end, 1 to {LOG_MOST_BYTES}"}


def extras(
    resources: Resources,
    hosts: "HostExtras",
    upload: Upload,
    vms: "VmExtras",
    histories: Histories,
    *,
    reasons: "Reasons",
    quotas: Quotas,
    sessions: Sessions,
) -> dict[tuple[str, str], Handler]:
    """Return the handler of every extra, by kind and name. A gate test fails where a kind's extra has none."""

    async def token(call: Call) -> web.StreamResponse:
        return await resources.reissue(HOST, call)

    return {
        ("domain", "quota"): quotas.of(DOMAIN),
        ("project", "quota"): quotas.of(PROJECT),
        ("host", "token"): token,
        ("host", "audit"): hosts.audit,
        ("host", "metrics"): histories.of(HOST),
        ("host", "repair"): hosts.repair,
        ("image", "content"): upload.receive,
        ("user", "password"): sessions.password,
        ("vm", "console"): vms.console,
        ("vm", "log"): vms.log,
        ("vm", "metrics"): histories.of(VM),
        **{(kind.name, WHY.name): reasons.of(kind) for kind in EXPLAINED},
    }


class HostExtras:
    """What is asked of a host as a whole."""

    def __init__(self, store: Store, fleet: Fleet, contexts: Contexts, committer: Committer) -> None:
        self._store = store
        self._fleet = fleet
        self._contexts = contexts
        self._committer = committer

    async def audit(self, call: Call) -> web.Response:
        """Answer every difference between wish and reality. It shows all projects' things: for the system project."""
        refuse_unknown(call.request.query, ())
        row = found(self._store.seen, call, HOST)
        differences = await self._differences(call, row)
        return answer({"host": row.name, "clean": not differences, "items": differences})

    async def repair(self, call: Call) -> web.Response:
        """Repair what an audit finds now: that very plan, where the caller names one that it was shown."""
        query = call.request.query
        refuse_unknown(query, (*REPAIR_PARAMETERS, *MUTATION_PARAMETERS))
        await refuse_body(call.request)
        row = found(self._store.seen, call, HOST)
        differences = await self._differences(call, row)
        plan = self._fleet.plan_repairs(HostId(row.id), differences, call.caller.request)
        if (shown := query.get("plan")) is not None and shown != plan.digest:
            raise Conflict(
                f"host {row.name} differs in other ways than when plan {shown[:40]} was made",
                fix="look at the plan again (dry_run=true), then send its new name",
            )
        said = f"{len(plan.repairs)} differences, {len(plan.writes)} repairs"

        def make() -> Admission:
            fresh = found(self._store.seen, call, HOST)
            return admission.repair(self._contexts.of(call.caller), fresh, plan.writes, said)

        return await self._committer.answer(call, make, {"repairs": plan.repairs, "plan": plan.digest})

    async def _differences(self, call: Call, row: AnyResource) -> tuple[Any, ...]:
        try:
            async with asyncio.timeout(AUDIT_LIMIT_S):
                return await self._fleet.audit(HostId(row.id), call.caller.request)
        except TimeoutError as err:
            raise Temporary(f"host {row.name} gave no audit in {AUDIT_LIMIT_S:g} s", fix="try again") from err


class Reasons:
    """Why things are not as wished."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, kind: AnyKind) -> Handler:
        """Return the handler that explains things of a kind."""

        async def handler(call: Call) -> web.Response:
            refuse_unknown(call.request.query, ())
            row = found(self._store.seen, call, kind)
            events = await self._store.events(0, EVENTS, EventQuery(resource=row.id), newest=True)
            return answer(explain(self._store.seen.get(row.id) or row, self._store.seen, call.caller, events))

        return handler


class VmExtras:
    """What is asked of a machine on its host."""

    def __init__(self, store: Store, fleet: Fleet, door: Door, waiting: Waiting) -> None:
        self._store = store
        self._fleet = fleet
        self._door = door
        self._waiting = waiting

    async def console(self, call: Call) -> web.StreamResponse:
        """Attach to the serial console."""
        refuse_unknown(call.request.query, ())
        require_upgrade(call.request)
        row = own(self._store.seen, call, VM)
        session = self._session(row)
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                stream = await session.open_stream(AttachConsole(vm=row.id, stream=0), call.caller.request)
        except TimeoutError as err:
            raise self._silent(row) from err
        return await bridge(call, row, self._door, self._waiting, stream)

    async def log(self, call: Call) -> web.Response:
        """Answer the end of the serial log."""
        refuse_unknown(call.request.query, LOG_PARAMETERS)
        tail = integer(call.request.query, "tail_bytes", LOG_DEFAULT_BYTES, 1, LOG_MOST_BYTES)
        row = found(self._store.seen, call, VM)
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                raw = await self._session(row).call(ReadSerialLog(vm=row.id, tail_bytes=tail), call.caller.request)
        except TimeoutError as err:
            raise self._silent(row) from err
        return web.Response(body=raw, content_type="text/plain", charset="utf-8")

    def _session(self, row: AnyResource) -> Session:
        placement = self._store.seen.placement(row.id)
        if placement is None:
            raise Conflict(f"vm {row.name} is on no host yet", fix=f"see why: skerry why vm {row.name}")
        session = self._fleet.session(placement.host)
        if session is None:
            raise Temporary(
                f"host {self._store.seen.name_of(placement.host)}, where vm {row.name} is, is not connected",
                fix="try again when it is back; the machine itself may run on",
            )
        return session

    def _silent(self, row: AnyResource) -> Temporary:
        return Temporary(f"the host of vm {row.name} gave no answer in {CALL_LIMIT_S:g} s", fix="try again")
