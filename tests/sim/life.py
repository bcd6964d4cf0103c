"""A life of the simulated world: wishes, accidents, deaths, lost messages and lies, and what must be so all the same.

An act is a method with the choices for each of its arguments; what a life does is a list of acts.
"""

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

from structlog.testing import capture_logs

from common import names
from common.errors import Internal, NotFound, OutOfSpace, SkerryError, Temporary
from common.faults import Died
from common.firmware import Firmware
from common.ids import HostId, Id
from common.kinds.kind import AnyResource, kept_until
from sim.cloud import Cloud
from sim.lies import LIES, Lie
from sim.wire import Accident
from sim.world import Lost, Node, World
from tests.crew import crew_checks
from tests.crew.crew_world import CrewWorld
from tests.sim import checks
from tests.sim.lives import KEY, clear
from tests.sim.watch import Watch

PROJECTS = ("shop", "lab")
SIZES = {"small": (1, 512, 10), "medium": (2, 1024, 10), "wide": (4, 2048, 12), "big": (6, 4096, 40)}
VMS = ("web", "db", "mail", "cache")
HOSTS = ("h0", "h1", "h2")
CREWS = 16
"""One life of so many has two controllers."""
THINGS: dict[str, tuple[str, str, dict[str, object]]] = {
    "lab": ("project", "lab", {}),
    "default": ("network", "default", {}),
    "narrow": ("network", "narrow", {"cidr": "10.30.0.0/29"}),
    "disk": ("image", "disk", {}),
    "kernel": ("image", "kernel", {"format": "kernel"}),
    "empty": ("image", "empty", {}),
    "me": ("keypair", "me", {"public_key": KEY}),
    "ci": ("token", "ci", {}),
    "apart": ("group", "apart", {"policy": "anti-affinity"}),
    "together": ("group", "together", {"policy": "affinity"}),
    "off": ("schedule", "off", {"action": "stop", "vms": ["web"], "cron": "* * * * *"}),
    "on": ("schedule", "on", {"action": "start", "vms": ["web", "db"], "cron": "*/2 * * * *"}),
    "anew": ("schedule", "anew", {"action": "reboot", "vms": ["db"], "cron": "* * * * *"}),
    **{
        name: ("size", name, {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib})
        for name, (vcpus, memory_mib, disk_gib) in SIZES.items()
    },
}

NUMBERS = tuple(range(8))
BOTH = (False, True)

Choices = Mapping[str, Sequence[Any]]
F = TypeVar("F", bound=Callable[..., None])


def act(**choices: Sequence[Any]) -> Callable[[F], F]:
    """Make a method an act, with the choices for each of its arguments."""

    def mark(method: F) -> F:
        method.choices = choices  # type: ignore[attr-defined]
        return method

    return mark


