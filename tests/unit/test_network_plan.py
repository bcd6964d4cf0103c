"""The planner of networks, on a modelled host: it ends, from wherever it starts, at what was wished."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers import dhcp
from agent.drivers.dhcp import Lease, Served
from agent.drivers.links import GATEWAY_MAC, Entries, Pins, Segment, Tap, Tunnel
from agent.kinds import network_plan as planner
from agent.kinds.network_plan import AnyStep, Place, Seen, plan
from agent.kinds.unit import Do, Settled, UnitKey, Wait, Wish
from common import names
from common.documents import AnyDoc, Desired, NetworkDoc, PortDoc, key_of
from common.ids import HostId, Id, Revision, new_id

HERE, THERE = HostId(new_id("host")), HostId(new_id("host"))
PLACE = Place(host=HERE, underlay="10.77.0.11", run_dir=Path("/run/skerry-agent"))
NET = new_id("net")
NETWORK = NetworkDoc(id=NET, vni=7, cidr="10.20.0.0/24", gateway="10.20.0.1", mtu=1450, domain="lan.acme.internal")
BRIDGE = names.bridge(NET)


def port(number: int, host: HostId, vtep: str = "10.77.0.12") -> PortDoc:
    vm = Id(f"vm-00000000000{number}")
    return PortDoc(
        vm=vm, index=0, network=NET, mac=names.mac(vm, 0), address=f"10.20.0.{number + 1}", hostname=f"vm{number}",
        host=host, vtep=vtep,
    )  # fmt: skip


LOCAL, REMOTE = port(1, HERE), port(2, THERE)
TAP = names.tap(LOCAL.vm, 0)


def wish(*docs: AnyDoc, gone: tuple[AnyDoc, ...] = ()) -> Wish:
    items = [Desired(key=key_of(doc), revision=Revision(5), doc=doc) for doc in docs]
    items += [Desired(key=key_of(doc), revision=Revision(6), doc=doc, gone=True) for doc in gone]
    return Wish(unit=UnitKey(f"network/{NET}"), items={item.key: item for item in items}, marks={})


def changed(seen: Seen, **fields: object) -> Seen:
    """Return `seen` with another segment."""
    return msgspec.structs.replace(seen, segment=msgspec.structs.replace(seen.segment, **fields))


def applied(step: AnyStep, seen: Seen) -> Seen:  # noqa: PLR0912 - one case per step
    """What the world looks like after a step."""
    segment, served = seen.segment, seen.served
    match step:
        case planner.EnsureBridge(bridge=bridge):
            return changed(seen, bridge=bridge)
        case planner.EnsureVxlan(vxlan=vxlan):
            return changed(seen, vxlan=vxlan)
        case planner.EnsureNamespace():
            return changed(seen, namespace=4711, half_namespace=False)
        case planner.EnsureGateway(outer=outer, inner=inner):
            return changed(seen, outer=outer, inner=inner, inner_device=3)
        case planner.PlugTaps(taps=taps):
            plugged = {tap: Tap(bridge=BRIDGE, up=True) for tap in taps}
            return changed(seen, taps={**segment.taps, **plugged})
        case planner.ChangeEntries(remove=remove, add=add):
            return changed(seen, entries=entries_after(segment.entries, remove, add))
        case planner.ChangePins(remove=gone, add=new):
            forwards = segment.pins.forwards - gone.forwards | new.forwards
            neighbours = segment.pins.neighbours - gone.neighbours | new.neighbours
            return changed(seen, pins=Pins(forwards=forwards, neighbours=neighbours))
        case planner.EnsureDnsmasq(files=files, device=device):
            served = Served(
                running=True, conf=files.conf_digest, hosts=files.hosts_digest, device=device, leases=served.leases,
                leftovers=True,
            )  # fmt: skip
            return msgspec.structs.replace(seen, served=served)
        case planner.ReleaseLeases(leases=leases):
            return msgspec.structs.replace(seen, served=msgspec.structs.replace(served, leases=served.leases - leases))
        case planner.EnsureMetadataListener():
            return msgspec.structs.replace(seen, listener=segment.namespace)
        case planner.RemoveMetadataListener():
            return msgspec.structs.replace(seen, listener=None)
        case planner.RemoveDnsmasq():
            return msgspec.structs.replace(seen, served=Served())
        case planner.RemoveNamespace():
            return changed(seen, namespace=None, half_namespace=False, inner=None, inner_device=0)
        case planner.RemoveDevice(device=device) if device == names.vxlan(NET):
            return changed(seen, vxlan=None, entries=Entries())
        case planner.RemoveDevice(device=device) if device == BRIDGE:
            return changed(seen, bridge=None)
        case planner.RemoveDevice():
            return changed(seen, outer=None, inner=None, inner_device=0)
    raise AssertionError(step)


def entries_after(seen: Entries, remove: Entries, add: Entries) -> Entries:
    """As the kernel does it: adding replaces what was there for the same MAC or address."""
    tunnels = dict(seen.tunnels - remove.tunnels) | dict(add.tunnels)
    neighbours = dict(seen.neighbours - remove.neighbours) | dict(add.neighbours)
    return Entries(
        tunnels=frozenset(tunnels.items()),
        forwards=seen.forwards - remove.forwards | add.forwards,
        neighbours=frozenset(neighbours.items()),
    )


def carry_out(wanted: Wish, seen: Seen) -> tuple[list[str], Seen, Settled | Wait]:
    """Take steps until there is nothing to do: their names, the world then, and the last word."""
    steps: list[str] = []
    while len(steps) < 30:
        outcome = plan(wanted, seen, PLACE)
        if not isinstance(outcome, Do):
            return steps, seen, outcome
        steps.append(type(outcome.step).__name__)
        seen = applied(outcome.step, seen)
    raise AssertionError(f"no end: {steps}")


LIVE = wish(NETWORK, LOCAL, REMOTE)
BUILT = carry_out(LIVE, Seen())[1]


def test_from_nothing_everything_is_built_in_the_order_of_dependence() -> None:
    steps, seen, last = carry_out(LIVE, Seen())
    assert steps == [
        "EnsureBridge", "EnsureVxlan", "EnsureNamespace", "EnsureGateway", "ChangeEntries", "ChangePins",
        "EnsureDnsmasq", "EnsureMetadataListener",
    ]  # fmt: skip
    assert isinstance(last, Settled)
    assert [(report.key, report.revision, report.done) for report in last.reports] == [
        (f"network/{NET}", 5, True), (f"port/{LOCAL.vm}.0", 5, True), (f"port/{REMOTE.vm}.0", 5, True)
    ]  # fmt: skip
    assert seen.segment.vxlan is not None
    assert seen.segment.vxlan.tunnel == Tunnel(vni=7, local="10.77.0.11")


def test_only_remote_ports_have_entries_and_only_local_ones_pins() -> None:
    assert BUILT.segment.entries == Entries(
        tunnels=frozenset({(REMOTE.mac, REMOTE.vtep)}),
        forwards=frozenset({REMOTE.mac}),
        neighbours=frozenset({(REMOTE.address, REMOTE.mac)}),
    )
    assert BUILT.segment.pins.neighbours == {(LOCAL.address, LOCAL.mac)}
    assert BUILT.segment.pins.forwards == {(names.gateway_outer(NET), GATEWAY_MAC)}


def test_a_plugged_tap_is_pinned() -> None:
    seen = changed(BUILT, taps={TAP: Tap(bridge=BRIDGE, up=True)})
    steps, after, _ = carry_out(LIVE, seen)
    assert steps == ["ChangePins"]
    assert (TAP, LOCAL.mac) in after.segment.pins.forwards


def test_a_tap_that_lost_its_bridge_is_plugged_in_again() -> None:
    steps, _, _ = carry_out(LIVE, changed(BUILT, taps={TAP: Tap(bridge="", up=True)}))
    assert steps[0] == "PlugTaps"


def test_a_tap_that_is_not_up_yet_is_left_to_libvirt() -> None:
    steps, _, last = carry_out(LIVE, changed(BUILT, taps={TAP: Tap(bridge="", up=False)}))
    assert "PlugTaps" not in steps
    assert isinstance(last, Settled)


def test_many_ports_are_one_step() -> None:
    ports = [port(number, THERE) for number in range(3, 9)]
    steps, _, _ = carry_out(wish(NETWORK, LOCAL, REMOTE, *ports), BUILT)
    assert steps == ["ChangeEntries", "EnsureDnsmasq"]


def test_a_tunnel_with_another_vni_is_made_anew() -> None:
    assert BUILT.segment.vxlan is not None
    other = msgspec.structs.replace(BUILT.segment.vxlan, tunnel=Tunnel(vni=8, local="10.77.0.11"))
    steps, _, _ = carry_out(LIVE, changed(BUILT, vxlan=other))
    assert steps == ["RemoveDevice", "EnsureVxlan", "ChangeEntries"]


def test_a_new_gateway_device_restarts_dnsmasq() -> None:
    steps, _, _ = carry_out(LIVE, changed(BUILT, inner_device=9))
    assert steps == ["EnsureDnsmasq"]


def test_a_listener_in_an_earlier_namespace_is_opened_anew() -> None:
    steps, _, _ = carry_out(LIVE, msgspec.structs.replace(BUILT, listener=1))
    assert steps == ["EnsureMetadataListener"]


def test_a_lease_of_no_local_port_is_released() -> None:
    kept = Lease(mac=LOCAL.mac, address=LOCAL.address)
    stale = Lease(mac=REMOTE.mac, address=REMOTE.address)
    served = msgspec.structs.replace(BUILT.served, leases=frozenset({kept, stale}))
    steps, after, _ = carry_out(LIVE, msgspec.structs.replace(BUILT, served=served))
    assert steps == ["ReleaseLeases"]
    assert after.served.leases == {kept}


def test_tombstoned_ports_take_their_entries_along() -> None:
    steps, after, last = carry_out(wish(NETWORK, gone=(LOCAL, REMOTE)), BUILT)
    assert steps == ["ChangeEntries", "ChangePins", "EnsureDnsmasq"]
    assert after.segment.entries == Entries()
    assert after.segment.pins.neighbours == frozenset()
    assert isinstance(last, Settled)
    assert all(report.done for report in last.reports)


def test_a_tombstoned_network_is_removed_altogether() -> None:
    steps, after, last = carry_out(wish(gone=(NETWORK, LOCAL, REMOTE)), BUILT)
    assert steps == ["RemoveMetadataListener", "RemoveDnsmasq", *["RemoveDevice"] * 3, "RemoveNamespace"]
    assert after.segment.bridge is after.segment.vxlan is after.segment.outer is after.segment.namespace is None
    assert isinstance(last, Settled)
    assert all(report.done for report in last.reports)


def test_a_tombstoned_network_waits_for_taps_and_names_them() -> None:
    seen = changed(BUILT, taps={TAP: Tap(bridge=BRIDGE, up=True)})
    steps, _, last = carry_out(wish(gone=(NETWORK, LOCAL)), seen)
    assert steps == []
    assert isinstance(last, Wait)
    assert TAP in last.message
    assert not any(report.done for report in last.reports)


def test_a_live_port_of_a_removed_network_is_not_done() -> None:
    _, _, last = carry_out(wish(LOCAL, gone=(NETWORK,)), Seen())
    assert isinstance(last, Settled)
    assert {report.key: report.done for report in last.reports} == {
        key_of(NETWORK): True,
        key_of(LOCAL): False,
    }


def test_absence_is_no_order_a_network_without_document_stays() -> None:
    steps, after, last = carry_out(wish(LOCAL), BUILT)
    assert steps == []
    assert after == BUILT
    assert isinstance(last, Wait)


def test_tombstoned_ports_go_even_without_their_network() -> None:
    steps, after, last = carry_out(wish(gone=(LOCAL, REMOTE)), BUILT)
    assert steps == ["ChangeEntries", "ChangePins"]
    assert after.segment.entries == Entries()
    assert isinstance(last, Settled)
    assert all(report.done for report in last.reports)


PAIRS = st.frozensets(st.sampled_from(range(6)), max_size=6).map(
    lambda chosen: {f"02:00:00:00:00:{number:02x}": f"10.20.0.{number}" for number in chosen}
)


@st.composite
def entries(draw: st.DrawFn) -> Entries:
    """Any entries that a kernel can show: one destination per MAC, one MAC per address."""
    tunnels = {mac: draw(st.sampled_from(("10.77.0.12", "10.77.0.13"))) for mac in draw(PAIRS)}
    neighbours = {address: draw(st.sampled_from((mac, "02:ff:ff:ff:ff:ff"))) for mac, address in draw(PAIRS).items()}
    return Entries(
        tunnels=frozenset(tunnels.items()), forwards=frozenset(draw(PAIRS)), neighbours=frozenset(neighbours.items())
    )


@given(seen=entries(), wanted=entries())
def test_the_difference_of_entries_leads_to_what_is_wanted_and_nothing_else(seen: Entries, wanted: Entries) -> None:
    remove, add = planner.entries_difference(seen, wanted)
    assert entries_after(seen, remove, add) == wanted
    assert planner.entries_difference(wanted, wanted) == (Entries(), Entries())


@given(data=st.data())
def test_from_any_mixture_of_built_and_missing_the_plan_settles(data: st.DataObject) -> None:
    """What a death or an accident can leave: each part there or not."""
    parts = {
        field: data.draw(st.sampled_from((getattr(BUILT.segment, field), getattr(Segment(), field))), label=field)
        for field in ("bridge", "vxlan", "namespace", "outer", "inner", "entries", "pins")
    }
    seen = Seen(
        segment=Segment(**parts, half_namespace=data.draw(st.booleans()), inner_device=data.draw(st.integers(0, 3))),
        served=data.draw(st.sampled_from((BUILT.served, Served(), Served(running=True), Served(leftovers=True)))),
        listener=data.draw(st.sampled_from((None, 4711, 1))),
    )
    _, built, last = carry_out(LIVE, seen)
    assert isinstance(last, Settled)
    assert built.segment.entries == BUILT.segment.entries
    assert built.listener == built.segment.namespace is not None
    _, after, last = carry_out(wish(gone=(NETWORK, LOCAL, REMOTE)), seen)
    assert isinstance(last, Settled)
    assert after.segment.bridge is after.segment.vxlan is after.segment.namespace is None


def test_dnsmasq_leases_to_local_ports_and_names_all() -> None:
    files = dhcp.files(NETWORK, [LOCAL], [LOCAL, REMOTE], Path("/run/x"))
    assert files.dhcp_hosts == f"{LOCAL.mac},10.20.0.2,vm1,1h\n"
    assert files.hosts == "10.20.0.2 vm1.lan.acme.internal vm1\n10.20.0.3 vm2.lan.acme.internal vm2\n"
    lines = files.conf.splitlines()
    assert "dhcp-range=10.20.0.0,static,255.255.255.0,1h" in lines
    assert "dhcp-option-force=option:mtu,1450" in lines
    assert "dhcp-option=option:classless-static-route,169.254.169.254/32,10.20.0.1,0.0.0.0/0,10.20.0.1" in lines
    assert "no-resolv" in lines


@pytest.mark.parametrize("other", [[REMOTE, LOCAL], [LOCAL, REMOTE]])
def test_the_order_of_ports_does_not_change_the_files(other: list[PortDoc]) -> None:
    assert dhcp.files(NETWORK, [LOCAL], other, Path("/r")) == dhcp.files(NETWORK, [LOCAL], [LOCAL, REMOTE], Path("/r"))
