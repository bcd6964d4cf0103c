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
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from common import names
from common.errors import Internal, SkerryError, Temporary
from common.faults import Died
from common.ids import Id
from tests.sim import checks
from tests.sim.cloud import Cloud
from tests.sim.lives import KEY, clear
from tests.sim.wire import Accident
from tests.sim.world import Lost, Node, World

EXAMPLES = int(os.environ.get("SKERRY_SIM_EXAMPLES", "12"))

PROJECTS = ("shop", "lab")
NETWORKS = {"default": "10.20.0.0/24", "tiny": "10.30.0.0/29"}
SIZES = {"small": (1, 512, 10), "big": (6, 4096, 40)}
IMAGES = {"disk": "qcow2", "kernel": "kernel"}
VMS = ("web", "db", "mail", "cache")
HOSTS = ("h0", "h1", "h2")

projects, networks, vms = st.sampled_from(PROJECTS), st.sampled_from(sorted(NETWORKS)), st.sampled_from(VMS)
hosts = st.sampled_from(HOSTS)


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
        for name, (vcpus, memory_mib, disk_gib) in SIZES.items():
            self.cloud.create("size", "", name, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
        self.make_project(PROJECTS[0])
        self.make_image(PROJECTS[0], "disk")
        self.upload(PROJECTS[0], "disk")
        self.make_network(PROJECTS[0], "default")
        self.world.run(2)

    # --- wishes -----------------------------------------------------------------------------------------------------

    @rule(project=projects)
    def make_project(self, project: str) -> None:
        self._ask(lambda: self.cloud.create("project", "", project))

    @rule(project=projects, network=networks)
    def make_network(self, project: str, network: str) -> None:
        self._ask(lambda: self.cloud.create("network", project, network, cidr=NETWORKS[network]))

    @rule(project=projects, image=st.sampled_from(sorted(IMAGES)))
    def make_image(self, project: str, image: str) -> None:
        self._ask(lambda: self.cloud.create("image", project, image, format=IMAGES[image]))

    @rule(project=projects, image=st.sampled_from(sorted(IMAGES)))
    def upload(self, project: str, image: str) -> None:
        self._ask(lambda: self.cloud.upload(project, image))

    @rule(project=projects)
    def make_keypair(self, project: str) -> None:
        self._ask(lambda: self.cloud.create("keypair", project, "me", public_key=KEY))

    @rule(project=projects)
    def make_token(self, project: str) -> None:
        self._ask(lambda: self.cloud.create("token", project, "ci"))

    @rule(size=st.sampled_from(sorted(SIZES)))
    def make_size(self, size: str) -> None:
        vcpus, memory_mib, disk_gib = SIZES[size]
        self._ask(lambda: self.cloud.create("size", "", size, vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib))

    @rule(
        project=projects,
        vm=vms,
        size=st.sampled_from(sorted(SIZES)),
        image=st.sampled_from(sorted(IMAGES)),
        where=st.lists(networks, min_size=1, max_size=2, unique=True),
        host=st.none() | hosts,
        restart=st.sampled_from(["on-crash", "never"]),
        grace=st.sampled_from([0, 2, 20]),
        extras=st.booleans(),
    )
    def make_vm(  # noqa: PLR0917
        self,
        project: str,
        vm: str,
        size: str,
        image: str,
        where: list[str],
        host: str | None,
        restart: str,
        grace: int,
        extras: bool,
    ) -> None:
        spec: dict[str, object] = {"size": size, "image": image, "networks": where, "host": host, "restart": restart}
        spec |= {"stop_grace_s": grace, "nocloud": extras, "keypairs": ["me"] if extras else []}
        self._ask(lambda: self.cloud.create("vm", project, vm, **spec))

    @rule(project=projects, vm=vms, verb=st.sampled_from(["start", "stop", "reboot"]))
    def use_vm(self, project: str, vm: str, verb: str) -> None:
        self._ask(lambda: self.cloud.verb(project, vm, verb))

    @rule(project=projects, vm=vms, text=st.sampled_from(["", "#!/bin/sh"]))
    def change_vm(self, project: str, vm: str, text: str) -> None:
        self._ask(lambda: self.cloud.change("vm", project, vm, user_data=text))

    @rule(project=projects, vm=vms)
    def delete_vm(self, project: str, vm: str) -> None:
        self._ask(lambda: self.cloud.delete("vm", project, vm))

    @rule(
        project=projects,
        what=st.sampled_from(
            [
                ("network", "default"),
                ("network", "tiny"),
                ("image", "disk"),
                ("image", "kernel"),
                ("keypair", "me"),
                ("token", "ci"),
            ]
        ),
    )
    def delete_thing(self, project: str, what: tuple[str, str]) -> None:
        self._ask(lambda: self.cloud.delete(what[0], project, what[1]))

    @rule(what=st.sampled_from([("size", "small"), ("size", "big"), ("project", "shop"), ("project", "lab")]))
    def delete_of_the_cloud(self, what: tuple[str, str]) -> None:
        self._ask(lambda: self.cloud.delete(what[0], "", what[1]))

    @rule(number=st.integers(0, 5))
    def cancel(self, number: int) -> None:
        def ask() -> None:
            operations = sorted(op.id for op in self.cloud.seen.operations() if op.finished_at is None)
            if operations:
                self.cloud.cancel(operations[number % len(operations)])

        self._ask(ask)

    @rule(name=hosts)
    def host_joins(self, name: str) -> None:
        if self._node(name) is None:
            self._ask(lambda: self.cloud.create("host", "", name))
            self._ask(lambda: self.cloud.join(name))

    @rule(name=hosts, schedulable=st.booleans())
    def cordon(self, name: str, schedulable: bool) -> None:
        self._ask(lambda: self.cloud.change("host", "", name, schedulable=schedulable))

    # --- accidents --------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.004, 0.05, 0.5, 3.0, 12.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(process=st.sampled_from(["controller", *HOSTS]), points=st.integers(0, 60))
    def dies_soon(self, process: str, points: int) -> None:
        self.doomed[process] = points

    @rule()
    def controller_dies(self) -> None:
        self.world.kill_controller()

    @rule(name=hosts)
    def agent_dies(self, name: str) -> None:
        if self._node(name):
            self.world.kill_agent(name)

    @rule(name=hosts)
    def plug_pulled(self, name: str) -> None:
        if self._node(name):
            self.world.cut_power(name)

    @rule(name=hosts, lasting=st.booleans())
    def link_cut(self, name: str, lasting: bool) -> None:
        if (node := self._node(name)) is not None:
            node.cut_off = lasting
            if node.wire:
                node.wire.pull()

    @rule(name=hosts)
    def link_healed(self, name: str) -> None:
        if (node := self._node(name)) is not None:
            node.cut_off = False

    @rule(name=hosts, accident=st.sampled_from(["lose", "repeat", "swap"]))
    def message_mishap(self, name: str, accident: Accident) -> None:
        if (node := self._node(name)) is not None and node.wire:
            node.wire.accidents.append(accident)

    @rule(name=hosts, times=st.integers(1, 3))
    def driver_fails(self, name: str, times: int) -> None:
        if (node := self._node(name)) is not None:
            node.machine.hiccups = times

    @rule(name=hosts, number=st.integers(0, 7), cause=st.sampled_from(["guest", "crashed", "destroyed"]))
    def guest_ends(self, name: str, number: int, cause: str) -> None:
        node = self._node(name)
        if node is not None and (runs := sorted(node.machine.guests.runs)):
            vm = runs[number % len(runs)]
            if cause == "guest":
                self.excused.add(vm)
            node.machine.guests.guest_ends(vm, cause)  # type: ignore[arg-type]

    @rule(name=hosts, number=st.integers(0, 7))
    def guest_goes_deaf(self, name: str, number: int) -> None:
        node = self._node(name)
        if node is not None and (runs := sorted(node.machine.guests.runs)):
            node.machine.guests.runs[runs[number % len(runs)]].deaf = True

    @rule(
        name=hosts,
        number=st.integers(0, 3),
        what=st.sampled_from(["bridge", "vxlan", "gateway", "namespace", "dnsmasq", "tunnels", "pins", "neighbours"]),
    )
    def drift(self, name: str, number: int, what: str) -> None:
        node = self._node(name)
        if node is None or not node.machine.kernel.networks:
            return
        kernel = node.machine.kernel
        network = sorted(kernel.networks)[number % len(kernel.networks)]
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

    @precondition(lambda self: len(self.world.nodes) > 1)
    @rule(name=hosts)
    def host_burns(self, name: str) -> None:
        if self._node(name):
            self.world.remove_machine(name)

    @rule(name=hosts)
    def delete_host(self, name: str) -> None:
        self._ask(lambda: self.cloud.delete("host", "", name))

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
