"""A VM's whole life, one step at a time: placed, given a disk and a document, followed, destroyed, forgotten."""

import msgspec
import pytest

from common.documents import DomainDoc, DomainSeen
from common.errors import Conflict, Denied, Invalid
from common.ids import HostId
from common.kinds import kind_named
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import AnyResource, Role
from common.names import mac
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import NewResource
from controller.kinds.outcome import Do, Done, Place, Wait
from controller.kinds.vm import plan
from controller.store.writes import ClaimAddress, CreateChild, DeleteChild, ForgetHost, Poke, PutDocument, Tombstone
from tests.kinds.bench import READY, RUNNING, Bench, volume_of


async def asked(bench: Bench, **spec: object) -> tuple[AnyResource, HostId]:
    """Return a VM that was just admitted, and a host for it."""
    await bench.furniture()
    host = await bench.connected_host("h1")
    return await bench.create("vm", "shop", "web", **{"image": "tiny", "size": "small"} | spec), host


async def running(bench: Bench, **spec: object) -> tuple[AnyResource, HostId]:
    """Return a VM that runs."""
    vm, host = await asked(bench, **spec)
    await bench.rest(vm, host)
    await bench.rest(bench.named("volume", "web"))
    bench.report(host, f"volume/{volume_of(vm)}", seen=READY)
    bench.report(host, f"domain/{vm.id}", seen=RUNNING)
    return vm, host


def document(bench: Bench, vm: AnyResource, host: HostId) -> DomainDoc:
    doc = bench.documents(host)[f"domain/{vm.id}"].doc  # type: ignore[index]
    assert isinstance(doc, DomainDoc)
    return doc


# --- coming to be -------------------------------------------------------------------------------------------------


async def test_the_first_step_claims_a_host_and_every_address_at_once(bench: Bench) -> None:
    await bench.furniture()
    back = await bench.create("network", "shop", "back", cidr="10.30.0.0/24")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small", networks=["default", "back"])
    default = bench.named("network", "default")
    outcome = bench.plan(vm)
    assert isinstance(outcome, Place)
    assert (outcome.demand.vcpus, outcome.demand.memory_mib, outcome.demand.disk_gib) == (2, 512, 10)
    assert (outcome.demand.owner, outcome.demand.host, outcome.demand.size) == (vm.id, None, "small")
    assert outcome.writes == (
        ClaimAddress(network=default.id, cidr="10.20.0.0/24", vm=vm.id, index=0, mac=mac(vm.id, 0)),
        ClaimAddress(network=back.id, cidr="10.30.0.0/24", vm=vm.id, index=1, mac=mac(vm.id, 1)),
        Poke(resource=default.id),
        Poke(resource=back.id),
    )


async def test_the_life_of_a_vm_step_by_step(bench: Bench) -> None:
    vm, host = await asked(bench)
    assert isinstance(await bench.step(vm, host), Place)
    disk = await bench.step(vm)
    assert isinstance(disk, Do)
    (child,) = disk.writes
    assert isinstance(child, CreateChild)
    assert (child.id, child.owner, child.name) == (volume_of(vm), vm.id, "web")
    assert (child.spec.size_gib, child.spec.host) == (10, host)  # type: ignore[attr-defined]
    told = await bench.step(vm)
    assert isinstance(told, Do)
    assert [type(write) for write in told.writes] == [PutDocument]
    assert told.say == "asking host h1"
    waiting = bench.plan(vm)
    assert isinstance(waiting, Wait)
    assert waiting.message == "host h1 works on it"
    bench.report(host, f"domain/{vm.id}", seen=RUNNING)
    assert isinstance(bench.plan(vm), Wait)
    await bench.rest(bench.named("volume", "web"))
    bench.report(host, f"volume/{volume_of(vm)}", seen=READY)
    done = bench.plan(vm)
    assert isinstance(done, Done)
    assert done.status == msgspec.structs.replace(
        vm.status,
        state="running",
        host="h1",
        addresses=("10.20.0.2",),
        boot_generation=1,
        started_at=1.0,
        disk_gib=10,
        cpu="all that its host has",
    )


