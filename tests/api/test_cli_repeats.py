"""The command's mutations over a connection that breaks: sent again under one key, carried out once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from api_world import P, World

from common.secret import Secret
from controller.cli import client as module
from controller.cli.client import Client
from controller.cli.failures import Failure, Unreachable
from controller.cli.settings import Connection


class Proxy:
    """Passes bytes on to a controller; the first answers are cut off: the request arrives, its answer does not."""

    def __init__(self, port: int, cuts: int) -> None:
        self.port = port
        self.cuts = cuts
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower()[:15] == b"content-length:"), 0
            )
            down.write(head + await reader.readexactly(length))
            self.requests += 1
            answer = await up.readuntil(b"\r\n\r\n")
            if self.cuts:
                self.cuts -= 1
                return
            writer.write(answer)
            while data := await up.read(65536):
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            down.close()
            writer.close()


@asynccontextmanager
async def over(cloud: World, *, cuts: int) -> AsyncIterator[tuple[Client, Proxy]]:
    """Give a client that speaks through the proxy."""
    assert cloud.client.port is not None
    proxy = Proxy(cloud.client.port, cuts)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connection = Connection(url=url, token=Secret(cloud.tokens["root"]), project="a", ca="", context="")
    async with server, Client(connection) as client:
        yield client, proxy


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_PAUSE_S", 0.01)


async def test_a_lost_answer_is_asked_for_again_and_the_thing_made_once(cloud: World) -> None:
    async with over(cloud, cuts=2) as (client, proxy):
        accepted = await client.change("POST", f"{P}/a/networks", body={"name": "n"})

    assert accepted.operation.subject == "network n"
    assert proxy.requests == 3
    assert [op.verb for op in cloud.store.seen.operations() if op.name == "n"] == ["create"]


async def test_a_secret_whose_answer_was_lost_is_said_to_be_lost(cloud: World) -> None:
    async with over(cloud, cuts=1) as (client, _):
        with pytest.raises(Failure, match="token ci: create is accepted, but the connection broke") as caught:
            await client.change("POST", f"{P}/a/tokens", body={"name": "ci", "spec": {"role": "reader"}})

    assert "delete token ci" in caught.value.fix


async def test_it_gives_up_in_the_end(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEAT_FOR_S", 0.2)
    async with over(cloud, cuts=10_000) as (client, proxy):
        with pytest.raises(Unreachable, match="lost the connection"):
            await client.change("POST", f"{P}/a/networks", body={"name": "n"})

    assert proxy.requests > 1


async def test_a_controller_that_is_not_there_is_not_tried_again(cloud: World) -> None:
    async with over(cloud, cuts=0) as (client, _):
        pass
    async with Client(client.connection) as late:
        with pytest.raises(Unreachable, match="can't reach"):
            await asyncio.wait_for(late.change("POST", f"{P}/a/networks", body={"name": "n"}), 5)
