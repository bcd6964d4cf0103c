"""Reading server-sent events: fields by line, an empty line ends an event, a colon begins a comment."""

from collections.abc import AsyncIterator
from typing import NamedTuple

from common.errors import Problem
from controller.cli.client import Client, Query
from controller.cli.failures import Refused


class Sent(NamedTuple):
    """One event."""

    name: str
    place: int
    """Where to go on behind it when the stream breaks."""
    data: bytes


async def events(client: Client, path: str, query: Query, place: int) -> AsyncIterator[Sent]:
    """Give the events of a stream behind a place. Raises Refused for what ends it, Unreachable where it breaks."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(place)} if place else {})}
    name, data = "", b""
    async with client.open("GET", path, query=query, headers=headers) as response:
        async for line in response.content:
            field, _, value = line.rstrip(b"\r\n").partition(b": ")
            match field:
                case b"id":
                    place = int(value)
                case b"event":
                    name = value.decode()
                case b"data":
                    data += value
                case b"" if data and name == "problem":
                    raise Refused(client.decode(data, Problem))
                case b"" if data:
                    yield Sent(name, place, data)
                    name, data = "", b""
                case _:
                    pass
