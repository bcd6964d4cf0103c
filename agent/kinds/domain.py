"""Domains as units: machines in libvirt, their serial logs, NoCloud disks, and what their TPMs hold."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from agent.drivers import files, machine, nocloud
from agent.drivers.hypervisor import Cause, Hypervisor, LiveDomain, Sharing
from agent.drivers.images import ImageCache
from agent.drivers.place import Place
from agent.drivers.pool import Pool
from agent.drivers.tpms import Tpms
from agent.kinds import first_boot
from agent.kinds.balloon import HostMemory
from agent.kinds.domain_disks import AttachDisk, DataView, DetachDisk, Tried, lacking
from agent.kinds.domain_growth import AddCpus, AddMemory, Refused
from agent.kinds.domain_plan import (
    CRASH_WINDOW_S,
    BuildSeed,
    Define,
    Destroy,
    DomainStep,
    DomainView,
    PressPowerButton,
    RemoveFiles,
    RenewTpm,
    Resume,
    SetMemory,
    Share,
    Stamp,
    Start,
    Undefine,
    plan,
)
from agent.kinds.first_boot import Sight
from agent.kinds.unit import Do, Mark, Settled, Wait, Wish
from common import names
from common.boots import FirstBoot
from common.clock import Clock
from common.documents import DomainDoc
from common.errors import Invalid, Temporary
from common.faults import Faults
from common.ids import Id
from common.protocol import Found, HostEvent

_STEP_NAMES: dict[type, str] = {
    Define: "define",
    Start: "start",
    Resume: "resume",
    PressPowerButton: "press-power-button",
    Destroy: "destroy",
    Undefine: "undefine",
    Stamp: "stamp",
    BuildSeed: "build-seed",
    RemoveFiles: "remove-files",
    Share: "share",
    SetMemory: "set-memory",
    AttachDisk: "attach-disk",
    DetachDisk: "detach-disk",
    AddCpus: "add-cpus",
    AddMemory: "add-memory",
    RenewTpm: "renew-tpm",
}

_ENDS: dict[Cause, str] = {
    "crashed": "the machine crashed",
    "destroyed": "the machine was cut off from outside Skerry",
    "host": "QEMU was told to end from outside Skerry",
}


Watch = Callable[[DomainDoc, LiveDomain, FirstBoot | None], Awaitable[Sight | None]]
"""Looks at a machine on its way up, of which so much is known."""


def link_exists(name: str) -> bool:
    """Say whether the agent's network namespace has a device of this name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


async def unwatched(_doc: DomainDoc, _domain: LiveDomain, _before: FirstBoot | None) -> None:
    """Nobody looks at machines on their way up."""


def host_memory() -> HostMemory:
    """Return how much memory this host has, and has left."""
    return HostMemory(total_mib=machine.memory_mib(), available_mib=machine.available_mib())


