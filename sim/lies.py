"""What a host says that has been taken over, or whose agent is broken: every message well formed, or not at all."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

import msgspec

from common.batches import cut
from common.codec import to_pack
from common.documents import DocKey, Report
from common.ids import HostId, Id, Revision
from common.protocol import (
    GuestMetrics,
    Hello,
    HostEvent,
    HostMetrics,
    Metrics,
    Reports,
    digest,
    reports_digest,
)
from controller.store.rows import Document
from controller.store.working import WorkingSet

Lie = Literal[
    "others' documents are done",
    "others' machines have crashed",
    "mine are all done",
    "mine are all gone",
    "mine all failed",
    "I have nothing",
    "I say it again",
    "of a time to come",
    "garbage",
    "others' machines cost much",
    "I am as you wish",
    "I am another machine",
]
LIES: tuple[Lie, ...] = get_args(Lie)

AT_HELLO: tuple[Lie, ...] = ("I am as you wish", "I am another machine")
"""Those that have to wait for the next hello."""

FAR = Revision(1 << 62)


def forged_hello(hello: Hello, lies: list[Lie], seen: WorkingSet) -> Hello:
    """Return the hello of a host that lies of itself: it agrees with whatever the controller has, or is bigger."""
    if "I am as you wish" in lies:
        lies.remove("I am as you wish")
        wanted = digest((one.key, one.revision) for one in seen.documents(hello.host))
        told = reports_digest(seen.host(hello.host).reports.values())
        hello = msgspec.structs.replace(hello, desired_digest=wanted, observed_digest=told)
    if "I am another machine" in lies:
        lies.remove("I am another machine")
        grown = msgspec.structs.replace(
            hello.inventory, cpu_threads=0, memory_mib=1 << 40, disk_gib=-1, boot_id="", kernel="", vtep="10.77.0.10"
        )
        hello = msgspec.structs.replace(hello, inventory=grown)
    return hello


def messages(lies: list[Lie], host: HostId, seen: WorkingSet, number: Callable[[], int]) -> Iterator[bytes]:
    """Tell the lies that are to be told now: whoever took a host over may know all that the controller knows."""
    own = tuple(seen.documents(host))
    others = [one for other in seen.of_kind("host") if other.id != host for one in seen.documents(HostId(other.id))]
    machines = sorted({Id(one.key.partition("/")[2]) for one in others if one.key.startswith("domain/")})
    now: list[Lie] = [lie for lie in lies if lie not in AT_HELLO]
    for lie in now:
        lies.remove(lie)
        match lie:
            case "others' documents are done":
                yield from _reports(number, [_of(one, done=True, revision=FAR) for one in others])
            case "others' machines have crashed":
                for vm in machines:
                    yield to_pack(HostEvent(at=0.0, subject=f"domain/{vm}", action="crashed" * 50, message="x" * 9999))
            case "mine are all done" | "mine are all gone":
                gone = lie == "mine are all gone"
                yield from _reports(
                    number, [_of(one, done=True, revision=FAR if gone else one.revision) for one in own]
                )
            case "mine all failed":
                yield from _reports(number, [_of(one, done=False, problem="on fire " * 99) for one in own])
            case "I have nothing":
                yield to_pack(Reports(number=number(), reports=(), full=True))
            case "I say it again":
                yield to_pack(Reports(number=1, reports=()))
            case "of a time to come":
                yield from _reports(number, [_of(one, done=True, revision=FAR) for one in own])
            case "garbage":
                yield b"\xc1" + bytes(range(64))
            case "others' machines cost much":
                load = HostMetrics(-1.0, 1 << 60, float("inf"), float("nan"), -5, -5, -1.0, 1 << 30)
                guests = tuple(GuestMetrics(vm, 1 << 60, 1 << 60, -1, -1, -1, -1) for vm in machines)
                yield to_pack(Metrics(at=-1.0, host=load, guests=guests))
            case _:
                raise AssertionError(f"{lie} is told at the hello")


def _of(one: Document, *, done: bool, revision: Revision | None = None, problem: str = "") -> Report:
    return Report(key=DocKey(one.key), revision=revision or one.revision, done=done, problem=problem)


def _reports(number: Callable[[], int], reports: Iterable[Report]) -> Iterator[bytes]:
    for group in cut(reports):
        yield to_pack(Reports(number=number(), reports=group))
