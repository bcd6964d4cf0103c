"""A VM that is there is changed: resized, rebuilt, rescued. Nothing is sold twice on the way, and delete wins."""

import msgspec
import pytest

from common.documents import DomainDoc, DomainSeen, VolumeDoc, VolumeSeen
from common.errors import Conflict, Invalid, NoCapacity
from common.ids import HostId, Id
from common.kinds import kind_named
from common.kinds.kind import AnyResource
from common.protocol import HOT_PLUG, Capability
from controller.kinds import admission
from controller.kinds.disks import root_of
from controller.kinds.growing import growth_waits, room_for
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Wait
from controller.kinds.shape import shape_of
from controller.store.rows import Placement, Traits
from controller.store.writes import ResizePlacement, SetCapacity
from tests.kinds.bench import Bench
from tests.store.desk import take

RESCUE_GIB = 3


def seen_as(state: str, vcpus: int = 0, memory_mib: int = 0) -> DomainSeen:
    return DomainSeen(
        state=state, start_generation=1, boot_generation=1, started_at=1.0, vcpus=vcpus, memory_mib=memory_mib  # type: ignore[arg-type]
    )  # fmt: skip


class Life:
    """One VM on one host whose agent does what it is told, at once or when it is let."""

    def __init__(self, bench: Bench, vm: AnyResource, host: HostId) -> None:
        self.bench, self.vm, self.host = bench, vm, host
        self.runs: tuple[int, int] | None = None
        """vCPUs and memory of the present run."""

    async def ask(self, verb: str, **given: object) -> None:
        what = next(one for one in kind_named("vm").verbs if one.name == verb)
        await self.bench.store.admit(admission.verb(self.bench.context, self.bench.now(self.vm), what, given))

    async def planned(self) -> Outcome:
        """Let the controller do what it can now, for the VM and its volumes."""
        for _ in range(3):
            for child in self.bench.store.seen.children(self.vm.id):
                await self.bench.rest(child)
            outcome = await self.bench.rest(self.vm, self.host)
        return outcome

    def obeyed(self, *, restarts: bool = True) -> None:
        """Have the host do all that it is told. Not `restarts`: what runs goes on as it is."""
        for document in self.bench.documents(self.host).values():
            match document.doc:
                case DomainDoc() as doc if not document.gone:
                    if doc.power == "stopped":
                        self.runs = None
                    elif self.runs is None or restarts:
                        self.runs = (doc.vcpus, doc.memory_mib)
                    seen = seen_as("running", *self.runs) if self.runs else seen_as("stopped")
                    self.bench.report(self.host, document.key, seen=seen)
                case VolumeDoc() as doc if not document.gone:
                    self.bench.report(
                        self.host, document.key, seen=VolumeSeen(size_gib=doc.size_gib, allocated_bytes=0)
                    )
                case _:
                    pass

    async def settled(self) -> Outcome:
        """Go on until the VM is as wished."""
        for _ in range(8):
            await self.planned()
            self.obeyed()
            await self.bench.destroyed(self.host)
        return await self.planned()

    @property
    def claim(self) -> tuple[int, int, int]:
        found = self.bench.store.seen.placement(self.vm.id)
        assert found
        return found.vcpus, found.memory_mib, found.disk_gib

    @property
    def doc(self) -> DomainDoc:
        doc = self.bench.documents(self.host)[f"domain/{self.vm.id}"].doc  # type: ignore[index]
        assert isinstance(doc, DomainDoc)
        return doc

    def volumes(self) -> dict[Id, AnyResource]:
        return {child.id: child for child in self.bench.store.seen.children(self.vm.id)}


@pytest.fixture
async def life(bench: Bench) -> Life:
    """A small VM (2 vCPUs, 512 MiB, 10 GiB) that runs on a host with 8 vCPUs, 8192 MiB and 100 GiB."""
    await bench.furniture()
    await bench.create("size", "", "large", vcpus=4, memory_mib=2048, disk_gib=20)
    await bench.create("size", "", "huge", vcpus=4, memory_mib=65536, disk_gib=20)
    await bench.create("size", "", "flexible", vcpus=1, memory_mib=256, disk_gib=5, vcpus_max=8, disk_gib_max=40)
    rescue = await bench.create("image", "shop", "rescue", format="kernel")
    await bench.fill(rescue)
    spec = msgspec.structs.replace(bench.now(rescue).spec, disk_gib=RESCUE_GIB)
    await bench.store.admit(admission.record(bench.context, bench.now(rescue), spec, "content"))
    host = await bench.connected_host("h1")
    vm = await bench.create("vm", "shop", "web", image="tiny", size="small")
    found = Life(bench, vm, host)
    assert isinstance(await found.settled(), Done)
    return found


