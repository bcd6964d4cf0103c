"""size: a row that others refer to, and nothing else."""

from common.errors import FieldError, Invalid
from common.kinds.kind import AnyResource, Spec
from common.kinds.size import SizeSpec
from controller.auth.caller import Caller
from controller.kinds.outcome import Outcome
from controller.kinds.plain import plan_plain
from controller.store.working import WorkingSet


def admit(row: AnyResource, _was: AnyResource | None, _seen: WorkingSet, _caller: Caller) -> Spec:
    """Refuse bounds that nothing lies between, and a step that leads nowhere."""
    spec: SizeSpec = row.spec
    bounds = (
        ("vcpus", spec.vcpus, spec.vcpus_max),
        ("memory_mib", spec.memory_mib, spec.memory_mib_max),
        ("disk_gib", spec.disk_gib, spec.disk_gib_max),
    )
    for field, least, most in bounds:
        if most is not None and most < least:
            raise Invalid(
                f"size {row.name}: {field}_max is {most}, less than {field}, {least}",
                fix=f"give {field}_max {least} or more, or leave it out",
                errors=(FieldError(field=f"spec.{field}_max", message=f"must be ≥ {least}"),),
            )
    if spec.memory_mib_step > 1 and spec.memory_mib_max is None:
        raise Invalid(
            f"size {row.name}: memory_mib_step is {spec.memory_mib_step}, but its memory is always {spec.memory_mib}",
            fix="give memory_mib_max, too, or leave memory_mib_step out",
            errors=(FieldError(field="spec.memory_mib_step", message="needs memory_mib_max"),),
        )
    return spec


def plan(row: AnyResource, seen: WorkingSet, _now: float) -> Outcome:
    """It is there at once; a deleted one goes when nothing uses it any more."""
    return plan_plain(row, seen)
