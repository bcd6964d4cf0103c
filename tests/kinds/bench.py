"""A bench for planners: the real store's writes in memory, hosts that say what a test has them say, and no loop."""

from collections.abc import Iterable

import msgspec

from common.documents import AnySeen, DocKey, DomainSeen, Report, VolumeSeen
from common.ids import HostId, Id
from common.kinds.kind import AnyResource
from common.protocol import Inventory
from controller.kinds import admission
from controller.kinds.outcome import Blocked, Do, Done, Outcome, Place
from controller.kinds.planners import planner_of
from controller.scheduler.choose import Choice
from controller.store.mutations import Conclusion
from controller.store.queue import Finished
from controller.store.rows import Document, Enrolment
from controller.store.writes import PutEnrolment
from tests.store.desk import Desk

RUNNING = DomainSeen(state="running", start_generation=1, boot_generation=1, started_at=1.0)
READY = VolumeSeen(size_gib=10, allocated_bytes=4096)


def inventory(vtep: str = "10.77.0.11", **other: object) -> Inventory:
    """Return what a host's agent found."""
    made = Inventory(
        cpu_model="x", cpu_flags=(), cpu_threads=4, memory_mib=8704, disk_gib=100, nics=(), capabilities=(),
        virtualisation="tcg", kernel="6", boot_id="b", vtep=vtep, underlay_mtu=1500,
    )  # fmt: skip
    return msgspec.structs.replace(made, **other)


class Bench(Desk):
    """Plans one thing at a time and commits what the plan says."""

    async def connected_host(self, name: str, vtep: str = "10.77.0.11") -> HostId:
        """Have a host that has joined and is connected."""
        host = await self.host(name)
        enrolment = Enrolment(
            host=host, join_digest="", join_expires_at=0, certificate_serial="1", vtep=vtep, underlay_mtu=1500
        )
        await self.write(PutEnrolment(enrolment=enrolment))
        view = self.store.seen.host(host)
        view.connected, view.since, view.inventory = True, self.clock.now, inventory(vtep)
        return host

    def plan(self, row: AnyResource) -> Outcome:
        """Plan as things are now."""
        now = self.now(row)
        return planner_of(now.kind).plan(now, self.store.seen, self.clock.now)

    async def step(self, row: AnyResource, on: HostId | None = None) -> Outcome:
        """Plan, and commit one step; `on` is the host that a scheduler would choose."""
        outcome = self.plan(row)
        match outcome:
            case Do():
                await self.write(*outcome.writes)
            case Place():
                assert on is not None, "it wants to be placed"
                choice = Choice(host=outcome.demand.host or on, row=0)
                await self.write(outcome.claim(choice, "", self.store.seen.revision), *outcome.writes)
            case _:
                pass
        return outcome

    async def rest(self, row: AnyResource, on: HostId | None = None) -> Outcome:
        """Step until there is nothing to do; return why."""
        for _ in range(20):
            outcome = await self.step(row, on)
            if not isinstance(outcome, Do | Place) or self.store.seen.get(row.id) is None:
                return outcome
        raise AssertionError("the plan does not come to rest")

    async def seen_through(self, row: AnyResource) -> None:
        """Plan to rest, and have what is done written back, as the loop does."""
        outcome = await self.rest(row)
        assert isinstance(outcome, Done), outcome
        await self.shown(row, outcome)

    async def shown(self, row: AnyResource, outcome: Done | Blocked) -> None:
        """Have what a plan came to written back, as the loop does."""
        why = outcome.why if isinstance(outcome, Blocked) else None
        found = Conclusion(
            resource=self.now(row),
            status=msgspec.structs.replace(outcome.status, why=why),
            state="blocked" if why else "done",
            message="",
            progress=1.0,
            why=why,
        )
        await self.store.conclude(found, (), Finished(resource=row.id, pokes=0, due_at=0))

    def documents(self, host: HostId) -> dict[DocKey, Document]:
        """Return what a host should have."""
        return {document.key: document for document in self.store.seen.documents(host)}

    def report(
        self, host: HostId, key: str, *, done: bool = True, message: str = "", problem: str = "",
        seen: AnySeen | None = None, progress: float | None = None, behind: int = 0,
    ) -> None:  # fmt: skip
        """Have a host speak of a document; `behind`: of one that many revisions ago."""
        document = self.documents(host)[DocKey(key)]
        self.store.seen.host(host).reports[document.key] = Report(
            key=document.key, revision=document.revision - behind, done=done, message=message, problem=problem,  # type: ignore[arg-type]
            seen=seen, progress=progress,
        )  # fmt: skip

    async def destroyed(self, host: HostId) -> None:
        """Have a host say that everything buried is gone."""
        gone = [(one.key, one.revision) for one in self.store.seen.documents(host) if one.gone]
        await self.store.acknowledge(host, gone)

    async def buried(self, rows: Iterable[AnyResource], hosts: Iterable[HostId]) -> None:
        """Drive things that are being deleted to their end, with hosts that do what they are told."""
        left = [row.id for row in rows]
        for _ in range(30):
            for resource in list(left):
                row = self.store.seen.get(resource)
                if row is None:
                    left.remove(resource)
                    continue
                for child in self.store.seen.children(resource):
                    await self.rest(child)
                await self.rest(row)
            for host in hosts:
                await self.destroyed(host)
            if not left:
                return
        raise AssertionError(f"still there: {[self.store.seen.name_of(one) for one in left]}")

    async def furniture(self, project: str = "shop") -> None:
        """Have a project with what a VM needs."""
        await self.project(project)
        await self.create("size", "", "small", vcpus=2, memory_mib=512, disk_gib=10)
        image = await self.create("image", project, "tiny")
        await self.fill(image)
        await self.create("network", project, "default")

    async def fill(self, image: AnyResource) -> None:
        """Give an image its bytes."""
        spec = msgspec.structs.replace(image.spec, digest="sha256:" + "a" * 64, size_bytes=1 << 20, disk_gib=2)
        await self.store.admit(admission.record(self.context, image, spec, "content"))

    def named(self, kind: str, name: str, project: str = "shop") -> AnyResource:
        """Return a thing by name."""
        found = self.store.seen.named(kind, project, name)
        assert found is not None, f"there is no {kind} {name}"
        return found


def volume_of(vm: AnyResource) -> Id:
    """Return the id of a VM's root volume."""
    return Id(f"vol-{vm.id.removeprefix('vm-')}")