# --- resize -------------------------------------------------------------------------------------------------------


async def test_a_resize_claims_first_then_grows_the_disk_and_waits_for_a_restart(life: Life) -> None:
    await life.ask("resize", size="large")
    first = await life.bench.step(life.vm)
    assert isinstance(first, Do)
    wanted = Placement(owner=life.vm.id, host=life.host, vcpus=4, memory_mib=2048, disk_gib=20)
    assert first.writes == (ResizePlacement(placement=wanted),)
    assert isinstance(await life.planned(), Wait)
    life.obeyed(restarts=False)
    done = await life.planned()
    assert isinstance(done, Done)
    assert done.status.state == "running"
    assert done.status.message == (
        "its resize to 4 vCPUs and 2048 MiB of memory waits for a restart (it was started with room for 2 vCPUs and "
        "it was started with room for 512 MiB of memory): skerry vm reboot web"
    )
    assert (done.status.vcpus, done.status.disk_gib) == (2, 20)  # type: ignore[attr-defined]
    assert (life.doc.vcpus, life.doc.boot_generation) == (4, 1)
    life.obeyed(restarts=True)
    done = await life.planned()
    assert isinstance(done, Done)
    assert (done.status.message, done.status.vcpus) == ("", 4)  # type: ignore[attr-defined]


async def test_what_grows_within_its_room_waits_for_nothing_and_all_else_says_why(life: Life) -> None:
    capacity = life.bench.store.seen.capacity(life.host)
    assert capacity
    able = msgspec.structs.replace(capacity, traits=Traits(can=(HOT_PLUG,)))
    view = life.bench.store.seen.host(life.host)
    assert view.inventory
    plugs = (Capability(name=HOT_PLUG, works=True),)
    view.inventory = msgspec.structs.replace(view.inventory, capabilities=plugs)
    await life.bench.write(SetCapacity(capacity=able))
    await life.ask("resize", size="large", restart=True)
    await life.settled()
    assert (life.doc.vcpus_max, life.doc.memory_max_mib) == (16, 8192)
    run = DomainSeen(
        state="running", start_generation=1, boot_generation=2, started_at=1.0, vcpus=4, memory_mib=2048,
        vcpus_max=16, memory_max_mib=8192, memory_slots=1,
    )  # fmt: skip
    for wished, why in (
        ({"vcpus": 6, "memory_mib": 4096}, ""),
        ({"vcpus": 20}, "it was started with room for 16 vCPUs"),
        ({"vcpus": 2}, "a guest that runs gives no vCPU back"),
        ({"memory_mib": 2100}, "a guest that runs takes memory in steps of 128 MiB, and this is 52 MiB more"),
        ({"memory_mib": 16384}, "it was started with room for 8192 MiB of memory"),
        ({"memory_mib": 1024}, "a guest that runs gives no memory back"),
    ):
        assert growth_waits(msgspec.structs.replace(life.doc, **wished), run) == why
    full = msgspec.structs.replace(run, memory_slots=0)
    often = growth_waits(msgspec.structs.replace(life.doc, memory_mib=4096), full)
    assert often == "it was given memory 16 times since its start, as often as that can be"


async def test_a_small_machine_has_no_room_for_memory_and_an_older_agent_is_told_of_none(life: Life) -> None:
    assert (life.doc.vcpus_max, life.doc.memory_max_mib) == (0, 0)
    shape, placement = (
        shape_of(life.bench.now(life.vm), life.bench.store.seen),
        Placement(owner=life.vm.id, host=life.host, vcpus=2, memory_mib=512, disk_gib=10),
    )
    assert shape
    capacity = life.bench.store.seen.capacity(life.host)
    assert capacity
    able = msgspec.structs.replace(capacity, traits=Traits(can=(HOT_PLUG,)))
    await life.bench.write(SetCapacity(capacity=able))
    assert room_for(shape, placement, life.bench.store.seen) == {"vcpus_max": 8, "memory_max_mib": 0}


async def test_with_restart_it_takes_effect_at_once(life: Life) -> None:
    await life.ask("resize", size="large", restart=True)
    assert isinstance(await life.settled(), Done)
    assert (life.doc.vcpus, life.doc.boot_generation) == (4, 2)


