"""A machine that runs is given what it is to have more, as far as it was started with room for that."""

import xml.etree.ElementTree as ET
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.hypervisor import LiveDomain
from agent.drivers.live_room import Most, memory_xml, most
from agent.kinds.domain_growth import AddCpus, AddMemory, Refused, room_of
from agent.kinds.domain_plan import plan
from agent.kinds.domain_xml import domain_xml
from agent.kinds.unit import Do, Settled
from common.documents import DomainDoc, DomainSeen
from common.growth import MEMORY_SLOTS, Room, cpus_wait, memory_waits
from tests.unit.test_domain_plan import BOOT, PLACE, VM, doc, live, view, wish

ROOM = Most(4, 4096, 16)
AMOUNTS = st.integers(0, 12)
RUNS = st.builds(
    Room,
    vcpus=st.integers(1, 4),
    memory_mib=st.integers(1, 4).map(lambda one: one * 512),
    vcpus_max=AMOUNTS,
    memory_max_mib=AMOUNTS.map(lambda one: one * 512),
    slots=st.integers(0, 2),
)


def running(vcpus: int = 1, memory_mib: int = 1024, room: Most = ROOM) -> LiveDomain:
    return live(doc(), vcpus=vcpus, memory_mib=memory_mib, balloon_mib=memory_mib, most=room)


def planned(of: DomainDoc, domain: LiveDomain, **seen: Any) -> Any:
    return plan(wish(of), view(domain, **seen), 1000)


def test_vcpus_come_first_then_memory_then_it_is_as_wished() -> None:
    wanted = doc(vcpus=3, memory_mib=1536)
    first = planned(wanted, running())
    assert first == Do(AddCpus(vm=VM, vcpus=3), "giving it 2 more vCPUs while it runs")
    then = planned(wanted, running(vcpus=3))
    assert then == Do(AddMemory(vm=VM, memory_mib=512), "giving it 512 MiB more memory while it runs")
    done = planned(wanted, running(vcpus=3, memory_mib=1536, room=Most(4, 4096, 15)))
    assert isinstance(done, Settled)
    seen = done.reports[0].seen
    assert isinstance(seen, DomainSeen)
    assert (seen.vcpus, seen.memory_mib, seen.vcpus_max, seen.memory_slots) == (3, 1536, 4, 15)


@given(RUNS, st.integers(1, 12), st.integers(1, 60).map(lambda one: one * 64))
def test_it_is_given_more_exactly_where_nothing_says_that_it_has_to_wait(
    run: Room, vcpus: int, memory_mib: int
) -> None:
    domain = running(run.vcpus, run.memory_mib, Most(run.vcpus_max, run.memory_max_mib, run.slots))
    assert room_of(domain) == run
    outcome = planned(doc(vcpus=vcpus, memory_mib=memory_mib), domain)
    waits = (cpus_wait(run, vcpus), memory_waits(run, memory_mib))
    match outcome:
        case Do(AddCpus(vcpus=given)):
            assert (given, waits[0]) == (vcpus, "")
            assert run.vcpus < given <= run.vcpus_max
        case Do(AddMemory(memory_mib=more)):
            assert waits[1] == ""
            assert run.memory_mib + more == memory_mib <= run.memory_max_mib
            assert run.slots
        case _:
            assert isinstance(outcome, Settled)
            assert run.vcpus == vcpus or waits[0]
            assert run.memory_mib == memory_mib or waits[1]


def test_what_the_host_refuses_is_said_and_tried_again_after_a_while() -> None:
    wanted, refused = doc(vcpus=2, memory_mib=1024), Refused(at=990, said="no")
    outcome = planned(wanted, running(), ungrown=refused)
    assert isinstance(outcome, Settled)
    assert outcome.reports[0].seen.note == "its host could not give it more while it runs: no"  # type: ignore[union-attr]
    assert isinstance(planned(wanted, running(), ungrown=Refused(at=900, said="no")), Do)
    grown = planned(wanted, running(vcpus=2), ungrown=refused)
    assert grown.reports[0].seen.note == ""


def test_a_definition_has_room_for_more_and_what_runs_tells_of_it() -> None:
    text = domain_xml(doc(memory_mib=1024, vcpus_max=4, memory_max_mib=4096), PLACE, BOOT).text
    root = ET.fromstring(text)
    assert (root.findtext("vcpu"), root.find("vcpu").get("current")) == ("4", "1")  # type: ignore[union-attr]
    cell = root.find("cpu/numa/cell")
    assert cell is not None
    assert (cell.get("cpus"), cell.get("memory")) == ("0-3", "1024")
    assert most(text) == Most(4, 4096, MEMORY_SLOTS)
    plugged = text.replace("<devices>", f"<devices>{memory_xml(512)}")
    assert most(plugged) == Most(4, 4096, MEMORY_SLOTS - 1)


def test_without_room_it_is_defined_as_ever() -> None:
    text = domain_xml(doc(vcpus=2), PLACE, BOOT).text
    assert "<numa" not in text
    assert most(text) == Most(2, 0, 0)
