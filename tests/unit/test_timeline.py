"""The timeline of an operation: bounded, and told more than once without being told twice."""

from typing import Any

import msgspec

from common.ids import Id, RequestId, Revision
from controller.store.rows import Operation, OperationStep
from controller.store.timeline import FIRST_KEPT, LAST_KEPT, ended, in_order, with_phase, with_steps

OPERATION = Operation(
    id=Id("op-0123456789ab"), verb="create", kind="vm", resource=Id("vm-0123456789ab"), project="a", name="web",
    generation=1, actor="a/ci", request=RequestId("req-1"), state="running", message="", progress=0.0, why=None,
    previous_spec=b"", created_at=0.0, finished_at=None, revision=Revision(1),
)  # fmt: skip


def step(at: float, what: str = "x", **more: Any) -> OperationStep:
    return OperationStep(at=at, what=what, **more)


def phase(at: float, what: str, **more: Any) -> OperationStep:
    return step(at, what, phase=True, **more)


def test_a_step_that_is_told_again_is_brought_up_to_date() -> None:
    begun = step(1, "fetching", host="h1")
    failed = msgspec.structs.replace(begun, retries=2, cause="no route")
    done = msgspec.structs.replace(failed, seconds=3.0)
    found = OPERATION
    for one in (begun, failed, done, done):
        found = with_steps(found, [one], 5)

    assert found.steps == (done,)


def test_the_same_words_on_two_hosts_or_twice_are_two_steps() -> None:
    found = with_steps(OPERATION, [step(1, host="h1"), step(1, host="h2"), step(2, host="h1")], 5)

    assert len(found.steps) == 3


def test_the_first_and_the_newest_steps_are_kept_and_the_rest_counted() -> None:
    found = OPERATION
    for number in range(200):
        found = with_steps(found, [step(number)], number)

    assert [one.at for one in found.steps] == [*range(FIRST_KEPT), *range(200 - LAST_KEPT, 200)]
    assert found.steps_dropped == 200 - FIRST_KEPT - LAST_KEPT


def test_a_phase_lasts_until_something_else_begins() -> None:
    found = with_phase(OPERATION, phase(1, "waits: for the image"), 1)
    found = with_phase(found, phase(4, "waits: for the image"), 4)
    found = with_phase(found, phase(6, "blocked", cause="no host"), 6)
    found = with_steps(found, [step(9, "placed", seconds=0.1)], 9)

    assert [(one.what, one.seconds) for one in found.steps] == [
        ("waits: for the image", 5),
        ("blocked", 3),
        ("placed", 0.1),
    ]


def test_figures_that_change_make_no_new_phase() -> None:
    found = OPERATION
    for percent in range(100):
        found = with_phase(found, phase(percent, f"waits: fetching, {percent} %"), percent)

    assert [one.what for one in found.steps] == ["waits: fetching, 0 %"]


def test_the_end_ends_what_it_waited_for() -> None:
    waiting = with_phase(OPERATION, phase(1, "blocked"), 1)

    assert ended(waiting, 8).steps[0].seconds == 7
    assert with_phase(waiting, None, 3).steps[0].seconds == 2


def test_it_is_shown_in_the_order_of_time() -> None:
    found = with_steps(OPERATION, [step(5), step(3)], 6)

    assert [one.at for one in in_order(found)] == [3, 5]