class Life:
    """One world. Its chance comes from a seed; `begin`, then acts, each followed by `always`, then `end`."""

    def __init__(self, seed: int = 0) -> None:
        self._end = ExitStack()
        self._logs = self._end.enter_context(capture_logs())
        directory = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="skerry-sim-")
        self._end.callback(shutil.rmtree, directory)
        self.world = (CrewWorld if seed % CREWS == CREWS - 1 else World)(Path(directory), seed=seed, hook=self._passes)
        self._end.callback(self.world.close)
        self.cloud = Cloud(self.world)
        self.doomed: dict[str, int] = {}
        """Process -> the number of crash points it still survives."""
        self.excused: set[Id] = set()
        """VMs whose guest went off by itself: they need not run."""
        self.store_full = False
        self.befell: Counter[str] = Counter()
        self._watch = Watch()
        self._story = hashlib.sha256()

    @property
    def story(self) -> str:
        """Name all that its processes did, in order: two lives with the same name were the same."""
        return self._story.hexdigest()[:16]

    @property
    def setting(self) -> str:
        """Say what world it is."""
        controllers = len(self.world.controller_names)
        return f"lives with {controllers} controller{'s' if controllers > 1 else ''}"

    def _passes(self, process: str, point: str) -> None:
        self._story.update(f"{self.world.now} {process} {point}\n".encode())
        if self.store_full and point == "store.commit":
            self.befell["commits on a full disk"] += 1
            raise OutOfSpace("the store can't be written: database or disk is full")
        if process in self.doomed:
            self.doomed[process] -= 1
            if self.doomed[process] < 0:
                del self.doomed[process]
                self.befell["deaths at a crash point"] += 1
                raise Died

    def _ask(self, ask: Callable[[], object]) -> None:
        """Make a request that may be refused, or lost."""
        try:
            ask()
        except (Temporary, Internal):
            if not self.store_full:
                raise
        except (SkerryError, Lost):
            return

    def _node(self, name: str) -> Node | None:
        return self.world.nodes.get(name)

    def _process(self, name: str, number: int) -> str:
        """Return a process's name: where several are the controller, one of them."""
        names = self.world.controller_names
        return names[number % len(names)] if name == "controller" else name

    def begin(self) -> None:
        """Have a cloud that can run something."""
        self.world.run(0.1)
        self.cloud.create("project", "", "system")
        for name in HOSTS[:2]:
            self.cloud.create("host", "", name)
            self.cloud.join(name)
        self.cloud.create("project", "", PROJECTS[0])
        for what in ("small", "big", "disk", "default", "narrow"):
            self.make_thing(PROJECTS[0], what)
        self.world.run(2)
        for vm, number in (("web", 0), ("db", 2)):
            self.make_vm(vm, "small", number, pinned=False, restart="on-crash", grace=20)
        self.world.run(self.world.random.randrange(8))
        self._watch.look(self.cloud)

    # --- wishes -----------------------------------------------------------------------------------------------------

    @act(project=PROJECTS, what=sorted(THINGS))
    def make_thing(self, project: str, what: str) -> None:
        kind, name, spec = THINGS[what]
        self._ask(lambda: self.cloud.create(kind, project, name, **spec))
        if kind == "image" and name != "empty":
            self._ask(lambda: self.cloud.upload(project, name))

    @act(
        vm=VMS,
        size=sorted(SIZES),
        number=[0, 2, 4, 6, 8, 10, 1, 3],
        pinned=[False, False, False, True],
        restart=["on-crash", "never"],
        grace=[0, 2, 20],
        group=["", "", "apart", "together"],
    )
    def make_vm(
        self, vm: str, size: str, number: int, *, pinned: bool, restart: str, grace: int, group: str = ""
    ) -> None:
        def ask() -> None:
            seen = self.cloud.seen
            project = PROJECTS[number % len(PROJECTS)]
            own = {
                kind: sorted(row.name for row in seen.of_kind(kind) if row.project == project)
                for kind in ("image", "network", "keypair", "group")
            }
            if not own["image"]:
                raise NotFound(f"there is no image in project {project}")
            spec: dict[str, object] = {"size": size, "restart": restart, "stop_grace_s": grace}
            spec |= {"image": own["image"][number % len(own["image"])], "keypairs": own["keypair"]}
            spec |= {"networks": own["network"][: 1 + number % 2], "nocloud": number % 3 == 0}
            spec["groups"] = [group] if group in own["group"] else []
            if pinned:
                spec["host"] = HOSTS[number % len(HOSTS)]
            self.cloud.create("vm", project, vm, **spec)

        self._ask(ask)

    def _vm(self, number: int) -> AnyResource:
        """Return one of the VMs there are. Raises NotFound where there is none."""
        there = sorted(self.cloud.seen.of_kind("vm"), key=lambda row: (row.created_at, row.id))
        if not there:
            raise NotFound("there is no VM")
        return there[number % len(there)]

    @act(number=NUMBERS, verb=["start", "stop", "reboot", "start", "stop", "rebuild", "rescue", "unrescue"])
    def use_vm(self, number: int, verb: str) -> None:
        self._ask(lambda: self.cloud.verb(self._vm(number).project, self._vm(number).name, verb))

    @act(number=NUMBERS, size=sorted(SIZES), restart=BOTH)
    def resize_vm(self, number: int, size: str, *, restart: bool) -> None:
        self._ask(
            lambda: self.cloud.verb(
                self._vm(number).project, self._vm(number).name, "resize", size=size, restart=restart
            )
        )

    @act(number=NUMBERS, verb=["rebuild", "rescue", "rescue", "unrescue"])
    def alter_vm(self, number: int, verb: str) -> None:
        self._ask(lambda: self.cloud.verb(self._vm(number).project, self._vm(number).name, verb))

    @act(number=NUMBERS, weight=[50, 100, 200], cap=[None, 150])
    def share_out(self, number: int, weight: int, cap: int | None) -> None:
        self._change_vm(number, cpu_weight=weight, cpu_cap_percent=cap)

    @act(number=NUMBERS, cpu=["shared", "x86-64-v2", "x86-64-v3", "x86-64-v4", "host"])
    def choose_cpu(self, number: int, cpu: str) -> None:
        self._change_vm(number, cpu=cpu)

    @act(number=NUMBERS, firmware=get_args(Firmware), tpm=BOTH)
    def choose_firmware(self, number: int, firmware: str, *, tpm: bool) -> None:
        self._change_vm(number, firmware=firmware, tpm=tpm)

    @act(number=NUMBERS, text=["", "#!/bin/sh"])
    def change_vm(self, number: int, text: str) -> None:
        self._change_vm(number, user_data=text)

    @act(number=NUMBERS, keep=BOTH)
    def delete_vm(self, number: int, *, keep: bool = False) -> None:
        self._ask(lambda: self.cloud.delete("vm", self._vm(number).project, self._vm(number).name, keep=keep))

    @act(
        number=NUMBERS,
        what=[*("make", "attach") * 2, "detach", "grow", "snapshot", "clone", "stop and revert", "drop", "delete"],
    )
    def use_volume(self, number: int, what: str) -> None:
        self._ask(lambda: self._use_volume(number, what))

    def _use_volume(self, number: int, what: str) -> None:
        cloud, vm = self.cloud, self._vm(number)
        if what == "make":
            cloud.create("volume", vm.project, f"data-{number % 3}", size_gib=5, vm=vm.name if number % 2 else None)
            return
        volume = self._one("volume", number)
        match what:
            case "attach":
                cloud.verb(volume.project, volume.name, "attach", kind="volume", vm=vm.name)
            case "detach":
                cloud.verb(volume.project, volume.name, "detach", kind="volume")
            case "grow":
                cloud.change("volume", volume.project, volume.name, size_gib=volume.spec.size_gib + 1)
            case "snapshot":
                cloud.create("snapshot", volume.project, f"kept-{number % 3}", volume=volume.name)
            case "clone":
                snapshot, vm_name = self._one("snapshot", number), vm.name if number % 2 else None
                cloud.create("volume", snapshot.project, f"twin-{number % 3}", snapshot=snapshot.name, vm=vm_name)
            case "stop and revert":
                snapshot = self._one("snapshot", number)
                volume = cloud.find("volume", snapshot.project, cloud.seen.name_of(snapshot.spec.volume))
                if volume.spec.vm:
                    cloud.verb(volume.project, cloud.seen.name_of(volume.spec.vm), "stop")
                    self.world.run(30)
                cloud.verb(volume.project, volume.name, "revert", kind="volume", snapshot=snapshot.name)
            case "drop":
                snapshot = self._one("snapshot", number)
                cloud.delete("snapshot", snapshot.project, snapshot.name)
            case _:
                cloud.delete("volume", volume.project, volume.name)

    def _one(self, kind: str, number: int) -> AnyResource:
        """Return one of the things of a kind that users made. Raises NotFound where there is none."""
        there = sorted((row for row in self.cloud.seen.of_kind(kind) if row.owner is None), key=lambda row: row.id)
        if not there:
            raise NotFound(f"there is no {kind}")
        return there[number % len(there)]

    @act(number=NUMBERS)
    def restore_vm(self, number: int) -> None:
        def ask() -> None:
            kept = [vm for vm in self.cloud.seen.of_kind("vm") if kept_until(vm)]
            if kept:
                vm = min(kept, key=lambda one: (one.created_at, one.id))
                self.cloud.verb(vm.project, vm.name, "restore")

        self._ask(ask)

    @act(number=NUMBERS, protected=BOTH)
    def protect_vm(self, number: int, *, protected: bool) -> None:
        self._change_vm(number, protected=protected)

    def _change_vm(self, number: int, **spec: object) -> None:
        self._ask(lambda: self.cloud.change("vm", self._vm(number).project, self._vm(number).name, **spec))

    @act(project=PROJECTS, vms=[None, 0, 1, 3], vcpus=[None, 2, 7, 20], keep_s=[0, 5, 60, 3600])
    def govern(self, project: str, vms: int | None, vcpus: int | None, keep_s: int) -> None:
        limits = {"vms": vms, "vcpus": vcpus}
        self._ask(lambda: self.cloud.change("project", "", project, quota=limits, keep_deleted_s=keep_s))

    @act(project=PROJECTS, what=sorted(THINGS))
    def delete_thing(self, project: str, what: str) -> None:
        kind, name, _ = THINGS[what]
        where = "" if kind in ("project", "size") else project
        self._ask(lambda: self.cloud.delete(kind, where, name))

    @act(number=NUMBERS)
    def cancel(self, number: int) -> None:
        def ask() -> None:
            operations = sorted(op.id for op in self.cloud.seen.operations() if op.finished_at is None)
            if operations:
                self.cloud.cancel(operations[number % len(operations)])

        self._ask(ask)

    @act(name=HOSTS, what=["join", "join", "cordon", "drain", "open", "open", "delete", "burn"])
    def use_host(self, name: str, what: str) -> None:
        match what:
            case "join" if self._node(name) is None:
                self._ask(lambda: self.cloud.create("host", "", name))
                self._ask(lambda: self.cloud.join(name))
            case "cordon" | "open":
                self._ask(lambda: self.cloud.change("host", "", name, schedulable=what == "open"))
            case "drain":
                self._ask(lambda: self._drain(name))
            case "delete":
                self._ask(lambda: self.cloud.delete("host", "", name))
            case "burn" if self._node(name) is not None and len(self.world.nodes) > 1:
                self.world.remove_machine(name)
            case _:
                pass

    def _drain(self, name: str) -> None:
        """Close a host and stop what is on it, as `skerry host drain --stop-vms` does."""
        self.cloud.change("host", "", name, schedulable=False)
        host = self.cloud.find("host", "", name)
        for placement in self.cloud.seen.placed_on(HostId(host.id)):
            vm = self.cloud.seen.get(placement.owner)
            if vm is not None and vm.deleted_at is None and not kept_until(vm):
                self.cloud.verb(vm.project, vm.name, "stop")

    # --- time and accidents -----------------------------------------------------------------------------------------

    @act(seconds=[0.004, 0.03, 0.5])
    def a_moment_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @act(seconds=[3.0, 12.0, 70.0])
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @act(process=["controller", *HOSTS], points=[*range(12), *range(12, 60, 4)])
    def dies_soon(self, process: str, points: int) -> None:
        self.doomed[self._process(process, points)] = points

    @act(process=["controller", *HOSTS], plug=BOTH)
    def dies(self, process: str, *, plug: bool) -> None:
        self.befell["kills"] += 1
        if process == "controller":
            self.world.kill(self._process(process, self.world.random.randrange(8)))
        elif self._node(process) is not None:
            (self.world.cut_power if plug else self.world.kill_agent)(process)

    @act(name=HOSTS, what=["cut", "cut for long", "heal", "driver fails"])
    def connection_suffers(self, name: str, what: str) -> None:
        node = self._node(name)
        if node is None:
            return
        match what:
            case "cut" | "cut for long":
                node.cut_off = what == "cut for long"
                if node.wire:
                    node.wire.pull()
            case "heal":
                node.cut_off = False
            case _:
                node.machine.hiccups = 2

    @act(name=HOSTS, what=get_args(Accident), after=[0, 0, 1, 3])
    def message_suffers(self, name: str, what: Accident, after: int) -> None:
        node = self._node(name)
        if node is not None and node.wire:
            node.wire.accidents += [None] * after + [what]
            self.befell["messages to be lost, repeated or swapped"] += 1

    @act(number=NUMBERS, what=["guest", "crashed", "destroyed", "deaf"])
    def guest_suffers(self, number: int, what: str) -> None:
        running = [
            (node, vm) for _, node in sorted(self.world.nodes.items()) for vm in sorted(node.machine.guests.runs)
        ]
        if not running:
            return
        node, vm = running[number % len(running)]
        match what:
            case "deaf":
                node.machine.guests.runs[vm].deaf = True
            case "guest":
                self.excused.add(vm)
                node.machine.guests.guest_ends(vm, "guest")
            case _:
                node.machine.guests.guest_ends(vm, "crashed" if what == "crashed" else "destroyed")

    @act(
        number=NUMBERS,
        what=["bridge", "vxlan", "gateway", "namespace", "dnsmasq", "tunnels", "pins", "neighbours"],
    )
    def drifts(self, number: int, what: str) -> None:
        there = [
            (node.machine.kernel, network)
            for _, node in sorted(self.world.nodes.items())
            for network in sorted(node.machine.kernel.networks)
        ]
        if not there:
            return
        kernel, network = there[number % len(there)]
        own = kernel.networks[network]
        match what:
            case "bridge":
                kernel.remove_device(names.bridge(network))
            case "vxlan":
                kernel.remove_device(names.vxlan(network))
            case "gateway":
                kernel.remove_device(names.gateway_outer(network))
            case "namespace":
                kernel.remove_namespace(network)
            case "dnsmasq":
                own.served = None
            case "tunnels":
                own.tunnels.clear()
            case "pins":
                own.pins.clear()
            case _:
                own.neighbours.clear()
                own.inner_neighbours.clear()

    @act(process=["controller", *HOSTS], seconds=[-86400.0, -3600.0, -20.0, 2.0, 900.0, 7200.0])
    def clock_is_set(self, process: str, seconds: float) -> None:
        self.befell["clocks set"] += 1
        if process == "controller":
            self.world.set_controllers_clock(self._process(process, self.world.random.randrange(8)), seconds)
        elif (node := self._node(process)) is not None:
            node.ahead_s += seconds

    @act(name=HOSTS, what=["pool", "memory", "both", "neither"])
    def disk_fills(self, name: str, what: str) -> None:
        node = self._node(name)
        if node is None:
            return
        self.befell["hosts' disks full"] += what != "neither"
        node.machine.pool_full = what in ("pool", "both")
        node.machine.state_full = what in ("memory", "both")

    @act(full=[True, False, False])
    def store_fills(self, *, full: bool) -> None:
        self.store_full = full

    @act(name=HOSTS, what=LIES)
    def host_lies(self, name: str, what: Lie) -> None:
        node = self._node(name)
        if node is not None:
            self.befell["lies"] += 1
            self.cloud.liars.add(node.host)
            node.lies.append(what)

    # --- what must be so --------------------------------------------------------------------------------------------

    def always(self) -> None:
        """Hold after every act."""
        checks.always(self.cloud)
        self._watch.look(self.cloud)

    def end(self) -> None:
        """Let everything heal; then all is as wished, and can be deleted without a trace."""
        self._heal()
        self._as_wished()
        if isinstance(self.world, CrewWorld):
            crew_checks.same(self.world)
        self._unprotect(self.cloud.seen.of_kind("vm"))
        clear(self.cloud)
        errors = [line for line in self._logs if line["log_level"] in ("error", "critical")]
        assert not errors, errors

    def close(self) -> None:
        """Let go of the world."""
        self._end.close()

    def _heal(self) -> None:
        """Everything heals: links, drivers, disks; images get their bytes; what lay on a burnt host is given up.

        A host that lied is burnt, since nobody knows what is on it. Clocks stay as they are.
        """
        self.doomed.clear()
        self.store_full = False
        for name in [name for name, node in self.world.nodes.items() if node.host in self.cloud.liars]:
            self.world.remove_machine(name)
        for node in self.world.nodes.values():
            node.cut_off = False
            node.machine.hiccups = 0
            node.machine.pool_full = node.machine.state_full = False
        self.world.run(60)
        for image in list(self.cloud.seen.of_kind("image")):
            with suppress(SkerryError):
                self.cloud.upload(image.project, image.name)
        for schedule in self.cloud.seen.wanted(list(self.cloud.seen.of_kind("schedule"))):
            self.cloud.delete("schedule", schedule.project, schedule.name)
        for host in list(self.cloud.seen.of_kind("host")):
            there = self._node(host.name)
            if there is not None and there.host == host.id and host.deleted_at is None:
                continue
            placed = [self.cloud.seen.get(one.owner) for one in self.cloud.seen.placed_on(host.id)]  # type: ignore[arg-type]
            lost = self.cloud.seen.wanted([vm for vm in (*placed, *self.cloud.seen.users(host.id)) if vm])
            self._unprotect(vm for vm in lost if vm.kind == "vm")
            for one in sorted(lost, key=lambda one: (_GOES.index(one.kind), one.id)):
                self.cloud.delete(one.kind, one.project, one.name)
            if host.deleted_at is None:
                self.cloud.delete("host", "", host.name)
        wanted = {host.id for host in self.cloud.seen.of_kind("host")}
        self.world.run(200)
        for name in [name for name, one in self.world.nodes.items() if one.host not in wanted]:
            self.world.remove_machine(name)
        self.world.run(200)

    def _unprotect(self, vms: Iterable[AnyResource]) -> None:
        for vm in [vm for vm in vms if vm.spec.protected and vm.deleted_at is None]:
            self.cloud.change("vm", vm.project, vm.name, protected=False)
        self._watch.look(self.cloud)

    def _as_wished(self) -> None:
        checks.quiet(self.cloud)
        for vm in self.cloud.seen.of_kind("vm"):
            wished = vm.spec.power == "running" and not kept_until(vm)
            if wished and vm.spec.restart == "on-crash" and vm.id not in self.excused:
                assert vm.status.state in ("running", "blocked"), f"{vm.name}: {vm.status}"


_GOES = ("snapshot", "vm", "volume")
"""Users before what they use."""

ACTS: Mapping[str, Choices] = {
    name: method.choices for name, method in vars(Life).items() if hasattr(method, "choices")
}
