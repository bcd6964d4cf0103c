"""What a machine has of CPU, memory and disk: the one place that says it, for placement, hosts and quotas alike."""

from collections.abc import Iterator

import msgspec

from common.errors import FieldError, Invalid
from common.ids import Id
from common.kinds.kind import AnyResource
from common.kinds.size import SizeSpec
from common.kinds.vm import VmSpec
from controller.store.working import WorkingSet


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's share of a host."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    """Of its root disk."""
    size: str
    """The name it has in the catalogue."""


class _Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked for of one thing."""

    field: str
    unit: str
    asked: int | None
    least: int
    most: int | None
    step: int = 1

    @property
    def words(self) -> str:
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.least} to {self.most} {self.unit}{steps}"


def shape_of(vm: AnyResource, seen: WorkingSet) -> Shape | None:
    """Return what a machine is to have by its spec, which `admit_shape` let pass; None where its size is gone."""
    size = seen.get(Id(vm.spec.size))
    if size is None:
        return None
    given = {bound.field: bound.least if bound.asked is None else bound.asked for bound in _bounds(vm.spec, size.spec)}
    given["disk_gib"] = max(given["disk_gib"], vm.spec.kept_disk_gib)
    return Shape(**given, size=size.name)


def admit_shape(vm: AnyResource, seen: WorkingSet) -> None:
    """Hold what a machine asks for against its size's bounds. Raises Invalid that names the bound."""
    size = seen.get(Id(vm.spec.size))
    if size is None:
        return
    for bound in _bounds(vm.spec, size.spec):
        if bound.field == "memory_mib":
            _admit_least(vm, bound)
        if bound.asked is None:
            continue
        if bound.most is None:
            if bound.asked != bound.least:
                raise _outside(vm, bound, f"size {size.name} has {bound.least} {bound.unit}, always", _way_out(seen))
        elif not bound.least <= bound.asked <= bound.most:
            raise _outside(vm, bound, f"size {size.name} has {bound.words}", f"ask for {bound.words}")
        elif over := (bound.asked - bound.least) % bound.step:
            below, above = bound.asked - over, bound.asked - over + bound.step
            fix = f"ask for {below}" + (f" or {above}" if above <= bound.most else "")
            raise _outside(vm, bound, f"size {size.name} has {bound.words}", fix)


def _admit_least(vm: AnyResource, memory: _Bound) -> None:
    least, has = vm.spec.memory_min_mib, memory.least if memory.asked is None else memory.asked
    if least is not None and least > has:
        raise Invalid(
            f"vm {vm.name} is to keep {least} MiB of memory at least, and has {has}",
            fix=f"set memory_min_mib to {has} or less, or to none: it keeps all",
            errors=(FieldError(field="spec.memory_min_mib", message=f"must be ≤ {has}"),),
        )


def _bounds(vm: VmSpec, size: SizeSpec) -> Iterator[_Bound]:
    yield _Bound(field="vcpus", unit="vCPUs", asked=vm.vcpus, least=size.vcpus, most=size.vcpus_max)
    yield _Bound(
        field="memory_mib",
        unit="MiB of memory",
        asked=vm.memory_mib,
        least=size.memory_mib,
        most=size.memory_mib_max,
        step=size.memory_mib_step,
    )
    yield _Bound(field="disk_gib", unit="GiB of disk", asked=vm.disk_gib, least=size.disk_gib, most=size.disk_gib_max)


def _outside(vm: AnyResource, bound: _Bound, why: str, fix: str) -> Invalid:
    return Invalid(
        f"vm {vm.name} asks for {bound.asked} {bound.unit}; {why}",
        fix=fix,
        errors=(FieldError(field=f"spec.{bound.field}", message=why),),
    )


def _way_out(seen: WorkingSet) -> str:
    custom = sorted(size.name for size in seen.of_kind("size") if _is_custom(size.spec))
    return f"leave it out, or use a custom size: {', '.join(custom[:5])}" if custom else "leave it out"


def _is_custom(size: SizeSpec) -> bool:
    return any(most is not None for most in (size.vcpus_max, size.memory_mib_max, size.disk_gib_max))