async def test_what_shrinks_stays_reserved_until_the_guest_runs_with_less(life: Life) -> None:
    await life.ask("resize", size="large", restart=True)
    await life.settled()
    await life.ask("resize", size="small")
    assert isinstance(await life.planned(), Wait)
    assert life.claim == (4, 2048, 20)
    life.obeyed(restarts=False)
    assert isinstance(await life.planned(), Done)
    assert life.claim == (4, 2048, 20)
    life.obeyed(restarts=True)
    assert isinstance(await life.planned(), Done)
    assert life.claim == (2, 512, 20)  # disks never shrink
    assert (life.bench.now(life.vm).spec.kept_disk_gib, life.doc.vcpus) == (20, 2)


async def test_a_stopped_machine_is_resized_at_its_next_start(life: Life) -> None:
    await life.ask("stop")
    await life.settled()
    await life.ask("resize", size="flexible", vcpus=1)
    done = await life.settled()
    assert isinstance(done, Done)
    assert (done.status.message, life.claim) == ("", (1, 256, 10))
    await life.ask("start")
    assert isinstance(await life.settled(), Done)
    assert life.runs == (1, 256)


async def test_more_than_the_host_has_is_refused_with_the_figures(life: Life) -> None:
    with pytest.raises(NoCapacity) as refused:
        await life.ask("resize", size="huge")
    assert refused.value.detail == "vm web needs 65024 MiB of memory more; 7680 are free on host h1"
    assert refused.value.fix == "ask for 57344 MiB of memory less, or free as much on host h1"
    assert life.claim == (2, 512, 10)


async def test_room_that_was_sold_meanwhile_blocks_the_resize_and_nothing_else(life: Life) -> None:
    await life.ask("resize", size="large")
    free = 8192 - 512
    await life.bench.write(take(life.host, "vm-other", memory_mib=free, vcpus=1))
    blocked = await life.planned()
    life.obeyed()
    blocked = await life.planned()
    assert isinstance(blocked, Blocked)
    assert blocked.status.state == "running"
    assert blocked.why.summary == "vm web needs 1536 MiB of memory more; 0 are free on host h1"
    assert life.claim == (2, 512, 10)
    await life.ask("stop")
    await life.planned()
    assert life.doc.power == "stopped"
    await life.ask("resize", size="small")
    assert isinstance(await life.settled(), Done)


async def test_a_smaller_disk_in_so_many_words_is_refused(life: Life) -> None:
    with pytest.raises(Invalid) as refused:
        await life.ask("resize", size="flexible", disk_gib=8)
    assert refused.value.detail == "vm web has a root disk of 10 GiB; 8 GiB is less, and disks never shrink"


async def test_only_the_values_given_change_within_a_custom_size(life: Life) -> None:
    await life.ask("resize", size="flexible", vcpus=3, disk_gib=12)
    await life.ask("resize", vcpus=5)
    spec = life.bench.now(life.vm).spec
    assert (spec.vcpus, spec.memory_mib, spec.disk_gib) == (5, None, 12)


async def test_size_and_image_are_changed_by_their_verbs_only(life: Life) -> None:
    with pytest.raises(Invalid) as refused:
        await life.bench.change(life.vm, size="large")
    assert refused.value.fix == "use the verb resize: skerry vm resize web --size …"


# --- rebuild ------------------------------------------------------------------------------------------------------


async def test_a_rebuild_makes_a_new_disk_once_the_old_one_is_gone_and_keeps_the_rest(life: Life) -> None:
    old, nics = root_of(life.vm), life.doc.nics
    await life.ask("rebuild", image="rescue")
    assert isinstance(await life.planned(), Wait)
    assert (life.doc.power, life.doc.volumes, life.doc.stop_grace_s) == ("stopped", (), 0)
    assert life.volumes()[old].deleted_at is not None
    assert list(life.volumes()) == [old]
    done = await life.settled()
    assert isinstance(done, Done)
    (new,) = life.volumes().values()
    assert new.id == root_of(life.bench.now(life.vm)) != old
    assert new.name == "web"
    assert (life.doc.volumes, life.doc.power, life.doc.nics, life.doc.boot_generation) == (
        (new.id,),
        "running",
        nics,
        2,
    )
    assert life.doc.kernel is not None
    assert life.claim == (2, 512, 10)


async def test_a_stopped_machine_is_rebuilt_and_stays_off(life: Life) -> None:
    await life.ask("stop")
    await life.ask("rebuild")
    assert isinstance(await life.settled(), Done)
    assert (life.doc.power, len(life.doc.volumes)) == ("stopped", 1)


