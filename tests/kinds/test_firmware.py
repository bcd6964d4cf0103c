"""What a VM starts with: asked for, placed where it is to be had, refused in words where not, and shown."""

import msgspec
import pytest

from common.codec import to_pack
from common.documents import DomainDoc, DomainSeen
from common.errors import Conflict, Invalid
from common.firmware import SECURE_BOOT, TPM, UEFI
from common.ids import HostId
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from common.protocol import CPU_MODEL, Capability
from common.refusal import Refusal
from controller.kinds import admission
from controller.kinds.host import traits_of
from controller.kinds.outcome import Done, Place
from controller.scheduler.choose import Choice
from controller.scheduler.inventory import Inventory as Hosts
from controller.store.rows import Traits
from tests.kinds.bench import READY, Bench, inventory


async def a_host(bench: Bench, name: str, *can: str) -> HostId:
    host = await bench.connected_host(name)
    capabilities = tuple(Capability(name=one, works=True) for one in can)
    bench.store.seen.host(host).inventory = inventory(capabilities=capabilities)
    await bench.rest(bench.named("host", name, ""))
    return host


def chosen(bench: Bench, vm: AnyResource) -> Choice | Refusal:
    hosts = Hosts(bench.store.seen)
    for row in bench.store.seen.of_kind("host"):
        hosts.refresh(HostId(row.id))
    place = bench.plan(vm)
    assert isinstance(place, Place)
    return hosts.would_choose(place.demand)


async def a_vm(bench: Bench, host: HostId, **spec: object) -> AnyResource:
    vm = await bench.create("vm", "shop", "web", size="small", **{"image": "tiny", **spec})
    for _ in range(3):
        for child in bench.store.seen.children(vm.id):
            await bench.rest(child)
        await bench.rest(vm, host)
    return vm


def doc(bench: Bench, host: HostId, vm: AnyResource) -> DomainDoc:
    found = bench.documents(host)[f"domain/{vm.id}"].doc  # type: ignore[index]
    assert isinstance(found, DomainDoc)
    return found


async def runs(bench: Bench, host: HostId, vm: AnyResource, **started: object) -> Done:
    """Have the host say that it runs, started so, and return what the controller makes of it."""
    seen = DomainSeen(state="running", start_generation=1, boot_generation=1, started_at=1.0, vcpus=2, memory_mib=512)
    bench.report(host, f"domain/{vm.id}", seen=msgspec.structs.replace(seen, **started))
    for child in bench.store.seen.children(vm.id):
        bench.report(host, f"volume/{child.id}", seen=READY)
        await bench.seen_through(child)
    done = await bench.rest(vm, host)
    assert isinstance(done, Done)
    return done


async def ask(bench: Bench, vm: AnyResource, verb: str, **takes: object) -> None:
    what = next(one for one in kind_named("vm").verbs if one.name == verb)
    await bench.store.admit(admission.verb(bench.context, bench.now(vm), what, takes))


@pytest.fixture
async def furnished(bench: Bench) -> Bench:
    await bench.furniture()
    return bench


@pytest.mark.parametrize(
    ("spec", "fits"),
    [
        ({}, "h1"),
        ({"firmware": "uefi"}, "h2"),
        ({"firmware": "uefi-secure"}, "h3"),
        ({"tpm": True}, "h4"),
    ],
)
async def test_it_is_placed_where_that_is_to_be_had(furnished: Bench, spec: dict[str, object], fits: str) -> None:
    hosts = {"h1": (), "h2": (UEFI,), "h3": (SECURE_BOOT,), "h4": (TPM,)}
    ids = {name: await a_host(furnished, name, *can) for name, can in hosts.items()}
    vm = await furnished.create("vm", "shop", "web", image="tiny", size="small", **spec)
    choice = chosen(furnished, vm)
    assert isinstance(choice, Choice)
    assert choice.host == ids[fits]


async def test_where_no_host_has_it_the_refusal_says_what_is_missing_and_what_to_install(furnished: Bench) -> None:
    await a_host(furnished, "h1", UEFI)
    await a_host(furnished, "h2")
    vm = await furnished.create("vm", "shop", "web", image="tiny", size="small", firmware="uefi-secure", tpm=True)
    refusal = chosen(furnished, vm)
    assert isinstance(refusal, Refusal)
    assert {(cost.constraint, cost.hosts, cost.detail) for cost in refusal.costs} == {
        ("secure-boot", 2, "hosts without firmware for Secure Boot"),
        ("tpm", 2, "hosts without TPMs for guests"),
    }
    assert refusal.smallest_change == (
        "on host h1: apt-get install ovmf, then systemctl restart skerry-agent and "
        "on host h1: apt-get install swtpm-tools, then systemctl restart skerry-agent"
    )


async def test_its_host_is_told_and_one_that_asks_for_nothing_sends_no_field_that_an_older_agent_lacks(
    furnished: Bench,
) -> None:
    host = await a_host(furnished, "h1", UEFI, SECURE_BOOT, TPM)
    plain = await a_vm(furnished, host)
    sent = msgspec.msgpack.decode(to_pack(doc(furnished, host, plain)))
    assert not {"firmware", "tpm"} & set(sent)
    changed = await furnished.change(plain, firmware="uefi-secure", tpm=True)
    await furnished.rest(changed, host)
    found = doc(furnished, host, plain)
    assert (found.firmware, found.tpm) == ("uefi-secure", True)


