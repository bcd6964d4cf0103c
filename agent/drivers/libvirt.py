"""libvirt: the only module that imports it. Connections with one thread each, and events brought to the loop.

A connection is used by one thread, its lane. Lanes take jobs from a queue, so that a slow start does not hold up
others: one set of lanes looks, another acts. A lane opens its connection when it needs one and again when libvirtd
was restarted; a call that does not come back in time costs its lane, which is replaced.
"""

import asyncio
import contextlib
import functools
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import libvirt_qemu
import structlog

from agent.drivers import cpu_models, figures, firmware, live_disks, live_room, runs
from agent.drivers.hypervisor import (
    NAMESPACE,
    Activity,
    Cause,
    DomainUsage,
    ListedDomain,
    LiveDomain,
    Sharing,
    Virtualisation,
)
from agent.drivers.lanes import Connection, Lanes, Source
from agent.drivers.live_room import Most
from common import ids, names
from common.errors import Invalid, NotFound, SkerryError, Temporary
from common.firmware import TPM
from common.ids import Id
from common.protocol import GuestCpus

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOOK_TIMEOUT_S = 20.0
ACT_TIMEOUT_S = 120.0

_METADATA = libvirt.VIR_DOMAIN_METADATA_ELEMENT
_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)

_OFF: dict[int, Cause] = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "guest",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "destroyed",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: "crashed",
}
_PAUSED: dict[int, Cause] = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "io-error",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "busy",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "busy",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "busy",
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: "busy",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "busy",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "busy",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "busy",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: "busy",
}
_INVALID = {
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
}


@functools.cache
def _start_events() -> None:
    """Run libvirt's event loop in a daemon thread: once a process, before the first connection is opened."""
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(_log_error, None)

    def turn() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except libvirt.libvirtError as err:
                log.warning("libvirt's event loop stumbled", error=str(err))

    threading.Thread(target=turn, name="libvirt-events", daemon=True).start()


def _log_error(_context: None, error: tuple[Any, ...]) -> None:
    """Keep libvirt from printing to standard error: each error is raised as well."""
    log.debug("libvirt says", code=error[0], message=error[2])


def translated(err: Any) -> SkerryError:
    """Turn a libvirt error into ours."""
    code, message = err.get_error_code(), f"libvirt: {err.get_error_message() or err}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFound(message)
    if code in _INVALID:
        return Invalid(message)
    return Temporary(message)


