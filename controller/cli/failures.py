"""How the command ends: one exit code for each way, and errors as clear as the API's on standard error."""

import click

from common.errors import Problem
from common.refusal import Refusal

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done as asked"),
    (1, "an error: the API's problem document, no connection, or (audit) differences found"),
    (2, "the command line is wrong"),
    (3, "the operation failed or was cancelled"),
    (4, "blocked: no host fits, or something stands in the way; the refusal is printed"),
    (5, "the operation was not finished within --timeout; it goes on"),
    (130, "interrupted with Ctrl-C; the operation goes on"),
)
"""Every exit code of `skerry`, for scripts and for the reference page."""

ERROR, FAILED, BLOCKED, TIMED_OUT, INTERRUPTED = 1, 3, 4, 5, 130


class Failure(Exception):
    """What ends a command: a sentence, the way out, and the exit code."""

    def __init__(self, detail: str, *, fix: str = "", code: int = ERROR, refusal: Refusal | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix
        self.code = code
        self.refusal = refusal

    def lines(self) -> list[str]:
        """Return what is printed, line by line."""
        lines = [click.style("error: ", fg="red", bold=True) + self.detail]
        if self.refusal:
            lines += refusal_lines(self.refusal, heading=self.refusal.summary not in self.detail)
        if self.fix:
            lines.append(click.style("  fix: ", bold=True) + self.fix)
        return lines

    def show(self) -> None:
        """Print it on standard error; who typed Ctrl-C knows."""
        if self.code == INTERRUPTED:
            return
        for line in self.lines():
            click.echo(line, err=True)


class Unreachable(Failure):
    """The controller did not answer: it may later."""


class Lost(Unreachable):
    """The connection broke after it stood: whether the request was carried out is not known."""


class Refused(Failure):
    """The API answered with a problem document."""

    def __init__(self, problem: Problem, *, retry_after_s: int = 1) -> None:
        super().__init__(
            problem.detail, fix=problem.fix, code=BLOCKED if problem.refusal else ERROR, refusal=problem.refusal
        )
        self.problem = problem
        self.retry_after_s = retry_after_s

    def lines(self) -> list[str]:
        """Return what is printed: the fields that are wrong beside the rest, the request id last."""
        first, *rest = super().lines()
        fields = [
            f"  {error.field}: {error.message}" for error in self.problem.errors if error.message not in self.detail
        ]
        lines = [first, *fields, *rest]
        if self.problem.request:
            lines.append(click.style(f"  {self.problem.code}, request {self.problem.request}", dim=True))
        return lines


def refusal_lines(refusal: Refusal, *, heading: bool = True) -> list[str]:
    """Return a refusal as a small table: what each constraint cost, and the smallest change that would fit."""
    lines = [f"  {refusal.summary}"] if heading else []
    if refusal.costs:
        width = max(len("constraint"), *(len(cost.constraint) for cost in refusal.costs))
        lines.append(click.style(f"  {'constraint':<{width}}  hosts  detail", bold=True))
        lines += [
            f"  {cost.constraint:<{width}}  {f'{cost.hosts}/{refusal.hosts}':>5}  {cost.detail}".rstrip()
            for cost in refusal.costs
        ]
    if refusal.smallest_change:
        lines.append(click.style("  smallest change that would fit: ", bold=True) + refusal.smallest_change)
    return lines
