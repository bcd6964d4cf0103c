"""What a machine may ask for of a size, and what shape it has then."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Invalid
from common.kinds.kind import AnyResource
from controller.kinds.shape import Shape, shape_of
from sim.database import inline_store
from tests.kinds.bench import Bench
from tests.store.desk import Clock

CUSTOM = {"vcpus_max": 8, "memory_mib_max": 4096, "memory_mib_step": 256, "disk_gib_max": 40}


async def sized(bench: Bench, **more: object) -> None:
    await bench.furniture()
    await bench.create("size", "", "flexible", vcpus=1, memory_mib=512, disk_gib=5, **CUSTOM | more)


def asked(bench: Bench, size: str = "flexible", **spec: object) -> AnyResource:
    return bench.admit_create("vm", "shop", "web", image="tiny", size=size, **spec).resource


async def test_a_machine_has_what_it_asks_for_and_else_the_least(bench: Bench) -> None:
    await sized(bench)
    vm = asked(bench, vcpus=3, memory_mib=3072)
    assert shape_of(vm, bench.store.seen) == Shape(vcpus=3, memory_mib=3072, disk_gib=5, size="flexible")


async def test_a_plain_size_is_the_shape(bench: Bench) -> None:
    await sized(bench)
    assert shape_of(asked(bench, "small"), bench.store.seen) == Shape(
        vcpus=2, memory_mib=512, disk_gib=10, size="small"
    )


@pytest.mark.parametrize(
    ("spec", "said", "fix"),
    [
        ({"vcpus": 9}, "vm web asks for 9 vCPUs; size flexible has 1 to 8 vCPUs", "ask for 1 to 8 vCPUs"),
        (
            {"memory_mib": 600},
            "vm web asks for 600 MiB of memory; size flexible has 512 to 4096 MiB of memory in steps of 256",
            "ask for 512 or 768",
        ),
        ({"disk_gib": 4}, "vm web asks for 4 GiB of disk; size flexible has 5 to 40 GiB of disk", "ask for 5 to 40"),
        (
            {"size": "small", "vcpus": 3},
            "vm web asks for 3 vCPUs; size small has 2 vCPUs, always",
            "leave it out, or use a custom size: flexible",
        ),
    ],
)
async def test_what_lies_outside_is_refused_with_the_bound(
    bench: Bench, spec: dict[str, object], said: str, fix: str
) -> None:
    await sized(bench)
    with pytest.raises(Invalid) as refused:
        asked(bench, **{"size": "flexible"} | spec)  # type: ignore[arg-type]
    assert refused.value.detail == said
    assert refused.value.fix.startswith(fix)
    assert refused.value.errors[0].field == f"spec.{next(name for name in spec if name != 'size')}"


@settings(max_examples=40, deadline=None)
@given(
    least=st.integers(64, 2048), room=st.integers(0, 2048), step=st.integers(1, 700), asked_for=st.integers(64, 4200)
)
def test_memory_is_admitted_exactly_within_its_bounds_and_steps(
    least: int, room: int, step: int, asked_for: int
) -> None:
    with inline_store() as (store, run, _):
        bench = Bench(store, Clock())
        run(sized(bench))
        size = {"vcpus": 1, "memory_mib": least, "disk_gib": 5, "memory_mib_max": least + room}
        run(bench.create("size", "", "drawn", **size, memory_mib_step=step))
        allowed = asked_for in range(least, least + room + 1, step)
        try:
            vm = asked(bench, "drawn", memory_mib=asked_for)
        except Invalid:
            assert not allowed
        else:
            assert allowed
            shape = shape_of(vm, store.seen)
            assert shape
            assert shape.memory_mib == asked_for


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"vcpus_max": 1}, "size odd: vcpus_max is 1, less than vcpus, 2"),
        ({"memory_mib_step": 64}, "size odd: memory_mib_step is 64, but its memory is always 512"),
    ],
)
async def test_bounds_that_make_no_sense_are_refused(bench: Bench, bounds: dict[str, int], said: str) -> None:
    with pytest.raises(Invalid) as refused:
        bench.admit_create("size", "", "odd", vcpus=2, memory_mib=512, disk_gib=5, **bounds)
    assert refused.value.detail == said
