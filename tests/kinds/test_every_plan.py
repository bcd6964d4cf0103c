"""What holds for every planner, whatever is wished, said and lost in between: pure, twice is once, and an end."""

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from common.documents import DomainDoc
from common.errors import SkerryError
from common.ids import HostId
from common.kinds import KINDS
from common.kinds.domain import DEFAULT_DOMAIN
from common.kinds.kind import AnyResource
from controller.kinds import admission
from controller.kinds.outcome import Outcome
from controller.store.rows import Gone
from controller.store.working import WorkingSet
from controller.store.writes import AnyWrite
from sim.database import inline_store
from tests.kinds.bench import READY, RUNNING, Bench
from tests.store.desk import Clock
from tests.store.same import plain, same

GOING_ORDER = (
    "snapshot", "schedule", "vm", "volume", "group", "keypair", "image", "network", "token", "binding", "user", "role",
    "size", "host", "rack", "zone", "region",
    "project",
)  # fmt: skip
"""Users before what they use. Root disks go with their machines."""


class Twice(Bench):
    """A bench whose every step is committed twice, as after a lost answer."""

    async def write(self, *writes: AnyWrite) -> None:
        """Commit, and commit again."""
        await super().write(*writes)
        await super().write(*writes)


class Pure(Bench):
    """A bench that plans everything twice and looks whether that changed anything."""

    def plan(self, row: AnyResource) -> Outcome:
        """Plan as things are now. Fails where it matters that it was planned before."""
        before = plain(self.store.seen, revisions=True)
        outcome = super().plan(row)
        assert super().plan(row) == outcome
        assert plain(self.store.seen, revisions=True) == before
        return outcome


async def furnished(bench: Bench) -> list[HostId]:
    """Have one of each kind, of two hosts and two machines one under way; returns the hosts."""
    await bench.furniture()
    await bench.create("keypair", "shop", "me", public_key="ssh-ed25519 AAAA me")
    await bench.create("region", "", "north")
    await bench.create("zone", "", "z1", region="north")
    await bench.create("rack", "", "r1", zone="z1")
    await bench.create("group", "shop", "apart", policy="anti-affinity")
    await bench.create("role", "", "starter", grants=[{"actions": ["vm.start"]}])
    await bench.create("token", "shop", "ci", custom_role="starter")
    await bench.create("user", "", "bob")
    await bench.create("binding", "shop", "bob", user="bob")
    for name in ("web", "db"):
        await bench.create("vm", "shop", name, image="tiny", size="small", keypairs=["me"], groups=["apart"])
    await bench.create("volume", "shop", "data", size_gib=5, vm="web")
    await bench.create("schedule", "shop", "nights", action="stop", vms=["web"], cron="0 20 * * *")
    hosts = [await bench.connected_host(f"h{number}", f"10.77.0.1{number}") for number in (1, 2)]
    for kind, name in (("vm", "web"), ("volume", "web"), ("network", "default"), ("volume", "data"), ("vm", "web")):
        await bench.rest(bench.named(kind, name), hosts[0])
    await bench.create("snapshot", "shop", "before", volume="data")
    return hosts


def rows(seen: WorkingSet) -> list[AnyResource]:
    """Return every resource that can go, in an order that two stores agree on."""
    return sorted((row for row in seen if row.id != DEFAULT_DOMAIN), key=lambda row: row.id)


async def moved(bench: Bench, hosts: list[HostId], what: str, number: int) -> None:
    """Make one move. What is refused is refused."""
    there = rows(bench.store.seen)
    row = there[number % len(there)]
    host = hosts[number % len(hosts)]
    view = bench.store.seen.host(host)
    try:
        match what:
            case "step":
                await bench.step(row, host)
            case "delete" if row.owner is None:
                await bench.delete(row)
            case "verb" if row.kind == "vm":
                verbs = admission.kind_named("vm").verbs
                await bench.store.admit(admission.verb(bench.context, row, verbs[number % len(verbs)]))
            case "verb" if row.kind == "volume":
                verbs = admission.kind_named("volume").verbs[:2]
                takes = {"vm": ("web", "db")[number // 2 % 2]} if number % 2 else None
                await bench.store.admit(admission.verb(bench.context, row, verbs[1 - number % 2], takes))
            case "report":
                for document in bench.documents(host).values():
                    seen = RUNNING if isinstance(document.doc, DomainDoc) else READY
                    bench.report(host, document.key, done=number % 3 > 0, problem="no room", seen=seen)
            case "destroyed":
                await bench.destroyed(host)
            case "link":
                view.connected = not view.connected
            case _:
                pass
    except SkerryError:
        return


async def ended(bench: Bench, hosts: list[HostId]) -> None:
    """Delete all there is, and let hosts that answer do what they are told."""
    for kind in GOING_ORDER:
        for row in rows(bench.store.seen):
            if row.kind == kind and row.deleted_at is None and row.owner is None:
                await bench.delete(row)
    await bench.buried([row for row in rows(bench.store.seen) if row.owner is None], hosts)


WHATS = ("step", "step", "step", "step", "report", "destroyed", "delete", "verb", "link")
moves = st.lists(st.tuples(st.sampled_from(WHATS), st.integers(0, 40)), min_size=8, max_size=60)


def lived(make: Callable[..., Bench], moves: list[tuple[str, int]]) -> None:
    """Live through the moves beside a plain bench, and then through the end of everything."""
    with inline_store() as (store, run, _), inline_store() as (other, run_other, _):
        bench, beside = make(store, Clock()), Bench(other, Clock())
        hosts, hosts_beside = run(furnished(bench)), run_other(furnished(beside))
        for what, number in moves:
            if not rows(store.seen):
                break
            run(moved(bench, hosts, what, number))
            run_other(moved(beside, hosts_beside, what, number))
            same(store.seen, other.seen)
        run(ended(bench, hosts))
        store.seen.apply([Gone(bench.named("domain", "default", ""))])
        held = plain(store.seen, revisions=True)
        assert set(held) <= {"_operations", "_graves"}, f"left: {held}"


@settings(max_examples=15, deadline=None)
@given(moves=moves)
def test_a_plan_is_pure_and_whatever_happened_everything_can_be_deleted(moves: list[tuple[str, int]]) -> None:
    lived(Pure, moves)


@settings(max_examples=15, deadline=None)
@given(moves=moves)
def test_a_step_committed_twice_is_committed_once(moves: list[tuple[str, int]]) -> None:
    lived(Twice, moves)


async def test_one_of_every_kind_is_there_to_be_planned(bench: Bench) -> None:
    """Else the properties above would hold for want of a thing to hold for."""
    await furnished(bench)
    assert {row.kind for row in bench.store.seen} == {kind.name for kind in KINDS}
