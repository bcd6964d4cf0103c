"""Machines as the loop places them: from a queue row to the committed claims and its hosts' desired documents."""

import asyncio
import time
from collections.abc import Sequence

import msgspec

from common.clock import system_clock
from common.faults import Faults
from common.ids import Id
from controller.kinds import admission
from controller.kinds.admission import Context
from controller.loop.loop import Loop
from controller.store.rows import Change, Document, Put
from controller.store.store import Store
from tests.bench.books import OPERATOR, PROJECT, create, together
from tests.bench.figures import Figure
from tests.bench.placement import AT_ONCE, SIZES, disk_store, one_core, with_hosts

VMS = 5_000
IN_NETWORK = 4
"""Machines of a network: each host that has one of them also has a document for each of the others."""


async def measure(hosts: int) -> list[Figure]:
    """Admit machines while the loop stands still, then have it place all of them, on one core."""
    with one_core():
        async with disk_store() as store:
            loop = Loop(store, system_clock, Faults(), worker="ctl-bench")
            await with_hosts(store, loop.inventory, hosts)
            await _furnish(store)
            admitting = await _admit(store)
            placing, documents = await _place(store, loop)
    return [
        Figure(name="machines admitted in process, one core", figure=VMS / admitting, unit="/s"),
        Figure(
            name=f"queue row to claims and documents at {hosts:,} hosts, one core", figure=VMS / placing, unit="/s",
            beside="documents for each", beside_figure=documents / VMS,
        ),
    ]  # fmt: skip


async def _furnish(store: Store) -> None:
    await create(store, "project", PROJECT, {})
    for number, (vcpus, memory_mib, disk_gib) in enumerate(SIZES):
        spec: dict[str, object] = {"vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib}
        await create(store, "size", f"s{number}", spec)
    image = store.seen.get(await create(store, "image", "tiny", {"format": "kernel"}))
    assert image is not None
    uploaded = msgspec.structs.replace(image.spec, digest="sha256:" + "0" * 64, size_bytes=1 << 20)
    context = Context(seen=store.seen, caller=OPERATOR, now=system_clock())
    await store.admit(admission.record(context, image, uploaded, "upload"))
    names = (f"n{number}" for number in range(-(-VMS // IN_NETWORK)))
    await together(names, lambda name: create(store, "network", name, {"cidr": "10.0.0.0/24"}), AT_ONCE)


async def _admit(store: Store) -> float:
    """Return how long it took."""

    async def one(name: str) -> None:
        number = int(name.removeprefix("vm-"))
        spec: dict[str, object] = {"image": "tiny", "size": f"s{number % len(SIZES)}"}
        await create(store, "vm", name, spec | {"networks": [f"n{number // IN_NETWORK}"]})

    began = time.perf_counter()
    await together((f"vm-{number}" for number in range(VMS)), one, AT_ONCE)
    return time.perf_counter() - began


async def _place(store: Store, loop: Loop) -> tuple[float, int]:
    """Return how long it took until each machine and its disk had its document, and how many documents that made."""
    wanted, documents, done = set[str](), 0, asyncio.Event()

    def committed(changes: Sequence[Change], _poked: set[Id]) -> None:
        nonlocal documents
        for change in changes:
            if isinstance(change, Put) and isinstance(change.row, Document):
                documents += 1
                if change.row.key.startswith(("domain/", "volume/")):
                    wanted.add(change.row.key)
        if len(wanted) == 2 * VMS:
            done.set()

    store.listen(committed)
    began = time.perf_counter()
    turning = asyncio.create_task(loop.run())
    await done.wait()
    took = time.perf_counter() - began
    turning.cancel()
    await asyncio.wait([turning])
    return took, documents
