"""The timeline of an operation: the steps that were taken for it, on the controller and on hosts. Pure.

It is bounded: the first steps stay, since they say how it began, and the newest; what was between is counted.
"""

import re
from collections.abc import Iterable

import msgspec

from controller.store.rows import Operation, OperationStep

FIRST_KEPT, LAST_KEPT = 24, 40


def with_steps(operation: Operation, taken: Iterable[OperationStep], now: float) -> Operation:
    """Return an operation with these steps too. One that is there already (by host, moment and words) is brought up
    to date: hosts tell the same step as it begins, fails and ends."""
    steps = list(operation.steps)
    known = {_key(step): index for index, step in enumerate(steps)}
    fresh = [step for step in taken if _key(step) not in known]
    for step in taken:
        if (index := known.get(_key(step))) is not None:
            steps[index] = step
    if fresh:
        steps = _phase_ended(steps, now) + fresh
    return _bounded(operation, steps)


def with_phase(operation: Operation, phase: OperationStep | None, now: float) -> Operation:
    """Return an operation that waits for something (None: for nothing of its own): a phase is a step that lasts until
    the next one begins. Figures in its words may change while it lasts."""
    steps = list(operation.steps)
    last = steps[-1] if steps and _is_open_phase(steps[-1]) else None
    if last and phase and _same(last, phase):
        return operation
    steps = _phase_ended(steps, now)
    return _bounded(operation, [*steps, phase] if phase else steps)


def ended(operation: Operation, now: float) -> Operation:
    """Return an operation whose last phase is over."""
    return msgspec.structs.replace(operation, steps=tuple(_phase_ended(list(operation.steps), now)))


def in_order(operation: Operation) -> tuple[OperationStep, ...]:
    """Return the steps by the moment at which they began."""
    return tuple(sorted(operation.steps, key=lambda step: step.at))


def _key(step: OperationStep) -> tuple[str, float, str]:
    return step.host, step.at, step.what


def _is_open_phase(step: OperationStep) -> bool:
    return step.seconds is None and step.phase


def _same(one: OperationStep, other: OperationStep) -> bool:
    return _words(one) == _words(other)


def _words(step: OperationStep) -> tuple[str, str]:
    return re.sub(r"[0-9]+", "0", step.what), re.sub(r"[0-9]+", "0", step.cause)


def _phase_ended(steps: list[OperationStep], now: float) -> list[OperationStep]:
    return [
        msgspec.structs.replace(step, seconds=round(max(0.0, now - step.at), 3)) if _is_open_phase(step) else step
        for step in steps
    ]


def _bounded(operation: Operation, steps: list[OperationStep]) -> Operation:
    over = len(steps) - FIRST_KEPT - LAST_KEPT
    if over > 0:
        del steps[FIRST_KEPT : FIRST_KEPT + over]
    dropped = operation.steps_dropped + max(0, over)
    return msgspec.structs.replace(operation, steps=tuple(steps), steps_dropped=dropped)
