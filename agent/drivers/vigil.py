"""Notices at once that a daemon has ended which is no child of the agent: by its pidfd."""

import asyncio
import os
from collections.abc import Callable
from typing import NamedTuple

from common.ids import Id


class _Held(NamedTuple):
    pid: int
    pidfd: int


class Vigil:
    """Watches one process for each owner, on the running loop, and calls `ended` once when it is gone."""

    def __init__(self, ended: Callable[[Id], None]) -> None:
        self._ended = ended
        self._held: dict[Id, _Held] = {}

    def watch(self, owner: Id, pid: int) -> None:
        """Watch this process in place of the owner's last one; 0: none. One that has ended already is told of too."""
        held = self._held.get(owner)
        if held and held.pid == pid:
            return
        self._let_go(owner)
        if not pid:
            return
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_soon(self._ended, owner)
            return
        self._held[owner] = _Held(pid, pidfd)
        loop.add_reader(pidfd, self._end, owner)

    def close(self) -> None:
        """Watch nothing any more."""
        for owner in tuple(self._held):
            self._let_go(owner)

    def _end(self, owner: Id) -> None:
        self._let_go(owner)
        self._ended(owner)

    def _let_go(self, owner: Id) -> None:
        if held := self._held.pop(owner, None):
            asyncio.get_running_loop().remove_reader(held.pidfd)
            os.close(held.pidfd)
