"""From the moment a create is accepted until libvirt says that the guest runs, beside `virsh start` of the same domain.

Both ends are libvirt's own event `started`, heard by one connection in this process; both clocks are this machine's.
The bare domain has the XML that Skerry wrote, with a name, addresses and a disk of its own; it is started by `virsh
start`, a process like any other. The two take turns, so that whatever else the machine does meets both.
"""

import json
import re
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import libvirt

from lab.cloud import Lab
from lab.commands import run
from lab.host import Host
from tests.bench.figures import Figure, percentile
from tests.lab.calls import Cloud, until

BUDGET_P50_MS, BUDGET_P99_MS = 100.0, 300.0
WARM_UPS = 3
HANDED_OVER = "agent: domain Define"
"""The last of Skerry's own steps: what follows is libvirt's start, which a `virsh start` has to wait for as well."""
BARE, PATTERN = "bare", "pattern"

Stages = dict[str, list[float]]
"""Milliseconds after the create was accepted, by what was reached."""


class Started:
    """When each domain of a host was started, as libvirt tells."""

    def __init__(self, uri: str) -> None:
        self.at: dict[str, float] = {}
        self._connection = libvirt.open(uri)
        self._connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._heard, None)

    def _heard(self, _connection: Any, domain: Any, event: int, _detail: int, _: None) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self.at[domain.name()] = time.time()

    def wait(self, name: str) -> float:
        """Wait until a domain was started; return when."""
        found: float = until(lambda: self.at.get(name), lambda: f"libvirt to start {name}", 60, every_s=0.002)
        return found

    def close(self) -> None:
        """Hear no more."""
        self._connection.close()


@contextmanager
def listening(host: Host) -> Iterator[Started]:
    """Hear a host's libvirt."""
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, name="libvirt events", daemon=True).start()
    started = Started(host.libvirt_uri())
    try:
        yield started
    finally:
        started.close()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def measure(lab: Lab, runs: int) -> tuple[list[Figure], str]:
    """Measure; return the figures and the profile of a create as text."""
    cloud, host = Cloud(lab), lab.host("h1")
    created: list[float] = []
    bare: list[float] = []
    stages: Stages = defaultdict(list)
    with listening(host) as started:
        _define_bare(cloud, host, started)
        for number in range(-WARM_UPS, runs):
            reached = _one_create(cloud, host, started, f"bench-{number + WARM_UPS}")
            alone = _one_bare_start(host, started)
            if number < 0:
                continue
            created.append(reached["libvirt: started"])
            bare.append(alone)
            for stage, milliseconds in reached.items():
                stages[stage].append(milliseconds)
    cloud.delete_vms(PATTERN)
    host.run(["virsh", "-q", "undefine", BARE])
    host.run(["rm", "-f", f"/srv/{BARE}.qcow2", f"/srv/{BARE}.log"])
    return _figures(created, bare, stages), _profile(stages, bare)


def _figures(created: Sequence[float], bare: Sequence[float], stages: Stages) -> list[Figure]:
    floor = statistics.median(bare)
    name = "create accepted → domain running, minus bare start"
    peer = "bare virsh start"
    shown, ours = stages["API: operation done"], stages[HANDED_OVER]
    return [
        Figure(
            name=f"{name}, p50 of {len(created)}", figure=percentile(created, 0.5) - floor, unit="ms",
            budget=BUDGET_P50_MS, beside=f"{peer}, p50", beside_figure=floor,
        ),
        Figure(
            name=f"{name}, p99 of {len(created)}", figure=percentile(created, 0.99) - floor, unit="ms",
            budget=BUDGET_P99_MS, beside=f"{peer}, p99", beside_figure=percentile(bare, 0.99),
        ),
        Figure(
            name="  of it Skerry's own: accepted → handed to libvirt, p50", figure=percentile(ours, 0.5), unit="ms",
            beside="p99", beside_figure=percentile(ours, 0.99),
        ),
        Figure(
            name="create accepted → API says done, p50", figure=percentile(shown, 0.5), unit="ms",
            beside=f"{peer}, p50", beside_figure=floor,
        ),
    ]  # fmt: skip


# --- one of each --------------------------------------------------------------------------------------------------


