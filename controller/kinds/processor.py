"""The CPU that a machine's guest sees: chosen for each run from what hosts share, the same for as long as it runs."""

from collections.abc import Iterator

import msgspec

from common.cpus import CpuWish, level_of, named, needs_of
from common.documents import DomainDoc, DomainSeen, GuestCpu, key_of
from common.errors import Conflict
from common.ids import HostId
from common.kinds.kind import AnyResource
from controller.auth.caller import Caller, require_operator
from controller.kinds.growing import MEMORY_MOST_MIB
from controller.store.working import WorkingSet


def admit_cpu(row: AnyResource, was: AnyResource | None, seen: WorkingSet, caller: Caller) -> None:
    """Refuse all of a host's CPU to tenants, and a level that the host where it is does not reach."""
    wish = row.spec.cpu
    if was is not None and wish == was.spec.cpu:
        return
    if wish == "host":
        require_operator(caller, f"all of its host's CPU for vm {row.name}, which can't move then")
    placement = seen.placement(row.id)
    lacks = needs_of(wish) - (seen.processors.flags(placement.host) or frozenset()) if placement else frozenset()
    if placement and lacks:
        raise Conflict(
            f"vm {row.name} is on host {seen.name_of(placement.host)}, which can't give it a CPU of {wish}: it lacks "
            f"{named(lacks)}",
            fix="ask for less, or make a new machine with it: it is placed where that is to be had",
        )


def with_cpu(doc: DomainDoc, row: AnyResource, seen: WorkingSet, host: HostId) -> DomainDoc:
    """Return what a host is to make of a machine, with the CPU of its present run, or of its next one."""
    if seen.processors.flags(host) is None:
        return doc  # an older agent's link would end over the field
    before = _kept(doc, row, seen, host)
    cpu = before.cpu if before else _chosen(row, seen, host, doc.memory_mib)
    return msgspec.structs.replace(doc, cpu=cpu)


def _chosen(row: AnyResource, seen: WorkingSet, host: HostId, memory_mib: int) -> GuestCpu | None:
    """Return what a run that begins now sees; None: all that its host has."""
    wish: CpuWish = row.spec.cpu
    if wish == "host" or memory_mib > MEMORY_MOST_MIB:
        return None
    flags = seen.processors.shared(host, needs_of(wish))
    if flags is None:
        wish, flags = "shared", seen.processors.shared(host)
    return None if flags is None else GuestCpu(wish=wish, flags=tuple(sorted(flags)))


def _kept(doc: DomainDoc, row: AnyResource, seen: WorkingSet, host: HostId) -> DomainDoc | None:
    """Return the document of before, where it is of the same run: one that goes on, or can begin as it says."""
    found = seen.document(host, key_of(doc))
    before = found.doc if found and not found.gone else None
    if not isinstance(before, DomainDoc) or _run(before) != _run(doc):
        return None
    report = seen.report(host, key_of(doc))
    if report is None or (isinstance(report.seen, DomainSeen) and report.seen.state in ("running", "paused")):
        return before
    has = seen.processors.flags(host) or frozenset()
    return before if before.cpu and before.cpu.wish == row.spec.cpu and has.issuperset(before.cpu.flags) else None


def _run(doc: DomainDoc) -> tuple[str, int, int]:
    return doc.power, doc.start_generation, doc.boot_generation


def cpu_remarks(row: AnyResource, seen: WorkingSet, host: HostId, doc: DomainDoc) -> Iterator[str]:
    """Say where a machine that runs has another CPU than it is wished to have. One that was started by an older Skerry
    has all that its host has, and nobody asked for anything."""
    wish: CpuWish = row.spec.cpu
    if (doc.cpu is None and wish in ("shared", "host")) or (doc.cpu and doc.cpu.wish == wish):
        return
    has = _words(doc.cpu.wish if doc.cpu else "host")
    if doc.cpu is None and doc.memory_mib > MEMORY_MOST_MIB:
        yield f"its CPU is {has}: with more than {MEMORY_MOST_MIB >> 10} GiB of memory it can have no other"
    elif lacks := needs_of(wish) - (seen.processors.flags(host) or frozenset()):
        yield f"its CPU is {has}: host {seen.name_of(host)} can't give it one of {wish}, it lacks {named(lacks)}"
    else:
        yield f"its CPU is {has}; {_words(wish)} waits for a restart: skerry vm reboot {row.name}"


def cpu_words(doc: DomainDoc | None) -> str:
    """Say in few words what CPU a guest sees."""
    if doc is None:
        return ""
    if doc.cpu is None:
        return _words("host")
    return f"{_words(doc.cpu.wish)}: {level_of(frozenset(doc.cpu.flags))}, {len(doc.cpu.flags)} flags"


def _words(wish: CpuWish) -> str:
    match wish:
        case "shared":
            return "what all hosts share"
        case "host":
            return "all that its host has"
        case _:
            return f"what all hosts of {wish} share"
