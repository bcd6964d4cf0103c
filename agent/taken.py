"""The steps that were taken for a unit since its documents changed, for the timeline of whoever asked for it."""

import msgspec

from common.documents import StepTaken

MOST = 24


def begin(steps: list[StepTaken], what: str, now: float) -> None:
    """Note that a step is begun; one that failed before is tried again."""
    if not (steps and steps[-1].seconds is None and steps[-1].what == what):
        _append(steps, StepTaken(at=now, what=what))


def end(steps: list[StepTaken], what: str, now: float) -> None:
    """Note that it is done. Documents that changed meanwhile began a new list, which it is not in."""
    if steps and steps[-1].seconds is None and steps[-1].what == what:
        steps[-1] = msgspec.structs.replace(steps[-1], seconds=round(max(0.0, now - steps[-1].at), 3))


def fail(steps: list[StepTaken], problem: str, now: float) -> None:
    """Note that the last step failed; where there was none, looking did."""
    if not steps or steps[-1].seconds is not None:
        _append(steps, StepTaken(at=now, what="looking at what is there"))
    steps[-1] = msgspec.structs.replace(steps[-1], failures=steps[-1].failures + 1, problem=problem[:500])


def _append(steps: list[StepTaken], step: StepTaken) -> None:
    steps.append(step)
    del steps[:-MOST]