async def test_the_document_holds_all_that_the_host_needs(bench: Bench) -> None:
    await bench.furniture()
    await bench.create("keypair", "shop", "me", public_key="ssh-ed25519 AAAA me")
    host = await bench.connected_host("h1")
    vm = await bench.create(
        "vm", "shop", "web", image="tiny", size="small", keypairs=["me"], user_data="#!/bin/sh", nocloud=True
    )
    await bench.rest(vm, host)
    doc = document(bench, vm, host)
    assert (doc.vcpus, doc.memory_mib, doc.volumes, doc.kernel) == (2, 512, (volume_of(vm),), None)
    (nic,) = doc.nics
    assert (nic.network, nic.mac, nic.mtu) == (bench.named("network", "default").id, mac(vm.id, 0), 1450)
    assert doc.metadata.public_keys == (("me", "ssh-ed25519 AAAA me"),)
    assert (doc.metadata.user_data, doc.metadata.host, doc.nocloud) == ("#!/bin/sh", "h1", True)
    assert (doc.power, doc.start_generation, doc.boot_generation) == ("running", 1, 1)


async def test_it_waits_for_its_images_bytes(bench: Bench) -> None:
    await bench.furniture()
    await bench.create("image", "shop", "empty")
    vm = await bench.create("vm", "shop", "web", image="empty", size="small")
    outcome = bench.plan(vm)
    assert isinstance(outcome, Wait)
    assert outcome.status.state == "waiting"
    assert outcome.message == "image empty has no content yet: skerry image upload empty FILE"
    await bench.fill(bench.named("image", "empty"))
    assert isinstance(bench.plan(vm), Place)


async def test_a_pinned_vm_asks_for_its_host_only(bench: Bench) -> None:
    vm, host = await asked(bench, host="h1")
    outcome = bench.plan(vm)
    assert isinstance(outcome, Place)
    assert outcome.demand.host == host


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"message": "making the disk"}, "making the disk"),
        ({"problem": "no room", "message": "making the disk"}, "no room"),
        ({}, "host h1 works on it"),
    ],
)
async def test_what_the_host_says_is_shown(bench: Bench, said: dict[str, str], shown: str) -> None:
    vm, host = await asked(bench)
    await bench.rest(vm, host)
    bench.report(host, f"domain/{vm.id}", done=False, progress=0.25, **said)  # type: ignore[arg-type]
    outcome = bench.plan(vm)
    assert isinstance(outcome, Wait)
    assert (outcome.message, outcome.progress) == (shown, 0.25)


async def test_the_word_on_an_older_document_does_not_count(bench: Bench) -> None:
    vm, host = await running(bench)
    assert isinstance(bench.plan(vm), Done)
    bench.report(host, f"domain/{vm.id}", seen=RUNNING, behind=1)
    assert isinstance(bench.plan(vm), Wait)


# --- being changed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "power", "start", "boot"),
    [("stop", "stopped", 1, 1), ("start", "running", 2, 1), ("reboot", "running", 1, 2)],
)
async def test_a_verb_becomes_a_new_document(bench: Bench, verb: str, power: str, start: int, boot: int) -> None:
    vm, host = await running(bench)
    what = next(one for one in kind_named("vm").verbs if one.name == verb)
    await bench.store.admit(admission.verb(bench.context, bench.now(vm), what))
    outcome = await bench.step(vm)
    assert isinstance(outcome, Do)
    doc = document(bench, vm, host)
    assert (doc.power, doc.start_generation, doc.boot_generation) == (power, start, boot)
    waiting = bench.plan(vm)
    assert isinstance(waiting, Wait)
    assert waiting.status.state == ("stopping" if verb == "stop" else "starting")


@pytest.mark.parametrize(
    ("seen", "state", "message"),
    [
        ("running", "running", ""),
        ("stopped", "stopped", ""),
        ("stopped-by-guest", "stopped", "the guest powered itself off: skerry vm start web"),
        ("crashed", "crashed", ""),
        ("paused", "paused", ""),
    ],
)
async def test_the_status_is_what_the_host_sees(bench: Bench, seen: str, state: str, message: str) -> None:
    vm, host = await running(bench)
    domain = DomainSeen(state=seen, start_generation=1, boot_generation=1, started_at=0)  # type: ignore[arg-type]
    bench.report(host, f"domain/{vm.id}", seen=domain)
    outcome = bench.plan(vm)
    assert isinstance(outcome, Done)
    assert (outcome.status.state, outcome.status.message) == (state, message)


async def test_a_silent_host_is_named_and_the_last_state_kept(bench: Bench) -> None:
    vm, host = await running(bench)
    done = bench.plan(vm)
    assert isinstance(done, Done)
    row = msgspec.structs.replace(bench.now(vm), status=done.status, observed_generation=1)
    bench.store.seen.host(host).connected = False
    outcome = plan(row, bench.store.seen, bench.clock.now)
    assert isinstance(outcome, Wait)
    assert outcome.status.state == "running"
    assert outcome.message.startswith("host h1 has not been connected since ")


