"""The agent's unit kinds over a simulated machine: the real planners, and drivers that behave."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent.drivers import nocloud
from agent.drivers.hypervisor import LiveDomain
from agent.drivers.place import BootFiles
from agent.drivers.place import Place as DomainPlace
from agent.drivers.shown import CachedImage
from agent.kinds import domain_disks, domain_growth, domain_plan, network_plan, volume_plan
from agent.kinds.domain_disks import DataView, Tried
from agent.kinds.domain_plan import DomainView
from agent.kinds.unit import AnyUnitKind, Wish
from agent.kinds.volume_plan import DiskUser, VolumeView
from common import names
from common.clock import Clock
from common.documents import DocKey, DomainDoc, PortDoc, VolumeDoc
from common.errors import Temporary
from common.faults import Faults
from common.ids import HostId, Id
from common.protocol import Found, HostEvent
from sim.machine import Machine

PLACE = DomainPlace(
    volumes=Path("/volumes"),
    images=Path("/images"),
    logs=Path("/logs"),
    seeds=Path("/seeds"),
    variables=Path("/variables"),
    vouchers=Path("/vouchers"),
    virtualisation="tcg",
    direct_io=False,
)


Pause = Callable[[object], Awaitable[None]]
"""Takes the time that a step takes."""


async def at_once(_step: object) -> None:
    """Take no time."""


def _do(machine: Machine, faults: Faults, kind: str, step: object, work: Callable[[], object]) -> None:
    """Carry out a step, with crash points before and after, as the real kinds have them."""
    point = f"{kind}.{type(step).__name__}"
    faults.reached(point)
    machine.hiccup()
    work()
    faults.reached(f"{point}.done")


class SimVolumes:
    """The unit kind `volume`."""

    name = "volume"

    def __init__(self, machine: Machine, faults: Faults, fetch: Callable[[str], bool], pause: Pause) -> None:
        self._machine, self._faults, self._fetch, self._pause = machine, faults, fetch, pause

    async def observe(self, wish: Wish) -> VolumeView:
        """Look at the disk, its image, and who uses it."""
        volume, item = volume_plan.volume_of(wish), volume_plan.own_of(wish)
        doc = item.doc if item is not None else None
        assert doc is None or isinstance(doc, VolumeDoc)
        users = self._machine.guests.users_of(names.volume_file(volume))
        source = doc.snapshot if doc is not None else None
        ready = doc is None or doc.image is None or doc.image.digest in self._machine.images
        return VolumeView(
            held=self._machine.held(volume),
            image=CachedImage(ready=ready),
            users=tuple(DiskUser(name=user.name, active=user.active) for user in users),
            source=source is not None and self._machine.snapshots.get(source.id) == source.volume,
        )

    def plan(self, wish: Wish, seen: VolumeView, now: float) -> Any:
        """Decide, as the agent does."""
        return volume_plan.plan(wish, seen, now)

    async def apply(self, step: volume_plan.VolumeStep) -> None:
        """Carry out one step."""
        await self._pause(step)
        _do(self._machine, self._faults, self.name, step, lambda: self._apply(step))

    def _apply(self, step: volume_plan.VolumeStep) -> None:
        match step:
            case volume_plan.FetchImage(image=image):
                if not self._fetch(image.digest):
                    raise Temporary(f"image {image.digest[:19]} can't be fetched: no controller")
                self._machine.need_room()
                self._machine.images.add(image.digest)
            case volume_plan.MakeDisk():
                self._machine.make_disk(step.volume, step.size_gib, step.over, self._faults.reached)
            case volume_plan.GrowDisk():
                self._machine.grow_disk(step.volume, step.size_gib)
            case volume_plan.RemoveDisk():
                self._machine.remove_disk(step.volume, self._faults.reached)
            case volume_plan.TakeSnapshot():
                self._machine.take_snapshot(step.volume, step.snapshot)
            case volume_plan.DropSnapshot():
                self._machine.drop_snapshot(step.snapshot)
            case volume_plan.RevertDisk():
                self._machine.revert(step.volume, step.snapshot, step.number, self._faults.reached)

    async def survey(self) -> tuple[Found, ...]:
        """List every file in the pool."""
        owners = [names.owner_of(name) for name in sorted(self._machine.disks)]
        disks = [Found(what="disk", name=owner, owner=owner) for owner in owners if owner]
        disks += [
            Found(what="snapshot", name=one, owner=one, detail=its)
            for one, its in sorted(self._machine.snapshots.items())
        ]
        left = sorted(self._machine.parts | self._machine.guests.variables)
        parts = [Found(what="file", name=name, owner=names.owner_of(name)) for name in left]
        return (*disks, *parts)


class SimDomains:
    """The unit kind `domain`. What it remembers of presses and starts dies with the agent."""

    name = "domain"

    def __init__(
        self, machine: Machine, faults: Faults, clock: Clock, announce: Callable[[HostEvent], None], pause: Pause
    ) -> None:
        self._machine, self._faults, self._clock, self._announce = machine, faults, clock, announce
        self._pause = pause
        self._pressed: dict[Id, float] = {}
        self._starts: dict[Id, tuple[float, ...]] = {}
        self._tried: dict[Id, dict[Id, Tried]] = {}

    async def observe(self, wish: Wish) -> DomainView:
        """Look at the domain and at what it needs."""
        doc = _only(wish)
        assert isinstance(doc, DomainDoc)
        machine = self._machine
        domain = machine.guests.look(doc.id)
        if domain is None or domain.activity == "off":
            self._pressed.pop(doc.id, None)
        kernel = doc.kernel is not None and doc.kernel.digest in machine.images
        return DomainView(
            place=PLACE,
            domain=domain,
            missing_volumes=tuple(v for v in doc.volumes if not machine.has_disk(names.volume_file(v))),
            missing_networks=tuple(
                n.network for n in doc.nics if not machine.kernel.has_bridge(names.bridge(n.network))
            ),
            boot=BootFiles(kernel="/k", initrd="/i", cmdline="") if kernel else None,
            seed_wanted=nocloud.digest(doc.metadata) if doc.nocloud else "",
            seed_found=machine.seeds.get(doc.id, "") if doc.nocloud else "",
            files=f"{doc.id}.log" in machine.guests.logs or doc.id in machine.seeds or doc.id in machine.guests.tpms,
            pool_free_bytes=1 << 40,
            pressed_at=self._pressed.get(doc.id),
            starts=self._starts.get(doc.id, ()),
            data=self._data(doc, domain),
            tpm_disk=machine.guests.tpms.get(doc.id) if doc.tpm else None,
        )

    def _data(self, doc: DomainDoc, domain: LiveDomain | None) -> DataView:
        machine, on = self._machine, domain is not None and domain.activity != "off"
        has = {disk.volume for disk in domain.disks} if domain else set()
        wanted = [one for one in doc.data if one.volume not in has] if on or doc.power == "running" else []
        held = {
            one.volume: user.name
            for one in wanted
            for user in machine.guests.users_of(names.volume_file(one.volume))
            if user.active and user.name != doc.id
        }
        missing = tuple(one.volume for one in wanted if not machine.is_ready(one.volume, one.reverts))
        if not on:
            self._tried.pop(doc.id, None)
        return DataView(missing=missing, held=held, tried=dict(self._tried.get(doc.id, {})))

    def plan(self, wish: Wish, seen: DomainView, now: float) -> Any:
        """Decide, as the agent does."""
        return domain_plan.plan(wish, seen, now)

    async def apply(self, step: domain_plan.DomainStep) -> None:
        """Carry out one step."""
        await self._pause(step)
        _do(self._machine, self._faults, self.name, step, lambda: self._apply(step))

    def _apply(self, step: domain_plan.DomainStep) -> None:  # noqa: PLR0912 - a table of the union's members
        guests = self._machine.guests
        match step:
            case domain_plan.Define():
                guests.define(step.vm, step.xml)
            case domain_plan.Start():
                recent = tuple(at for at in self._starts.get(step.vm, ()) if self._clock() - at < 600)
                self._starts[step.vm] = (*recent[-15:], self._clock())
                guests.start(step.vm)
                if step.revives:
                    subject = f"domain/{step.vm}"
                    self._announce(
                        HostEvent(at=self._clock(), subject=subject, action="domain.revived", message=step.revives)
                    )
            case domain_plan.PressPowerButton():
                guests.press_power_button(step.vm)
                self._pressed[step.vm] = self._clock()
            case domain_plan.Destroy():
                guests.destroy(step.vm)
            case domain_plan.Undefine():
                self._machine.destroyed.append(step.vm)
                guests.undefine(step.vm)
            case domain_plan.Stamp():
                guests.stamp(step.vm, step.metadata)
            case domain_plan.BuildSeed():
                self._machine.seeds[step.vm] = nocloud.digest(step.metadata)
            case domain_plan.RemoveFiles():
                guests.logs.discard(f"{step.vm}.log")
                self._machine.seeds.pop(step.vm, None)
                guests.tpms.pop(step.vm, None)
                self._starts.pop(step.vm, None)
            case domain_plan.Share():
                guests.runs[step.vm].sharing = step.sharing
            case domain_plan.SetMemory():
                raise AssertionError("no guest lends memory here")
            case domain_disks.AttachDisk():
                guests.attach(step.vm, step.xml)
            case domain_disks.DetachDisk():
                self._tried.setdefault(step.vm, {})[step.volume] = Tried(at=self._clock())
                guests.detach(step.vm, step.target)
            case domain_growth.AddCpus():
                guests.add_cpus(step.vm, step.vcpus)
            case domain_growth.AddMemory():
                guests.add_memory(step.vm, step.memory_mib)
            case domain_plan.RenewTpm():
                guests.renew_tpm(step.vm, step.disk)
            case domain_plan.Resume():
                raise AssertionError("no guest is paused here")

    async def survey(self) -> tuple[Found, ...]:
        """List every domain and its files."""
        guests = self._machine.guests
        domains = [Found(what="domain", name=one.name, owner=Id(one.owner)) for one in guests.list_domains()]
        files = [*guests.logs, *(f"{vm}.iso" for vm in self._machine.seeds)]
        tpms = (Found(what="file", name=f"{vm} TPM", owner=vm) for vm in sorted(guests.tpms))
        return (*domains, *(Found(what="file", name=name, owner=names.owner_of(name)) for name in sorted(files)), *tpms)


class SimNetworks:
    """The unit kind `network`. The metadata listeners live in the agent's process and die with it."""

    name = "network"

    def __init__(
        self, machine: Machine, faults: Faults, host: HostId, items: Callable[[], Mapping[DocKey, Any]]
    ) -> None:
        self._machine, self._faults, self._items = machine, faults, items
        run_dir = Path("/run/skerry-agent")
        self._place = network_plan.Place(host=host, underlay=machine.vtep, run_dir=run_dir)
        self._listeners: dict[Id, int] = {}

    async def observe(self, wish: Wish) -> network_plan.Seen:
        """Look at the network, its services and its taps."""
        network = network_plan.network_of(wish)
        kernel = self._machine.kernel
        segment = kernel.see(network, network_plan.taps_of(wish, self._place.host))
        return network_plan.Seen(segment=segment, served=kernel.served(network), listener=self._listeners.get(network))

    def plan(self, wish: Wish, seen: network_plan.Seen, now: float) -> Any:
        """Decide, as the agent does."""
        return network_plan.plan(wish, seen, self._place)

    async def apply(self, step: network_plan.AnyStep) -> None:
        """Carry out one step."""
        _do(self._machine, self._faults, self.name, step, lambda: self._apply(step))

    def _apply(self, step: network_plan.AnyStep) -> None:
        kernel, network = self._machine.kernel, step.network
        match step:
            case network_plan.EnsureNamespace():
                kernel.ensure_namespace(network, self._faults.reached)
            case network_plan.EnsureDnsmasq(files=files):
                kernel.ensure_dnsmasq(network, files, self._faults.reached)
            case network_plan.ReleaseLeases(leases=leases):
                kernel.release(network, leases)
            case network_plan.EnsureMetadataListener():
                inode = kernel.networks[network].namespace if network in kernel.networks else None
                if inode is None:
                    raise Temporary(f"network namespace {network} has gone")
                self._listeners[network] = inode
            case network_plan.RemoveMetadataListener():
                self._listeners.pop(network, None)
            case network_plan.RemoveDnsmasq():
                kernel.remove_dnsmasq(network)
            case network_plan.RemoveNamespace():
                kernel.remove_namespace(network)
            case _:
                kernel.change(step)

    async def survey(self) -> tuple[Found, ...]:
        """List everything of networks."""
        ports = (item.doc for item in self._items().values() if isinstance(item.doc, PortDoc))
        return tuple(self._machine.kernel.survey({port.mac: port.vm for port in ports}))


def _only(wish: Wish) -> object:
    (item,) = wish.items.values()
    return item.doc


def kinds(
    machine: Machine,
    *,
    host: HostId,
    faults: Faults,
    clock: Clock,
    fetch: Callable[[str], bool],
    items: Callable[[], Mapping[DocKey, Any]],
    announce: Callable[[HostEvent], None],
    pause: Pause = at_once,
) -> tuple[AnyUnitKind, ...]:
    """Return the unit kinds of an agent on this machine."""
    return (
        SimVolumes(machine, faults, fetch, pause),
        SimDomains(machine, faults, clock, announce, pause),
        SimNetworks(machine, faults, host, items),
    )