def _one_create(cloud: Cloud, host: Host, started: Started, name: str) -> dict[str, float]:
    """Create a VM, and return what was reached when, in milliseconds after it was accepted."""
    before = host.logs.joinpath("agent.log").stat().st_size
    answer = cloud.create(name)
    accepted = time.time()
    vm = answer["resource"]["id"]
    operation = answer["operation"]
    while operation["finished_at"] is None:
        path = f"/v1/operations/{operation['id']}?wait_s=30&seen={operation['revision']}"
        operation = cloud.must("GET", path)
    reached = {"libvirt: started": started.wait(vm), "API: operation done": operation["finished_at"]}
    reached |= _told(cloud, host, vm, before)
    cloud.delete_vms(name)
    return {stage: (at - accepted) * 1000 for stage, at in reached.items()}


def _one_bare_start(host: Host, started: Started) -> float:
    """Start the bare domain, and return how long that took in milliseconds."""
    began = time.time()
    run(["virsh", "-q", "-c", host.libvirt_uri(), "start", BARE])
    took = (started.wait(BARE) - began) * 1000
    host.run(["virsh", "-q", "destroy", BARE])
    del started.at[BARE]
    return took


def _define_bare(cloud: Cloud, host: Host, started: Started) -> None:
    """Define a domain that differs from one of Skerry's in nothing but what has to be its own.

    The VM that is its pattern stays, stopped: it keeps the network, which both use, on the host.
    """
    cloud.create(PATTERN)
    cloud.until_state(PATTERN, "running")
    vm = cloud.id(PATTERN)
    xml = host.run(["virsh", "-q", "dumpxml", "--inactive", vm])
    volume = re.search(r"/srv/skerry-agent/volumes/\S+\.qcow2", xml)
    assert volume is not None
    cloud.must("POST", f"{cloud.vms}/{PATTERN}/stop")
    cloud.until_state(PATTERN, "stopped")
    host.run(["cp", volume[0], f"/srv/{BARE}.qcow2"])
    host.run(["chmod", "666", f"/srv/{BARE}.qcow2"])
    other = str(uuid.uuid4())
    for pattern, text in (
        (r"<name>[^<]*</name>", f"<name>{BARE}</name>"),
        (r"<uuid>[^<]*</uuid>", f"<uuid>{other}</uuid>"),
        (r"<entry name=.(serial|uuid).>[^<]*</entry>", rf"<entry name='\1'>{other}</entry>"),
        (r"(?s)<metadata.*</metadata>", ""),
        (r"<mac address='[^']*'/>", "<mac address='06:00:00:00:00:01'/>"),
        (r"<target dev='t0[^']*'/>", "<target dev='bare0'/>"),
        (r"<log file='[^']*'", f"<log file='/srv/{BARE}.log'"),
        (re.escape(volume[0]), f"/srv/{BARE}.qcow2"),
        (r"<source mode='bind'[^>]*/>", ""),
        (r"<serial>vol-[^<]*</serial>", f"<serial>{BARE}</serial>"),
    ):
        xml = re.sub(pattern, text, xml)
    assert vm not in xml, [line for line in xml.splitlines() if vm in line]
    host.run(["sh", "-c", f"cat >/run/{BARE}.xml && virsh -q define /run/{BARE}.xml"], stdin=xml)
    started.at.clear()


# --- where the time goes ------------------------------------------------------------------------------------------


def _told(cloud: Cloud, host: Host, vm: str, before: int) -> dict[str, float]:
    """Return when the controller placed a VM and the agent finished each of its steps, as their logs tell."""
    reached = {}
    for line in cloud.lab.layout.logs.joinpath("controller.log").read_text().splitlines()[-400:]:
        if "vm placed" in line and vm in line:
            reached["controller: placed"] = _at(line)
    with host.logs.joinpath("agent.log").open() as log:
        log.seek(before)
        for line in log:
            if "step applied" in line and vm.partition("-")[2] in line:
                step = json.loads(line)
                reached[f"agent: {step['unit'].partition('/')[0]} {step['step']}"] = _at(line)
    return reached


def _at(line: str) -> float:
    return datetime.fromisoformat(json.loads(line)["at"]).timestamp()


def _profile(stages: Stages, bare: Sequence[float]) -> str:
    """Return the medians of all stages, in the order of time."""
    medians = sorted((statistics.median(values), stage) for stage, values in stages.items())
    lines = [f"{milliseconds:8.0f} ms  {stage}" for milliseconds, stage in medians]
    return "\n".join((*lines, f"{statistics.median(bare):8.0f} ms  a bare `virsh start`, for comparison"))