class Domains:
    """The unit kind `domain`. `announce` is told when a machine is started again that had ended unasked.

    What it remembers (when the power button was pressed, the last starts) only spaces out repetitions: it may be lost.
    """

    name = "domain"

    def __init__(
        self,
        place: Place,
        pool: Pool,
        images: ImageCache,
        hypervisor: Hypervisor,
        tpms: Tpms,
        *,
        announce: Callable[[HostEvent], None],
        clock: Clock,
        faults: Faults,
        link_exists: Callable[[str], bool] = link_exists,
        watch: Watch = unwatched,
        host_memory: Callable[[], HostMemory] = host_memory,
    ) -> None:
        self._watch = watch
        self._place, self._pool, self._images, self._hypervisor = place, pool, images, hypervisor
        self._announce, self._clock, self._faults = announce, clock, faults
        self._link_exists = link_exists
        self._host_memory = host_memory
        self._tpms = tpms
        self._pressed: dict[Id, float] = {}
        self._starts: dict[Id, tuple[float, ...]] = {}
        self._unshared: dict[Id, str] = {}
        self._ballooned: dict[Id, float] = {}
        self._tried: dict[Id, dict[Id, Tried]] = {}
        self._ungrown: dict[Id, Refused] = {}

    async def observe(self, wish: Wish) -> DomainView:
        """Look at the domain, and at what it needs: disks, bridges, kernel, NoCloud disk."""
        (item,) = wish.items.values()
        doc = item.doc
        assert isinstance(doc, DomainDoc)
        domain = await self._hypervisor.look(doc.id)
        if domain is None or domain.activity == "off":
            for memory in (self._pressed, self._unshared, self._ballooned, self._tried, self._ungrown):
                memory.pop(doc.id, None)
        sight = None
        if domain is not None and first_boot.is_watched(doc, domain, wish.marks, self._clock()):
            sight = await self._watch(doc, domain, first_boot.known(wish.marks))
        lends = domain is not None and domain.activity == "running" and self._may_lend(doc, domain)
        paused = domain is not None and domain.activity == "paused"
        return DomainView(
            place=self._place,
            domain=domain,
            missing_volumes=tuple([v for v in doc.volumes if not await self._pool.is_ready(v, 0)]),
            missing_networks=tuple(n.network for n in doc.nics if not self._link_exists(names.bridge(n.network))),
            boot=self._images.boot_files(doc.kernel) if doc.kernel is not None else None,
            seed_wanted=nocloud.digest(doc.metadata) if doc.nocloud else "",
            seed_found=nocloud.found_digest(self._place.seed_file(doc.id)) if doc.nocloud else "",
            files=bool(self._files(doc.id)) if item.gone else True,
            pool_free_bytes=await self._pool_free_bytes() if paused else 0,
            pressed_at=self._pressed.get(doc.id),
            starts=self._starts.get(doc.id, ()),
            first_boot=sight,
            unshared=self._unshared.get(doc.id, ""),
            host_memory=self._host_memory() if lends else None,
            unused_mib=await self._hypervisor.unused_mib(doc.id) if lends else None,
            ballooned_at=self._ballooned.get(doc.id),
            data=await self._look_at_data(doc, domain),
            ungrown=self._ungrown.get(doc.id),
            tpm_disk=self._tpms.disk_of(doc.id) if doc.tpm else None,
        )

    async def _look_at_data(self, doc: DomainDoc, domain: LiveDomain | None) -> DataView:
        """Look at the data volumes that it is to have and has not: whether they are there, and free."""
        if domain is not None and domain.activity != "off":
            wanted = lacking(doc, domain)
        else:
            wanted = tuple(one.volume for one in doc.data) if doc.power == "running" else ()
        reverts = {one.volume: one.reverts for one in doc.data}
        missing = tuple([one for one in wanted if not await self._pool.is_ready(one, reverts[one])])
        held = {}
        for one in set(wanted) - set(missing):
            for user in await self._hypervisor.users_of(self._place.disk(one).path):
                if user.active and user.name != names.domain_name(doc.id):
                    held[one] = user.name
        return DataView(missing=missing, held=held, tried=dict(self._tried.get(doc.id, {})))

    async def _pool_free_bytes(self) -> int:
        use = await self._pool.use()
        return use.size_bytes - use.used_bytes

    def _may_lend(self, doc: DomainDoc, domain: LiveDomain) -> bool:
        return doc.memory_min_mib is not None or domain.balloon_mib < domain.memory_mib

    def plan(self, wish: Wish, seen: DomainView, now: float) -> Do[DomainStep] | Mark | Wait | Settled:
        """Decide the next step: see `agent.kinds.domain_plan`."""
        return plan(wish, seen, now)

    async def apply(self, step: DomainStep) -> None:  # noqa: PLR0912 - a table of the union's members
        """Carry out one step."""
        point = f"domain.{_STEP_NAMES[type(step)]}"
        self._faults.reached(point)
        match step:
            case Define(vm=vm, xml=xml):
                await self._hypervisor.define(vm, xml)
            case Start(vm=vm, revives=revives):
                await self._start(vm, revives)
            case Resume(vm=vm):
                await self._hypervisor.resume(vm)
            case PressPowerButton(vm=vm):
                await self._hypervisor.press_power_button(vm)
                self._pressed[vm] = self._clock()
            case Destroy(vm=vm):
                await self._hypervisor.destroy(vm)
            case Undefine(vm=vm):
                await self._hypervisor.undefine(vm)
            case Stamp(vm=vm, metadata=metadata):
                await self._hypervisor.stamp(vm, metadata)
            case BuildSeed(vm=vm, metadata=metadata):
                await nocloud.make_seed(self._place.seed_file(vm), metadata)
            case RemoveFiles(vm=vm):
                await asyncio.to_thread(self._remove_files, vm)
                self._starts.pop(vm, None)
            case Share(vm=vm, sharing=sharing):
                await self._share(vm, sharing)
            case SetMemory(vm=vm, memory_mib=memory_mib):
                await self._hypervisor.set_memory(vm, memory_mib)
                self._ballooned[vm] = self._clock()
            case AttachDisk(vm=vm, volume=volume, xml=xml):
                await self._try_disk(vm, volume, self._hypervisor.attach_disk(vm, xml))
            case DetachDisk(vm=vm, volume=volume, target=target):
                await self._try_disk(vm, volume, self._hypervisor.detach_disk(vm, target))
            case AddCpus(vm=vm, vcpus=vcpus):
                await self._grow(vm, self._hypervisor.add_cpus(vm, vcpus))
            case AddMemory(vm=vm, memory_mib=memory_mib):
                await self._grow(vm, self._hypervisor.add_memory(vm, memory_mib))
            case RenewTpm(vm=vm, disk=disk):
                await asyncio.to_thread(self._tpms.renew, vm, disk)
        self._faults.reached(f"{point}.done")

    async def _share(self, vm: Id, sharing: Sharing) -> None:
        """Try. Where the host can't, the machine runs on without, and says so."""
        try:
            await self._hypervisor.share(vm, sharing)
        except Temporary as err:
            self._unshared[vm] = err.detail

    async def _grow(self, vm: Id, attempt: Awaitable[None]) -> None:
        """Try. Where it can't be done, the machine runs on as it is, and says so."""
        self._ungrown.pop(vm, None)
        try:
            await attempt
        except (Temporary, Invalid) as err:
            self._ungrown[vm] = Refused(at=self._clock(), said=err.detail)

    async def _try_disk(self, vm: Id, volume: Id, attempt: Awaitable[None]) -> None:
        """Try. Where it can't be done, the machine runs on as it is, and says so."""
        said = ""
        try:
            await attempt
        except Temporary as err:
            said = err.detail
        self._tried.setdefault(vm, {})[volume] = Tried(at=self._clock(), said=said)

    async def _start(self, vm: Id, revives: Cause) -> None:
        now = self._clock()
        recent = tuple(at for at in self._starts.get(vm, ()) if now - at < CRASH_WINDOW_S)
        self._starts[vm] = (*recent[-15:], now)
        await self._hypervisor.start(vm)
        if revives:
            message = f"{_ENDS.get(revives, 'the machine had ended')}; it was started again"
            self._announce(HostEvent(at=now, subject=f"domain/{vm}", action="domain.revived", message=message))

    def _files(self, vm: Id) -> tuple[Path, ...]:
        log = self._place.serial_log(vm)
        logs = (path for path in (log, *(log.with_name(f"{log.name}.{i}") for i in range(10))) if path.exists())
        voucher = self._place.voucher_file(vm)
        vouchers = (voucher,) if voucher.exists() else ()
        return (*logs, *vouchers, *self._tpms.left_of(vm), *nocloud.leftovers(self._place.seed_file(vm)))

    def _remove_files(self, vm: Id) -> None:
        for path in self._files(vm):
            files.remove(path)

    async def survey(self) -> tuple[Found, ...]:
        """List every domain, and the files of machines."""
        domains = await self._hypervisor.list_domains()
        found = [
            Found(
                what="domain",
                name=domain.name,
                owner=Id(domain.owner) if domain.owner else names.owner_of(domain.name),
                detail="running" if domain.active else "off",
            )
            for domain in domains
        ]
        return (*found, *await asyncio.to_thread(lambda: tuple(self._found_files())))

    def _found_files(self) -> Iterator[Found]:
        place = self._place
        for directory, form, detail in (
            (place.logs, "*", "serial log"),
            (place.seeds, "*", "NoCloud disk"),
            (place.vouchers, "vm-*", "voucher"),
        ):
            for path in sorted(directory.glob(form)):
                yield Found(what="file", name=path.name, owner=files.owner(path), detail=detail)
        yield from self._tpms.survey()