async def test_a_rebuild_gives_the_disk_its_sizes_measure_again(life: Life) -> None:
    await life.ask("resize", size="large")
    await life.settled()
    await life.ask("resize", size="small")
    await life.settled()
    assert life.claim[2] == 20
    await life.ask("rebuild")
    assert isinstance(await life.settled(), Done)
    assert life.claim[2] == 10


async def test_a_rebuild_can_not_be_taken_back(life: Life) -> None:
    await life.ask("rebuild")
    (operation,) = [one for one in life.bench.store.seen.open_operations(life.vm.id) if one.verb == "rebuild"]
    with pytest.raises(Conflict, match="rebuild of vm web can't be taken back"):
        admission.cancel(life.bench.context, operation)


@pytest.mark.parametrize("verb", ["rebuild", "rescue"])
async def test_an_image_without_content_is_refused_before_anything_is_lost(life: Life, verb: str) -> None:
    await life.bench.create("image", "shop", "empty")
    with pytest.raises(Conflict, match="image empty has no content yet, so vm web can't boot from it"):
        await life.ask(verb, image="empty")


# --- rescue -------------------------------------------------------------------------------------------------------


async def test_in_rescue_its_own_disk_is_the_second(life: Life) -> None:
    root = root_of(life.vm)
    await life.ask("rescue", image="rescue")
    assert isinstance(await life.planned(), Wait)
    assert life.claim == (2, 512, 10 + RESCUE_GIB)
    first, second = life.doc.volumes
    assert (second, life.doc.boot_generation) == (root, 2)
    assert life.doc.kernel is not None
    assert life.volumes()[first].name == first
    done = await life.settled()
    assert isinstance(done, Done)
    assert done.status.message == (
        "in rescue: it boots from image rescue, its own disk is the second: skerry vm unrescue web"
    )
    await life.ask("unrescue")
    assert isinstance(await life.planned(), Wait)
    assert (life.doc.volumes, life.doc.kernel, life.doc.boot_generation) == ((root,), None, 3)
    assert isinstance(await life.settled(), Done)
    assert (list(life.volumes()), life.claim) == ([root], (2, 512, 10))


async def test_a_second_rescue_gets_a_fresh_disk(life: Life) -> None:
    await life.ask("rescue", image="rescue")
    await life.settled()
    first = life.doc.volumes[0]
    await life.ask("rescue", image="tiny")
    assert isinstance(await life.settled(), Done)
    assert first not in life.volumes()
    assert (len(life.doc.volumes), life.doc.kernel) == (2, None)


async def test_a_rebuild_ends_the_rescue(life: Life) -> None:
    await life.ask("rescue", image="rescue")
    await life.settled()
    await life.ask("rebuild")
    assert isinstance(await life.settled(), Done)
    assert len(life.doc.volumes) == len(life.volumes()) == 1


async def test_a_rescue_without_room_for_its_disk_leaves_the_machine_running(life: Life) -> None:
    await life.ask("rescue", image="rescue")
    await life.bench.write(take(life.host, "vm-other", disk_gib=90, vcpus=1))
    await life.planned()
    life.obeyed()
    blocked = await life.planned()
    assert isinstance(blocked, Blocked)
    assert (life.doc.volumes, life.doc.boot_generation) == ((root_of(life.vm),), 1)
    await life.ask("unrescue")
    assert isinstance(await life.settled(), Done)


async def test_unrescue_of_what_is_not_in_rescue_changes_nothing(life: Life) -> None:
    before = life.doc
    await life.ask("unrescue")
    assert isinstance(await life.settled(), Done)
    assert life.doc == before


async def test_the_rescue_image_can_not_go_while_it_is_used(life: Life) -> None:
    await life.ask("rescue", image="rescue")
    with pytest.raises(Conflict, match="image rescue is used by vm web"):
        await life.bench.delete(life.bench.named("image", "rescue"))


@pytest.mark.parametrize("verb", ["rebuild", "rescue", "resize", "unrescue"])
@pytest.mark.parametrize("steps", range(5))
async def test_delete_wins_over_a_change_at_every_step(life: Life, verb: str, steps: int) -> None:
    if verb == "unrescue":
        await life.ask("rescue", image="rescue")
        await life.settled()
    await life.ask(verb, **({"size": "large"} if verb == "resize" else {}))
    for _ in range(steps):
        await life.bench.step(life.vm)
    await life.bench.delete(life.vm)
    await life.bench.buried([life.vm], [life.host])
    seen = life.bench.store.seen
    assert (seen.placement(life.vm.id), list(seen.of_kind("volume"))) == (None, [])
    assert seen.used(life.host).memory_mib == 0
