"""The life test: wishes, accidents, deaths and lost messages in any order, and what must be so all the same.

`SKERRY_SIM_EXAMPLES=500 pytest tests/sim/test_life.py` for a long run.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from common import names
from common.errors import Internal, NotFound, SkerryError, Temporary
from common.faults import Died
from common.ids import Id
from common.kinds.kind import AnyResource
from sim.cloud import Cloud
from sim.world import Lost, Node, World
from tests.sim import checks
from tests.sim.lives import KEY, clear

EXAMPLES = int(os.environ.get("SKERRY_SIM_EXAMPLES", "12"))

PROJECTS = ("shop", "lab")
SIZES = {"small": (1, 512, 10), "big": (6, 4096, 40)}
VMS = ("web", "db", "mail", "cache")
HOSTS = ("h0", "h1", "h2")
THINGS: dict[str, tuple[str, str, dict[str, object]]] = {
    "lab": ("project", "lab", {}),
    "default": ("network", "default", {}),
    "narrow": ("network", "narrow", {"cidr": "10.30.0.0/29"}),
    "disk": ("image", "disk", {}),
    "kernel": ("image", "kernel", {"format": "kernel"}),
    "empty": ("image", "empty", {}),
    "me": ("keypair", "me", {"public_key": KEY}),
    "ci": ("token", "ci", {}),
    **{
        name: ("size", name, {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib})
        for name, (vcpus, memory_mib, disk_gib) in SIZES.items()
    },
}

projects, vms, hosts = st.sampled_from(PROJECTS), st.sampled_from(VMS), st.sampled_from(HOSTS)
numbers = st.integers(0, 7)


class Life(RuleBasedStateMachine):
    """One world."""

    def __init__(self) -> None:
        super().__init__()
        self._end = ExitStack()
        self._logs = self._end.enter_context(capture_logs())
        directory = tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="skerry-sim-")
        self._end.callback(shutil.rmtree, directory)
        self.world = World(Path(directory), hook=self._passes)
        self._end.callback(self.world.close)
        self.cloud = Cloud(self.world)
        self.doomed: dict[str, int] = {}
        """Process -> the number of crash points it still survives."""
        self.excused: set[Id] = set()
        """VMs whose guest went off by itself: they need not run."""

    def _passes(self, process: str, _point: str) -> None:
        if process in self.doomed:
            self.doomed[process] -= 1
            if self.doomed[process] < 0:
                del self.doomed[process]
                raise Died

    def _ask(self, ask: Callable[[], object]) -> None:
        """Make a request that may be refused, or lost."""
        try:
            ask()
        except (Temporary, Internal):
            raise
        except (SkerryError, Lost):
            return

    def _node(self, name: str) -> Node | None:
        return self.world.nodes.get(name)

    @initialize(seed=st.integers(0, 1 << 16))
    def begin(self, seed: int) -> None:
        """Have a cloud that can run something."""
        self.world.random.seed(seed)
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
        self.world.run(seed % 8)

    # --- wishes -----------------------------------------------------------------------------------------------------

    @rule(project=projects, what=st.sampled_from(sorted(THINGS)))
    def make_thing(self, project: str, what: str) -> None:
        kind, name, spec = THINGS[what]
        self._ask(lambda: self.cloud.create(kind, project, name, **spec))
        if kind == "image" and name != "empty":
            self._ask(lambda: self.cloud.upload(project, name))

    @rule(
        vm=vms,
        size=st.sampled_from(sorted(SIZES)),
        number=st.sampled_from([0, 2, 4, 6, 8, 10, 1, 3]),
        pinned=st.sampled_from([False, False, False, True]),
        restart=st.sampled_from(["on-crash", "never"]),
        grace=st.sampled_from([0, 2, 20]),
    )
    def make_vm(self, vm: str, size: str, number: int, *, pinned: bool, restart: str, grace: int) -> None:
        def ask() -> None:
            seen = self.cloud.seen
            project = PROJECTS[number % len(PROJECTS)]
            own = {
                kind: sorted(row.name for row in seen.of_kind(kind) if row.project == project)
                for kind in ("image", "network", "keypair")
            }
            if not own["image"]:
                raise NotFound(f"there is no image in project {project}")
            spec: dict[str, object] = {"size": size, "restart": restart, "stop_grace_s": grace}
            spec |= {"image": own["image"][number % len(own["image"])], "keypairs": own["keypair"]}
            spec |= {"networks": own["network"][: 1 + number % 2], "nocloud": number % 3 == 0}
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

    @rule(number=numbers, verb=st.sampled_from(["start", "stop", "reboot"]))
    def use_vm(self, number: int, verb: str) -> None:
        self._ask(lambda: self.cloud.verb(self._vm(number).project, self._vm(number).name, verb))

    @rule(number=numbers, text=st.sampled_from(["", "#!/bin/sh"]))
    def change_vm(self, number: int, text: str) -> None:
        self._ask(lambda: self.cloud.change("vm", self._vm(number).project, self._vm(number).name, user_data=text))

    @rule(number=numbers)
    def delete_vm(self, number: int) -> None:
        self._ask(lambda: self.cloud.delete("vm", self._vm(number).project, self._vm(number).name))

    @rule(project=projects, what=st.sampled_from(sorted(THINGS)))
    def delete_thing(self, project: str, what: str) -> None:
        kind, name, _ = THINGS[what]
        where = "" if kind in ("project", "size") else project
        self._ask(lambda: self.cloud.delete(kind, where, name))

    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        def ask() -> None:
            operations = sorted(op.id for op in self.cloud.seen.operations() if op.finished_at is None)
            if operations:
                self.cloud.cancel(operations[number % len(operations)])

        self._ask(ask)

    @rule(name=hosts, what=st.sampled_from(["join", "join", "cordon", "open", "delete", "burn"]))
    def use_host(self, name: str, what: str) -> None:
        match what:
            case "join" if self._node(name) is None:
                self._ask(lambda: self.cloud.create("host", "", name))
                self._ask(lambda: self.cloud.join(name))
            case "cordon" | "open":
                self._ask(lambda: self.cloud.change("host", "", name, schedulable=what == "open"))
            case "delete":
                self._ask(lambda: self.cloud.delete("host", "", name))
            case "burn" if self._node(name) is not None and len(self.world.nodes) > 1:
                self.world.remove_machine(name)
            case _:
                pass

    # --- time and accidents -----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.004, 0.03, 0.5]))
    def a_moment_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(seconds=st.sampled_from([3.0, 12.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(process=st.sampled_from(["controller", *HOSTS]), points=st.integers(0, 60))
    def dies_soon(self, process: str, points: int) -> None:
        self.doomed[process] = points

    @rule(process=st.sampled_from(["controller", *HOSTS]), plug=st.booleans())
    def dies(self, process: str, plug: bool) -> None:
        if process == "controller":
            self.world.kill_controller()
        elif self._node(process) is not None:
            (self.world.cut_power if plug else self.world.kill_agent)(process)

    @rule(name=hosts, what=st.sampled_from(["cut", "cut for long", "heal", "lose", "repeat", "swap", "driver fails"]))
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
            case "driver fails":
                node.machine.hiccups = 2
            case "lose" | "repeat" | "swap" if node.wire:
                node.wire.accidents.append(what)
            case _:
                pass

    @rule(number=numbers, what=st.sampled_from(["guest", "crashed", "destroyed", "deaf"]))
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

    @rule(
        number=numbers,
        what=st.sampled_from(["bridge", "vxlan", "gateway", "namespace", "dnsmasq", "tunnels", "pins", "neighbours"]),
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

    # --- what must be so --------------------------------------------------------------------------------------------

    @invariant()
    def always(self) -> None:
        checks.always(self.cloud)

    def teardown(self) -> None:
        try:
            self._heal()
            self._as_wished()
            clear(self.cloud)
            errors = [line for line in self._logs if line["log_level"] in ("error", "critical")]
            assert not errors, errors
        finally:
            self._end.close()

    def _heal(self) -> None:
        """Everything heals: links, drivers, deaths; images get their bytes; what lay on a burnt host is given up."""
        self.doomed.clear()
        for node in self.world.nodes.values():
            node.cut_off = False
            node.machine.hiccups = 0
        self.world.run(60)
        for image in list(self.cloud.seen.of_kind("image")):
            with suppress(SkerryError):
                self.cloud.upload(image.project, image.name)
        for host in list(self.cloud.seen.of_kind("host")):
            there = self._node(host.name)
            if there is not None and there.host == host.id and host.deleted_at is None:
                continue
            placed = [self.cloud.seen.get(one.owner) for one in self.cloud.seen.placed_on(host.id)]  # type: ignore[arg-type]
            for vm in self.cloud.seen.wanted([vm for vm in (*placed, *self.cloud.seen.users(host.id)) if vm]):
                self.cloud.delete("vm", vm.project, vm.name)
            if host.deleted_at is None:
                self.cloud.delete("host", "", host.name)
        wanted = {host.id for host in self.cloud.seen.of_kind("host")}
        self.world.run(200)
        for name in [name for name, one in self.world.nodes.items() if one.host not in wanted]:
            self.world.remove_machine(name)
        self.world.run(200)

    def _as_wished(self) -> None:
        checks.quiet(self.cloud)
        for vm in self.cloud.seen.of_kind("vm"):
            if vm.spec.power == "running" and vm.spec.restart == "on-crash" and vm.id not in self.excused:
                assert vm.status.state in ("running", "blocked"), f"{vm.name}: {vm.status}"


TestLife = pytest.mark.timeout(3600)(Life.TestCase)
TestLife.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