async def test_planning_at_rest_changes_nothing(bench: Bench) -> None:
    vm, _ = await running(bench)
    revision = bench.store.seen.revision
    for _ in range(3):
        assert isinstance(await bench.rest(vm), Done)
    assert bench.store.seen.revision == revision


# --- going --------------------------------------------------------------------------------------------------------


async def test_domain_then_volume_then_claims_then_the_row(bench: Bench) -> None:
    vm, host = await running(bench)
    await bench.delete(vm)
    bury = await bench.step(vm)
    assert isinstance(bury, Do)
    assert bury.writes == (Tombstone(host=host, key=f"domain/{vm.id}"),)  # type: ignore[arg-type]
    waiting = bench.plan(vm)
    assert isinstance(waiting, Wait)
    assert waiting.message == "host h1 destroys it"
    await bench.destroyed(host)
    children = await bench.step(vm)
    assert isinstance(children, Do)
    assert children.writes == (DeleteChild(id=volume_of(vm)),)
    assert isinstance(bench.plan(vm), Wait)
    assert bench.store.seen.placement(vm.id) is not None
    await bench.buried([bench.named("volume", "web")], [host])
    last = await bench.step(vm)
    assert isinstance(last, Do)
    assert last.say == "giving back what it had"
    seen = bench.store.seen
    assert (seen.get(vm.id), seen.placement(vm.id), seen.addresses(vm.id)) == (None, None, ())


@pytest.mark.parametrize("steps", range(6))
async def test_delete_wins_from_every_state(bench: Bench, steps: int) -> None:
    vm, host = await asked(bench)
    for _ in range(steps):
        await bench.step(vm, host)
    await bench.delete(vm)
    await bench.buried([vm], [host])
    seen = bench.store.seen
    assert seen.placement(vm.id) is None
    assert not list(seen.of_kind("volume"))
    assert not [one for one in seen.documents(host) if one.owner == vm.id]


async def test_a_lost_host_keeps_a_deletion_waiting_until_it_is_deleted_itself(bench: Bench) -> None:
    vm, host = await running(bench)
    bench.store.seen.host(host).connected = False
    await bench.delete(vm)
    outcome = await bench.rest(vm)
    assert isinstance(outcome, Wait)
    assert outcome.message.endswith("it is destroyed when the host is back, or when the host is deleted")
    row = bench.store.seen.get(host)
    assert row is not None
    await bench.delete(row)
    await bench.write(ForgetHost(host=host))
    await bench.buried([vm, row], [])
    assert bench.store.seen.get(host) is None


# --- being refused ------------------------------------------------------------------------------------------------


async def test_a_network_named_twice_is_refused(bench: Bench) -> None:
    await bench.furniture()
    with pytest.raises(Invalid, match="a network is named twice"):
        bench.admit_create("vm", "shop", "web", image="tiny", size="small", networks=["default", "default"])


async def test_a_disk_too_small_for_its_image_is_refused_with_the_size_it_takes(bench: Bench) -> None:
    await bench.furniture()
    await bench.create("size", "", "nano", vcpus=1, memory_mib=64, disk_gib=1)
    with pytest.raises(Invalid) as refused:
        bench.admit_create("vm", "shop", "web", image="tiny", size="nano")
    assert refused.value.detail == "vm web has a disk of 1 GiB (size nano); image tiny needs 2"
    assert refused.value.fix == "use a size with a disk of 2 GiB or more"


async def test_only_operators_pin(bench: Bench) -> None:
    await bench.furniture()
    await bench.connected_host("h1")
    member = built_in("shop/ci", "shop", Role.MEMBER, bench.context.caller.request, DEFAULT_DOMAIN)
    context = msgspec.structs.replace(bench.context, caller=member)
    body = NewResource(name="web", spec={"image": "tiny", "size": "small", "host": "h1"})
    with pytest.raises(Denied, match="pinning vm web to a host is for the cloud's operators"):
        admission.create(context, kind_named("vm"), "shop", body)


async def test_what_a_vm_uses_can_not_go_before_it(bench: Bench) -> None:
    vm, _ = await running(bench)
    for kind, name, project in (("image", "tiny", "shop"), ("network", "default", "shop"), ("size", "small", "")):
        with pytest.raises(Conflict, match=rf"{kind} {name} is used by vm (shop/)?web"):
            await bench.delete(bench.named(kind, name, project))
    await bench.delete(vm)
    await bench.delete(bench.named("image", "tiny"))
