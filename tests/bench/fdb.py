"""Ten thousand FDB and neighbour entries of one VXLAN device, through the agent's own driver and through iproute2.

`python -P -m tests.bench.fdb` measures in the network namespace it is started in and prints one JSON list.
"""

import subprocess
import sys
import time

import msgspec

from agent.drivers import netlink
from agent.drivers.links import Bridge, Entries, Tunnel, Vxlan
from lab.commands import run
from tests.bench.figures import Figure

BUDGET_MS = 100.0
PORTS = 5_000
"""Each has an FDB entry, on the device and in the bridge, and a neighbour."""
BRIDGE, VXLAN = "b-bench", "x-bench"


def measure() -> list[Figure]:
    """Measure in a namespace made for it, that goes with the process in it."""
    words = ["unshare", "--net", sys.executable, "-P", "-m", "tests.bench.fdb"]
    done = subprocess.run(words, capture_output=True, check=True, timeout=300)
    return msgspec.json.decode(done.stdout, type=list[Figure])


def main() -> None:
    """Measure here."""
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "addr", "add", "10.9.9.1/32", "dev", "lo"])
    netlink.ensure_bridge(BRIDGE, Bridge(mtu=1450))
    netlink.ensure_vxlan(VXLAN, Vxlan(tunnel=Tunnel(vni=5000, local="10.9.9.1"), mtu=1450, bridge=BRIDGE))
    ports = [(_mac(number), f"10.{number >> 8 & 255}.{number & 255}.2") for number in range(PORTS)]
    entries = Entries(
        tunnels=frozenset((mac, "10.9.9.2") for mac, _ in ports),
        forwards=frozenset(mac for mac, _ in ports),
        neighbours=frozenset((address, mac) for mac, address in ports),
    )
    ours, removed = _timed(entries), _count()
    fdb = [f"fdb replace {mac} dev {VXLAN} dst 10.9.9.2 self master static" for mac, _ in ports]
    neighbours = [f"neigh replace {address} lladdr {mac} nud permanent dev {VXLAN}" for mac, address in ports]
    theirs = _batch("bridge", fdb) + _batch("ip", neighbours)
    if not _count() == removed >= PORTS:
        raise RuntimeError(f"the driver made {removed} entries, iproute2 {_count()}")
    figure = Figure(
        name=f"{2 * PORTS:,} FDB + neighbour entries", figure=ours, unit="ms", budget=BUDGET_MS,
        beside="bridge -batch and ip -batch", beside_figure=theirs,
    )  # fmt: skip
    sys.stdout.buffer.write(msgspec.json.encode([figure]))


def _timed(entries: Entries) -> float:
    """Add all entries, twice from nothing; leave none. Return the better of two times in milliseconds."""
    took = []
    for _ in range(2):
        netlink.change_entries(VXLAN, entries, Entries())
        began = time.perf_counter()
        netlink.change_entries(VXLAN, Entries(), entries)
        took.append((time.perf_counter() - began) * 1000)
    return min(took)


def _batch(tool: str, lines: list[str]) -> float:
    began = time.perf_counter()
    run([tool, "-force", "-batch", "-"], stdin="\n".join(lines) + "\n", timeout_s=120)
    return (time.perf_counter() - began) * 1000


def _count() -> int:
    return sum("static" in line or "sticky" in line for line in run(["bridge", "fdb", "show"]).splitlines())


def _mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8 & 255:02x}:{number & 255:02x}"


if __name__ == "__main__":
    main()
