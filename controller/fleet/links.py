"""Where it is noted which of several controllers a host is connected to: `controller.fleet.crew` does it."""

from typing import Protocol

from common.ids import HostId
from controller.store.rows import Link


class Links(Protocol):
    """Where it is noted which controller a host is connected to."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the controllers are dialled, if there are several."""
        ...

    async def take(self, host: HostId) -> None:
        """Note that a host is connected here; from then on `seen` is as new as any controller's was before."""
        ...

    async def leave(self, host: HostId) -> None:
        """Note that it is not any more."""
        ...

    def mine(self, link: Link, /) -> bool:
        """Say whether a link is one to this controller."""
        ...


class Alone:
    """The only controller there is: hosts are connected to it, or to none."""

    urls: tuple[str, ...] = ()

    async def take(self, host: HostId) -> None:
        """Nobody asks."""

    async def leave(self, host: HostId) -> None:
        """Nobody asks."""

    def mine(self, _link: Link) -> bool:
        """There are no others."""
        return True


ALONE = Alone()