async def test_what_its_host_can_not_give_is_refused_and_what_it_asked_for_before_is_not(furnished: Bench) -> None:
    host = await a_host(furnished, "h1", TPM)
    vm = await a_vm(furnished, host, tpm=True)
    with pytest.raises(Conflict, match="vm web is on host h1, which is without UEFI for guests") as refused:
        await furnished.change(vm, firmware="uefi")
    assert "apt-get install ovmf" in refused.value.fix
    furnished.store.seen.host(host).inventory = inventory(capabilities=(Capability(name=TPM, works=False),))
    await furnished.rest(furnished.named("host", "h1", ""))
    await furnished.change(vm, stop_grace_s=1)
    await furnished.change(vm, tpm=False)


async def test_a_change_waits_for_a_restart_and_says_so(furnished: Bench) -> None:
    host = await a_host(furnished, "h1", UEFI, SECURE_BOOT, TPM)
    vm = await a_vm(furnished, host, firmware="uefi")
    done = await runs(furnished, host, vm, firmware="uefi")
    assert (done.status.firmware, done.status.message) == ("UEFI", "")  # type: ignore[attr-defined]
    await furnished.change(vm, firmware="uefi-secure", tpm=True)
    await furnished.rest(vm, host)
    done = await runs(furnished, host, vm, firmware="uefi")
    assert done.status.message == (
        "it was started with UEFI; UEFI with Secure Boot, TPM 2.0 waits for a restart: skerry vm reboot web"
    )
    done = await runs(furnished, host, vm, firmware="uefi-secure", tpm=True)
    assert (done.status.firmware, done.status.message) == ("UEFI with Secure Boot, TPM 2.0", "")  # type: ignore[attr-defined]


async def test_an_older_agent_that_says_nothing_of_it_is_not_said_to_lag(furnished: Bench) -> None:
    host = await a_host(furnished, "h1")
    vm = await a_vm(furnished, host)
    done = await runs(furnished, host, vm)
    assert (done.status.firmware, done.status.message) == ("", "")  # type: ignore[attr-defined]


async def test_a_bare_kernel_is_refused_under_secure_boot_also_for_a_rescue(furnished: Bench) -> None:
    host = await a_host(furnished, "h1", SECURE_BOOT)
    bare = await furnished.create("image", "shop", "bare", format="kernel")
    await furnished.fill(bare)
    words = "image bare is a bare kernel: only a signed boot loader"
    with pytest.raises(Invalid, match=words):
        await furnished.create("vm", "shop", "web", image="bare", size="small", firmware="uefi-secure")
    vm = await a_vm(furnished, host, firmware="uefi-secure")
    with pytest.raises(Invalid, match=words):
        await ask(furnished, vm, "rescue", image="bare")


async def test_a_machine_starts_as_its_image_needs_unless_it_asks_for_something_else(furnished: Bench) -> None:
    win = await furnished.create("image", "shop", "win", format="qcow2", firmware="uefi-secure", tpm=True)
    await furnished.fill(win)
    host = await a_host(furnished, "h1", UEFI, SECURE_BOOT, TPM)
    vm = await a_vm(furnished, host, image="win")
    assert (vm.spec.firmware, vm.spec.tpm) == ("uefi-secure", True)
    assert doc(furnished, host, vm).firmware == "uefi-secure"
    lax = await furnished.create("vm", "shop", "lax", image="win", size="small", firmware="uefi")
    assert (lax.spec.firmware, lax.spec.tpm) == ("uefi", True)
    changed = await furnished.change(vm, firmware="bios", tpm=False)
    assert (changed.spec.firmware, changed.spec.tpm) == ("bios", False)
    again = await furnished.change(changed, stop_grace_s=1)
    assert (again.spec.firmware, again.spec.tpm) == ("bios", False)


async def test_a_machine_that_is_rebuilt_from_another_image_starts_as_that_one_needs(furnished: Bench) -> None:
    host = await a_host(furnished, "h1", UEFI)
    vm = await a_vm(furnished, host)
    await furnished.fill(await furnished.create("image", "shop", "efi", firmware="uefi"))
    await ask(furnished, vm, "rebuild", image="efi")
    assert furnished.now(vm).spec.firmware == "uefi"
    await furnished.change(furnished.named("image", "efi"), firmware="uefi-secure")
    await ask(furnished, vm, "rebuild")
    assert furnished.now(vm).spec.firmware == "uefi"


async def test_a_rebuild_from_an_image_that_its_host_can_not_start_is_refused(furnished: Bench) -> None:
    host = await a_host(furnished, "h1")
    vm = await a_vm(furnished, host)
    await furnished.fill(await furnished.create("image", "shop", "efi", firmware="uefi"))
    with pytest.raises(Conflict, match="vm web is on host h1, which is without UEFI for guests"):
        await ask(furnished, vm, "rebuild", image="efi")


async def test_a_bare_kernel_can_not_be_said_to_start_under_secure_boot(furnished: Bench) -> None:
    with pytest.raises(Invalid, match="image bare is a bare kernel"):
        await furnished.create("image", "shop", "bare", format="kernel", firmware="uefi-secure")


def test_while_libvirt_does_not_answer_a_host_can_what_it_could_and_one_that_says_no_can_not() -> None:
    known = Traits(make="tcg", flags=("avx",), can=(SECURE_BOOT, "vxlan"))
    mute = (Capability(name=CPU_MODEL, works=False),)
    assert traits_of(inventory(capabilities=mute), known).can == (SECURE_BOOT,)
    says_no = (*mute, Capability(name=SECURE_BOOT, works=False))
    assert traits_of(inventory(capabilities=says_no), known).can == ()
    assert traits_of(inventory(), known).can == ()
