"""What users and operators do in the simulated world: requests that may get no answer, and are then asked again."""

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from common.errors import Conflict, NotFound
from common.ids import HostId, Id, RequestId, child_id
from common.kinds import kind_named
from common.kinds.kind import SYSTEM_PROJECT, AnyResource, Role
from controller.auth.caller import built_in
from controller.kinds import admission
from controller.kinds.admission import Admission, Context, NewResource, Patch
from controller.store.working import WorkingSet
from sim.process import Controller
from sim.world import RESTART_S, Lost, Node, World

R = TypeVar("R")

OPERATOR = built_in("system/root", SYSTEM_PROJECT, Role.ADMIN, RequestId("req-sim"))


def _root_disks(vm: AnyResource) -> set[Id]:
    """Name every root disk that a VM has had."""
    rebuilt = range(1, vm.spec.rebuild_generation + 1)
    return {child_id(vm.id, "vol"), *(child_id(vm.id, "vol", f"root {number}") for number in rebuilt)}


def _rescue_disks(vm: AnyResource) -> set[Id]:
    return {child_id(vm.id, "vol", f"rescue {number}") for number in range(1, vm.spec.rescue_generation + 1)}


class Cloud:
    """The API as its callers use it. All raise what the API would answer, and Lost where no answer comes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.deleted: set[Id] = set()
        """Every id whose deletion was asked for: nothing else may ever be destroyed."""
        self.kept: dict[Id, set[Id]] = {}
        """Machine that was deleted so that it can be restored -> what goes with it, once its row has gone."""
        self.liars: set[HostId] = set()
        """Hosts that lied: what is on them, nobody knows."""

    @property
    def seen(self) -> WorkingSet:
        """Return what the controller has in memory. Raises Lost while there is none."""
        if self.world.controller is None:
            raise Lost
        return self.world.controller.store.seen

    def find(self, kind: str, project: str, name: str) -> AnyResource:
        """Return a resource by name. Raises NotFound."""
        found = self.seen.named(kind, project, name)
        if found is None:
            raise NotFound(f"there is no {kind} {name}")
        return found

    def create(self, kind: str, project: str, name: str, **spec: Any) -> Admission:
        """Make something."""
        body = NewResource(name=name, spec=spec)
        return self._admit(lambda context: admission.create(context, kind_named(kind), project, body))

    def change(self, kind: str, project: str, name: str, **spec: Any) -> Admission:
        """Change a spec."""
        return self._admit(lambda context: admission.change(context, self.find(kind, project, name), Patch(spec=spec)))

    def verb(self, project: str, name: str, verb: str, *, kind: str = "vm", **takes: Any) -> Admission:
        """Ask for a verb. Some of a VM destroy disks."""
        what = next(one for one in kind_named(kind).verbs if one.name == verb)
        row = self.find(kind, project, name)
        if verb == "rebuild":
            self.deleted |= _root_disks(row) | _rescue_disks(row)
        if verb in ("rescue", "unrescue"):
            self.deleted |= _rescue_disks(row)
        return self._admit(lambda context: admission.verb(context, self.find(kind, project, name), what, takes))

    def upload(self, project: str, name: str) -> Admission:
        """Give an image its bytes."""

        def admit(context: Context) -> Admission:
            row = self.find("image", project, name)
            digest = "sha256:" + hashlib.sha256(row.id.encode()).hexdigest()
            spec = msgspec.structs.replace(row.spec, digest=digest, size_bytes=1 << 20)
            return admission.record(context, row, spec, "content")

        return self._admit(admit)

    def delete(self, kind: str, project: str, name: str, *, keep: bool = False) -> Admission:
        """Delete something; `keep`: as a request does, where its project keeps what is deleted."""
        row = self.find(kind, project, name)
        if keep:
            self.kept[row.id] = {row.id} | _root_disks(row) | _rescue_disks(row)
            return self._admit(lambda context: admission.delete(context, row, keep=True))
        before = row.id in self.deleted
        self.deleted.add(row.id)
        if kind == "vm":
            self.deleted |= _root_disks(row) | _rescue_disks(row)
        try:
            return self._admit(lambda context: admission.delete(context, row))
        except Conflict:
            if row.deleted_at is None and not before:
                self.deleted.discard(row.id)
            raise

    def cancel(self, operation: Id) -> Admission:
        """Take a wish back. Of a create, that deletes the thing."""
        found = self.seen.operation(operation)
        if found is None:
            raise NotFound(f"there is no operation {operation}")
        row = self.seen.get(found.resource)
        if found.verb == "create":
            self.deleted.add(found.resource)
        if row is not None and row.kind == "vm":
            self.deleted |= _rescue_disks(row) | (_root_disks(row) if found.verb == "create" else set())
        return self._admit(lambda context: admission.cancel(context, found))

    def join(self, name: str) -> Node:
        """Have a machine join as the host of that name, with a fresh token."""
        done = self._admit(lambda context: admission.reissue(context, self.find("host", "", name)))
        assert done.revealed is not None
        secret = done.revealed.reveal()

        async def enrol(controller: Controller) -> str:
            await controller.hosts.enrol(controller.hosts.join_text(secret), "csr")
            enrolment = controller.store.seen.enrolment(done.resource.id)  # type: ignore[arg-type]
            assert enrolment is not None
            return enrolment.certificate_serial

        serial = self.world.within_controller(enrol)
        if (node := self.world.nodes.get(name)) is not None:
            node.serial = serial
            return node
        return self.world.add_machine(name, done.resource.id, serial)  # type: ignore[arg-type]

    def reissue(self, kind: str, project: str, name: str) -> Admission:
        """Have a new secret, in place of the one before."""
        return self._admit(lambda context: admission.reissue(context, self.find(kind, project, name)))

    def insist(self, ask: Callable[[], R]) -> R | None:
        """Ask until there is an answer. None: a request whose answer was lost turns out to have been carried out."""
        lost = False
        for _ in range(20):
            try:
                return ask()
            except Lost:
                lost = True
                self.world.run(RESTART_S + 0.5)
            except (Conflict, NotFound):
                if not lost:
                    raise
                return None
        raise AssertionError("no answer in 20 tries")

    def _admit(self, admit: Callable[[Context], Admission]) -> Admission:
        async def ask(controller: Controller) -> Admission:
            context = Context(
                seen=controller.store.seen,
                caller=OPERATOR,
                now=self.world.now,
                entropy=self.world.random.randbytes,
            )
            return await controller.store.admit(admit(context))

        work: Callable[[Controller], Coroutine[Any, Any, Admission]] = ask
        if self.world.controller is None:
            raise Lost
        return self.world.within_controller(work)
