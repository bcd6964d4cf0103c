"""The routes that are neither CRUD nor a verb: which handler serves which extra of which kind."""

import asyncio

from aiohttp import web

from common.errors import Conflict, Denied, Temporary
from common.ids import HostId
from common.kinds.host import HOST
from common.kinds.kind import SYSTEM_PROJECT, AnyResource
from common.kinds.vm import VM
from common.protocol import AttachConsole, ReadSerialLog
from controller.api.call import Call, Door, Handler
from controller.api.console import bridge, require_upgrade
from controller.api.ports import Fleet, Session, Store
from controller.api.query import integer, refuse_unknown
from controller.api.render import answer
from controller.api.resources import Resources, found, own
from controller.api.upload import Upload
from controller.api.waiting import Waiting
from controller.api.why import EVENTS, explain
from controller.store.rows import EventQuery

CALL_LIMIT_S = 30.0
AUDIT_LIMIT_S = 60.0
LOG_DEFAULT_BYTES, LOG_MOST_BYTES = 64 * 1024, 1024 * 1024

OF_A_HOST = frozenset({("host", "audit"), ("vm", "console"), ("vm", "log"), ("vm", "why")})
"""What only the controller that has the host's link can answer."""

LOG_PARAMETERS = {"tail_bytes": f"how much of its end, 1 to {LOG_MOST_BYTES}"}


def extras(
    resources: Resources, hosts: "HostExtras", upload: Upload, vms: "VmExtras"
) -> dict[tuple[str, str], Handler]:
    """Return the handler of every extra, by kind and name. A gate test fails where a kind's extra has none."""

    async def token(call: Call) -> web.StreamResponse:
        return await resources.reissue(HOST, call)

    return {
        ("host", "token"): token,
        ("host", "audit"): hosts.audit,
        ("image", "content"): upload.receive,
        ("vm", "console"): vms.console,
        ("vm", "log"): vms.log,
        ("vm", "why"): vms.why,
    }


class HostExtras:
    """What is asked of a host as a whole."""

    def __init__(self, store: Store, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet

    async def audit(self, call: Call) -> web.Response:
        """Answer every difference between wish and reality. It shows all projects' things: for the system project."""
        refuse_unknown(call.request.query, ())
        if call.caller.project != SYSTEM_PROJECT:
            raise Denied(
                f"{call.caller.actor} can't audit a host: it shows what every project has there",
                fix=f"use a token of project {SYSTEM_PROJECT}",
            )
        row = found(self._store.seen, call.caller, HOST, "", call.name)
        try:
            async with asyncio.timeout(AUDIT_LIMIT_S):
                differences = await self._fleet.audit(HostId(row.id), call.caller.request)
        except TimeoutError as err:
            raise Temporary(f"host {row.name} gave no audit in {AUDIT_LIMIT_S:g} s", fix="try again") from err
        return answer({"host": row.name, "clean": not differences, "items": differences})


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
        row = own(self._store.seen, call.caller, VM, call.project, call.name)
        session = self._session(row)
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                stream = await session.open_stream(AttachConsole(vm=row.id, stream=0), call.caller.request)
        except TimeoutError as err:
            raise self._silent(row) from err
        return await bridge(call, self._door, self._waiting, stream)

    async def log(self, call: Call) -> web.Response:
        """Answer the end of the serial log."""
        refuse_unknown(call.request.query, LOG_PARAMETERS)
        tail = integer(call.request.query, "tail_bytes", LOG_DEFAULT_BYTES, 1, LOG_MOST_BYTES)
        row = found(self._store.seen, call.caller, VM, call.project, call.name)
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                raw = await self._session(row).call(ReadSerialLog(vm=row.id, tail_bytes=tail), call.caller.request)
        except TimeoutError as err:
            raise self._silent(row) from err
        return web.Response(body=raw, content_type="text/plain", charset="utf-8")

    async def why(self, call: Call) -> web.Response:
        """Answer why it is not as wished."""
        refuse_unknown(call.request.query, ())
        row = found(self._store.seen, call.caller, VM, call.project, call.name)
        events = await self._store.events(0, EVENTS, EventQuery(resource=row.id), newest=True)
        return answer(explain(self._store.seen.get(row.id) or row, self._store.seen, call.caller, events))

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
