"""How bytes come off connections: into one buffer for all of them, of which each gets what is its own."""

import asyncio
from collections.abc import Callable

ROOM = 256 * 1024

_shared = memoryview(bytearray(ROOM))
"""Filled and emptied within one call of the event loop. Without it each read of a few bytes under TLS makes a new
buffer of 256 KiB first."""


class Sparing(asyncio.BufferedProtocol):
    """Hands everything on to a protocol that takes bytes."""

    __slots__ = ("_of",)

    def __init__(self, of: asyncio.Protocol) -> None:
        self._of = of

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the name is asyncio's
        """Return where to read to."""
        return _shared

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read."""
        self._of.data_received(bytes(_shared[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand on that the connection is there."""
        self._of.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on that it is not any more."""
        self._of.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Hand on that nothing more comes."""
        return self._of.eof_received()

    def pause_writing(self) -> None:
        """Hand on that too much waits to be sent."""
        self._of.pause_writing()

    def resume_writing(self) -> None:
        """Hand on that it was sent."""
        self._of.resume_writing()


def sparing(connect: Callable[[], asyncio.Protocol]) -> Callable[[], Sparing]:
    """Return what makes such protocols."""
    return lambda: Sparing(connect())
