"""Planted deaths: every effect and commit is a named crash point, and a test can die at any of them.

In production `reached` costs one comparison. `Died` is a BaseException, so that no handler swallows it.
"""

from collections.abc import Callable

Hook = Callable[[str], None]


class Died(BaseException):
    """The process is taken to be dead from here on: what follows is a new process over the same disk."""


def nothing(_point: str) -> None:
    """Let every crash point pass."""


class Faults:
    """The crash points of one process. Pass it on; it is no global, since a simulator has many processes in one."""

    __slots__ = ("hook",)

    def __init__(self, hook: Hook = nothing) -> None:
        self.hook = hook

    def reached(self, point: str) -> None:
        """Say that the process is at this point, for instance `store.committed`. A planted death raises Died."""
        self.hook(point)