class Libvirt:
    """The hypervisor of this host (see `agent.drivers.hypervisor.Hypervisor` for what each verb promises).

    Use it as an async context manager, and let `watch` run beside it: `on_event` is called on the loop for each
    lifecycle event of a VM, `on_connected` whenever events flow (again), since some may have been missed.
    """

    def __init__(
        self,
        uri: str,
        *,
        run_dir: Path = runs.RUN_DIR,
        lib_dir: Path = runs.LIB_DIR,
        on_event: Callable[[Id], None],
        on_connected: Callable[[], None],
        actors: int = 4,
    ) -> None:
        self._uri = uri
        self._run_dir = run_dir
        self._lib_dir = lib_dir
        self._on_event, self._on_connected = on_event, on_connected
        source = Source(open=self._connect, error=libvirt.libvirtError, translated=translated)
        self._look = Lanes("look", source, 1)
        self._act = Lanes("act", source, actors)
        self._shut_by_host: set[str] = set()

    def _connect(self) -> Connection:
        connection = libvirt.open(self._uri)
        connection.setKeepAlive(5, 3)
        return connection

    async def __aenter__(self) -> "Libvirt":
        _start_events()
        self._look.open()
        self._act.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._look.close()
        self._act.close()

    # --- looking --------------------------------------------------------------------------------------------------

    async def look(self, vm: Id) -> LiveDomain | None:
        """Return the VM's domain, None where there is none."""

        def work(connection: Connection) -> LiveDomain | None:
            try:
                domain = connection.lookupByUUIDString(names.domain_uuid(vm))
                return self._seen(vm, domain)
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        return await self._look.call(work, f"looking at {vm}", LOOK_TIMEOUT_S)

    def _seen(self, vm: Id, domain: Any) -> LiveDomain:
        state, reason = domain.state()
        activity, cause = _activity(state, reason)
        if cause == "guest" and vm in self._shut_by_host:
            cause = "host"
        written = _metadata(domain)
        off = activity == "off"
        _, most_kib, has_kib, vcpus, _ = (0, 0, 0, 0, 0) if off else domain.info()
        sharing, lacks = (None, "") if off else _sharing(domain)
        described = "" if off else domain.XMLDesc()
        return LiveDomain(
            vm=vm,
            activity=activity,
            cause=cause,
            start_generation=figures.number(written, "start_generation"),
            boot_generation=figures.number(written, "boot_generation"),
            shape=written.get("shape", ""),
            started_at=runs.started_at(self._run_dir, vm) if activity != "off" else 0,
            vcpus=vcpus,
            memory_mib=most_kib // 1024,
            balloon_mib=has_kib // 1024,
            sharing=sharing,
            sharing_lacks=lacks,
            most=Most(0, 0, 0) if off else live_room.most(described),
            disks=() if off else live_disks.volumes(described),
            started=firmware.Started("", tpm=False) if off else firmware.started(described),
        )

    async def guest_cpu(self, virtualisation: Virtualisation) -> GuestCpus:
        """Return what guests can be given of a CPU here, and take to other hosts of the same vendor."""
        flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES | libvirt.VIR_CONNECT_BASELINE_CPU_MIGRATABLE

        def work(connection: Connection) -> GuestCpus:
            where = (None, cpu_models.ARCH, cpu_models.MACHINE, cpu_models.TYPES[virtualisation])
            host = cpu_models.host_model(connection.getDomainCapabilities(*where))
            return cpu_models.guest_cpus(host, connection.baselineHypervisorCPU(*where, [host], flags))

        return await self._look.call(work, "asking what CPUs guests can have", LOOK_TIMEOUT_S)

    async def guest_firmware(self, virtualisation: Virtualisation) -> dict[str, str]:
        """Return of each of `common.firmware.ABILITIES` why guests can't be given it here; empty: they can."""
        domain_type = cpu_models.TYPES[virtualisation]

        def work(connection: Connection) -> dict[str, str]:
            where = (None, cpu_models.ARCH, cpu_models.MACHINE, domain_type)
            emulated = firmware.emulates_tpm(connection.getDomainCapabilities(*where))
            found = {TPM: "" if emulated else "libvirt finds no swtpm"}
            return found | {name: _refusal(connection, one) for name, one in firmware.probes(domain_type).items()}

        return await self._look.call(work, "asking what firmware guests can have", LOOK_TIMEOUT_S)

    async def list_domains(self) -> tuple[ListedDomain, ...]:
        """Return every domain there is."""

        def work(connection: Connection) -> tuple[ListedDomain, ...]:
            return tuple(_listed(domain) for domain in connection.listAllDomains())

        return await self._look.call(work, "listing domains", LOOK_TIMEOUT_S)

    async def users_of(self, path: str) -> tuple[ListedDomain, ...]:
        """Return the domains that have a disk at this path."""

        def work(connection: Connection) -> tuple[ListedDomain, ...]:
            found = []
            for domain in connection.listAllDomains():
                with _vanishing():
                    if live_disks.uses(domain.XMLDesc(), path):
                        found.append(_listed(domain))
            return tuple(found)

        return await self._look.call(work, f"looking for users of {path}", LOOK_TIMEOUT_S)

    async def usage(self) -> tuple[DomainUsage, ...]:
        """Return the counters of every running domain. Does not wait for domains that are busy."""
        wanted = (
            libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
            | libvirt.VIR_DOMAIN_STATS_BALLOON
            | libvirt.VIR_DOMAIN_STATS_BLOCK
            | libvirt.VIR_DOMAIN_STATS_INTERFACE
        )
        which = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT

        def work(connection: Connection) -> tuple[DomainUsage, ...]:
            return tuple(
                figures.usage(domain.name(), stats) for domain, stats in connection.getAllDomainStats(wanted, which)
            )

        return await self._look.call(work, "reading all domains' counters", LOOK_TIMEOUT_S)

    async def console_pty(self, vm: Id) -> str:
        """Return the path of the running domain's serial pty."""

        def work(connection: Connection) -> str | None:
            domain = connection.lookupByUUIDString(names.domain_uuid(vm))
            source = ET.fromstring(domain.XMLDesc()).find("devices/serial/source")  # noqa: S314 (libvirt's)
            return source.get("path") if source is not None else None

        path = await self._look.call(work, f"finding the console of {vm}", LOOK_TIMEOUT_S)
        if not path:
            raise NotFound(f"{vm} is not running, so it has no console", fix="start it, or read its log")
        return path

    # --- acting ---------------------------------------------------------------------------------------------------

    async def define(self, vm: Id, xml: str) -> None:
        """Define the domain afresh: an inactive one of before goes first, so that its last end is forgotten."""

        def work(connection: Connection) -> None:
            with _vanishing():
                connection.lookupByUUIDString(names.domain_uuid(vm)).undefineFlags(
                    _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
                )
            connection.defineXML(xml)

        await self._act.call(work, f"defining {vm}", ACT_TIMEOUT_S)

    async def start(self, vm: Id) -> None:
        """Have it running."""

        def start(domain: Any) -> None:
            try:
                domain.create()
            except libvirt.libvirtError:
                if not domain.isActive():
                    raise

        self._shut_by_host.discard(vm)
        await self._on_domain(vm, start, "starting")

    async def resume(self, vm: Id) -> None:
        """Have it run on after a pause."""
        await self._on_domain(vm, lambda domain: domain.resume(), "resuming")

    async def press_power_button(self, vm: Id) -> None:
        """Ask the guest by ACPI to power itself off. Returns at once."""

        def press(domain: Any) -> None:
            try:
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            except libvirt.libvirtError:
                if domain.isActive():
                    raise

        await self._on_domain(vm, press, "asking to power off")

    async def destroy(self, vm: Id) -> None:
        """Have it off, at once."""

        def destroy(domain: Any) -> None:
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if domain.isActive():
                    raise

        with contextlib.suppress(NotFound):
            await self._on_domain(vm, destroy, "cutting the power of")

    async def undefine(self, vm: Id) -> None:
        """Have libvirt forget an inactive domain, and all that it keeps of it, dead runs included."""

        def undefine(domain: Any) -> None:
            runs.remove_dead(self._lib_dir, vm)
            domain.undefineFlags(_UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_TPM)

        with contextlib.suppress(NotFound):
            await self._on_domain(vm, undefine, "removing")
        self._shut_by_host.discard(vm)

    async def stamp(self, vm: Id, metadata: str) -> None:
        """Replace the metadata element, of the live domain and of its definition."""

        def stamp(domain: Any) -> None:
            domain.setMetadata(_METADATA, metadata, "skerry", NAMESPACE, _LIVE | _CONFIG)

        await self._on_domain(vm, stamp, "stamping")

    async def share(self, vm: Id, sharing: Sharing) -> None:
        """Have a running domain share the host's CPUs so."""
        values = figures.scheduler(sharing)
        await self._on_domain(vm, lambda one: one.setSchedulerParametersFlags(values, _LIVE), "sharing CPUs out to")

    async def set_memory(self, vm: Id, memory_mib: int) -> None:
        """Ask a running domain's balloon to leave it so much. Returns at once; the guest takes its time."""
        kib = memory_mib * 1024
        await self._on_domain(vm, lambda domain: domain.setMemoryFlags(kib, _LIVE), "moving the balloon of")

    async def unused_mib(self, vm: Id) -> int | None:
        """Return the memory that a running guest could do without, None where it does not say."""

        def work(connection: Connection) -> int | None:
            stats = connection.lookupByUUIDString(names.domain_uuid(vm)).memoryStats()
            unused = stats.get("usable", stats.get("unused"))
            return None if unused is None else int(unused) // 1024

        return await self._look.call(work, f"asking {vm} for its memory", LOOK_TIMEOUT_S)

    async def grow_disk(self, vm: Id, path: str, size_bytes: int) -> None:
        """Tell a running domain that its disk at `path` has this size now."""
        await self._on_domain(
            vm,
            lambda domain: domain.blockResize(path, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES),
            "growing a disk of",
        )

    async def add_cpus(self, vm: Id, vcpus: int) -> None:
        """Have a running domain, and its definition, have so many vCPUs. Its guest has to take them into use."""
        await self._on_domain(vm, lambda domain: domain.setVcpusFlags(vcpus, _LIVE | _CONFIG), "giving vCPUs to")

    async def add_memory(self, vm: Id, memory_mib: int) -> None:
        """Give a running domain, and its definition, so much more memory. Not to be asked twice: look first."""
        xml = live_room.memory_xml(memory_mib)
        await self._on_domain(vm, lambda domain: domain.attachDeviceFlags(xml, _LIVE | _CONFIG), "giving memory to")

    async def attach_disk(self, vm: Id, xml: str) -> None:
        """Have a running domain, and its definition, have this disk. Not to be asked twice: look first."""
        name = live_disks.target_of(xml)

        def attach(domain: Any) -> None:
            defined = live_disks.at(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), name)
            domain.attachDeviceFlags(xml, _LIVE if defined is not None else _LIVE | _CONFIG)

        await self._on_domain(vm, attach, "attaching a disk to")

    async def detach_disk(self, vm: Id, target: str) -> None:
        """Ask a running domain's guest to let go of a disk, and take it out of its definition."""

        def detach(domain: Any) -> None:
            for flag, where in ((_CONFIG, libvirt.VIR_DOMAIN_XML_INACTIVE), (_LIVE, 0)):
                if (disk := live_disks.at(domain.XMLDesc(where), target)) is not None:
                    domain.detachDeviceFlags(disk, flag)

        await self._on_domain(vm, detach, "detaching a disk of")

    async def snapshot_disk(self, vm: Id, path: str, name: str) -> None:
        """Have a running domain keep what its qcow2 disk at `path` holds now, in that file, under this name."""
        await self._on_domain(
            vm, lambda domain: _on_node(domain, path, "blockdev-snapshot-internal-sync", name), "taking a snapshot in"
        )

    async def drop_disk_snapshot(self, vm: Id, path: str, name: str) -> None:
        """Have a running domain's qcow2 disk at `path` forget what was kept under this name."""
        await self._on_domain(
            vm,
            lambda domain: _on_node(domain, path, "blockdev-snapshot-delete-internal-sync", name),
            "dropping a snapshot in",
        )

    async def _on_domain(self, vm: Id, verb: Callable[[Any], Any], what: str) -> None:
        def work(connection: Connection) -> None:
            verb(connection.lookupByUUIDString(names.domain_uuid(vm)))

        await self._act.call(work, f"{what} {vm}", ACT_TIMEOUT_S)

    # --- events ---------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Bring lifecycle events to the loop, for ever; reconnect when libvirtd goes away."""
        loop, pause = asyncio.get_running_loop(), 0.1
        while True:
            lost = asyncio.Event()
            subscribe = functools.partial(self._subscribe, loop, lost)
            try:
                connection = await self._look.call(subscribe, "subscribing to events", LOOK_TIMEOUT_S)
            except SkerryError as err:
                log.warning("no events from libvirt", error=str(err), again_in_s=pause)
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
                continue
            pause = 0.1
            self._on_connected()
            try:
                await lost.wait()
                log.warning("libvirt closed the connection")
            finally:
                _close(connection)

    def _subscribe(self, loop: asyncio.AbstractEventLoop, lost: asyncio.Event, _: Connection) -> Connection:
        """Open the connection for events. Runs in a lane; the callbacks run in libvirt's event thread."""

        def tell(callback: Callable[..., object], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(callback, *args)

        def lifecycle(_connection: Any, domain: Any, event: int, detail: int, _: None) -> None:
            tell(self._heard, domain.name(), event, detail)

        def removed(_connection: Any, domain: Any, _device: str, _: None) -> None:
            tell(self._let_go, domain.name())

        connection = self._connect()
        connection.registerCloseCallback(lambda *_: tell(lost.set), None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removed, None)
        return connection

    def _let_go(self, name: str) -> None:
        """A guest has let go of a disk."""
        if ids.is_id(name, "vm"):
            self._on_event(Id(name))

    def _heard(self, name: str, event: int, detail: int) -> None:
        if not ids.is_id(name, "vm"):
            return
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self._shut_by_host.discard(name)
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN and detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST:
            # Its state will say SHUTDOWN either way; only this event tells a signal to QEMU from the guest's own wish.
            self._shut_by_host.add(name)
        self._on_event(Id(name))


def _close(connection: Connection) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


@contextlib.contextmanager
def _vanishing() -> Iterator[None]:
    """Let a domain vanish between being listed and being asked."""
    try:
        yield
    except libvirt.libvirtError as err:
        if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _activity(state: int, reason: int) -> tuple[Activity, Cause]:
    match state:
        case libvirt.VIR_DOMAIN_SHUTOFF:
            return "off", _OFF.get(reason, "unknown")
        case libvirt.VIR_DOMAIN_PAUSED:
            return "paused", _PAUSED.get(reason, "user")
        case libvirt.VIR_DOMAIN_PMSUSPENDED:
            return "paused", "busy"  # asleep by its guest's own wish: it wakes by itself
        case _:
            return "running", ""


def _metadata(domain: Any) -> dict[str, str]:
    """Return the attributes of Skerry's element in a domain's metadata, none where it is missing."""
    try:
        text = domain.metadata(_METADATA, NAMESPACE)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return {}
        raise
    return dict(ET.fromstring(text).attrib)  # noqa: S314 (libvirt's)


def _sharing(domain: Any) -> tuple[Sharing | None, str]:
    """Return how a running domain shares CPUs, or why it does not: libvirt has no hold on the kernel's groups here."""
    try:
        return figures.sharing(domain.schedulerParametersFlags(_LIVE)), ""
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return None, str(err.get_error_message() or err)


def _refusal(connection: Connection, probe: str) -> str:
    """Return why libvirt would not start such a domain; empty: it would."""
    try:
        connection.domainXMLToNative("qemu-argv", probe)
    except libvirt.libvirtError as err:
        if err.get_error_domain() == libvirt.VIR_FROM_RPC:
            raise  # nobody answered
        return str(err.get_error_message() or err)
    return ""


def _on_node(domain: Any, path: str, command: str, name: str) -> None:
    """Have QEMU do something to the snapshots inside a disk: libvirt has no verb for one disk alone."""
    node = live_disks.node_of(libvirt_qemu.qemuMonitorCommand(domain, live_disks.QUERY, 0), path)
    if complaint := live_disks.complaint(libvirt_qemu.qemuMonitorCommand(domain, node.order(command, name), 0)):
        raise Temporary(f"QEMU: {command}: {complaint}")


def _listed(domain: Any) -> ListedDomain:
    return ListedDomain(name=domain.name(), owner=_metadata(domain).get("owner", ""), active=bool(domain.isActive()))
