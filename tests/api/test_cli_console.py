"""Console, serial log and waiting, against a small server that behaves like the API and can be made to misbehave."""

import asyncio
import os
import pty
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from cli_world import SKERRY, World

from common.codec import to_json
from common.errors import Conflict
from common.refusal import Cost, Refusal

REFUSAL = Refusal(
    summary="none of 2 hosts fits",
    hosts=2,
    costs=(Cost(constraint="memory", hosts=2, detail="size small needs 512 MiB; the most free is 256 MiB"),),
    smallest_change="a size with 256 MiB of memory",
)


class Api:
    """A machine's console that echoes, a log that grows, and operations that end as they are called."""

    def __init__(self) -> None:
        self.log = b""
        self.attached = 0
        self.polls = 0
        self.lost = range(0)
        self._stopped = asyncio.Event()

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        base = "/v1/projects/shop/vms/{name}"
        app.router.add_get(f"{base}/console", self._console)
        app.router.add_get(f"{base}/log", self._log)
        app.router.add_get("/v1/operations/{id}", self._operation)
        return app

    async def _console(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["name"] == "nowhere":
            problem = Conflict("vm nowhere is on no host yet", fix="see why").problem()
            return web.Response(body=to_json(problem), status=409, content_type="application/problem+json")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.attached += 1
        await socket.send_bytes(b"login: ")
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                continue
            if b"drop" in message.data:
                assert request.transport
                request.transport.abort()
            elif b"bye" in message.data:
                await socket.close(code=WSCloseCode.OK, message=b"the machine was stopped")
            elif b"fail" in message.data:
                await socket.send_str(to_json(Conflict("the host left", fix="wait").problem()).decode())
            else:
                await socket.send_bytes(b"<" + message.data.strip() + b">")
        return socket

    async def _log(self, request: web.Request) -> web.Response:
        return web.Response(body=self.log[-int(request.query["tail_bytes"]) :], content_type="text/plain")

    async def _operation(self, request: web.Request) -> web.Response:
        self.polls += 1
        if self.polls in self.lost:
            assert request.transport
            request.transport.abort()
        end = request.match_info["id"].removeprefix("op-")
        state = "running" if self.polls % 3 else end
        body = {
            "id": f"op-{end}", "verb": "create", "kind": "vm", "resource": "vm-1", "name": "web", "state": state,
            "message": f"step {self.polls % 3}", "progress": 0.5, "why": REFUSAL if state == "blocked" else None,
            "revision": self.polls, "created_at": 1.0, "finished_at": None,
        }  # fmt: skip
        return web.json_response(body=to_json(body))

    async def serve(self, started: Callable[[int], None]) -> None:
        """Serve until `stop`; say on which port."""
        runner = web.AppRunner(self.app(), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server
        started(site._server.sockets[0].getsockname()[1])
        await self._stopped.wait()
        await runner.cleanup()

    def stop(self) -> None:
        """End it."""
        self._stopped.set()


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def world(api: Api, tmp_path: Path) -> Iterator[World]:
    port: list[int] = []
    ready = threading.Event()

    def started(number: int) -> None:
        port.append(number)
        ready.set()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(api.serve(started)))
    thread.start()
    assert ready.wait(10)
    yield World(url=f"http://127.0.0.1:{port[0]}", token="skt_x", home=tmp_path)
    loop.call_soon_threadsafe(api.stop)
    thread.join()
    loop.close()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, world: World, *words: str) -> None:
        self._leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [*SKERRY, *words], env=world.environment(TERM="xterm"), stdin=follower, stdout=follower, stderr=follower
        )
        os.close(follower)
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read what is shown until this text."""
        while text not in self.seen:
            try:
                self.seen += os.read(self._leader, 4096).decode()
            except OSError as err:
                raise AssertionError(f"{text!r} was not shown in {self.seen!r}") from err

    def type(self, text: str) -> None:
        """Type keys."""
        os.write(self._leader, text.encode())

    def end(self) -> int:
        """Wait for the command's end and return its exit code."""
        return self.process.wait(timeout=20)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._leader)


def test_keys_go_to_the_machine_one_by_one_and_ctrl_bracket_detaches(world: World) -> None:
    with Terminal(world, "console", "web") as terminal:
        terminal.read_until("Ctrl-] detaches")
        terminal.read_until("login: ")
        terminal.type("\x03")
        terminal.read_until("<\x03>")
        terminal.type("a\x1d")
        terminal.read_until("[detached]")
        assert terminal.end() == 0


def test_a_broken_link_is_told_and_attached_again(world: World, api: Api) -> None:
    with Terminal(world, "vm", "console", "web") as terminal:
        terminal.read_until("login: ")
        terminal.type("drop")
        terminal.read_until("broke; trying again in 1 s")
        terminal.seen = ""
        terminal.read_until("login: ")
        assert api.attached == 2
        terminal.type("\x1d")
        assert terminal.end() == 0


def test_the_machines_end_ends_the_console_and_says_why(world: World) -> None:
    with Terminal(world, "console", "web") as terminal:
        terminal.read_until("login: ")
        terminal.type("bye")
        terminal.read_until("the console was closed: the machine was stopped")
        assert terminal.end() == 0


def test_a_script_types_its_input_and_leaves_when_it_is_quiet(world: World) -> None:
    ended = world.skerry("console", "web", "--linger", "0.5", stdin="uname\n")
    assert ended.out == "login: <uname>"
    assert world.skerry("console", "web", "--linger", "0.3").out == "login: "


def test_a_console_that_is_refused_says_why(world: World) -> None:
    ended = world.skerry("console", "nowhere", code=1)
    assert "error: vm nowhere is on no host yet" in ended.err
    assert "error: the host left" in world.skerry("console", "web", stdin="fail", code=1).err
    assert "broke" in world.skerry("console", "web", stdin="drop", code=1).err


def test_the_log_is_printed_cut_and_followed(world: World, api: Api) -> None:
    api.log = b"one\ntwo\nthree\n"
    assert world.skerry("vm", "log", "web").out == "one\ntwo\nthree\n"
    assert world.skerry("vm", "log", "web", "--tail", "1").out == "three\n"
    with subprocess.Popen(
        [*SKERRY, "vm", "log", "web", "--tail", "1", "--follow"],
        env=world.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as follow:
        assert follow.stdout
        assert follow.stdout.readline() == "three\n"
        api.log += b"four\n"
        assert follow.stdout.readline() == "four\n"
        follow.kill()


@pytest.mark.parametrize(("end", "code"), [("done", 0), ("failed", 3), ("cancelled", 3), ("blocked", 4)])
def test_a_wait_ends_with_the_code_of_the_operations_end(world: World, end: str, code: int) -> None:
    ended = world.skerry("operation", "wait", f"op-{end}", code=code)
    assert "vm web: step 1, 50% (0." in ended.err
    assert ended.err.count("vm web: step 2") == 1


def test_a_refusal_is_a_table_with_the_smallest_change(world: World) -> None:
    lines = world.skerry("operation", "wait", "op-blocked", code=4).err.splitlines()
    assert "error: vm web: create is blocked: none of 2 hosts fits" in lines
    assert "  constraint  hosts  detail" in lines
    assert "  memory        2/2  size small needs 512 MiB; the most free is 256 MiB" in lines
    assert "  smallest change that would fit: a size with 256 MiB of memory" in lines


def test_a_wait_outlives_a_controller_that_is_away(world: World, api: Api) -> None:
    api.lost = range(2, 5)
    ended = world.skerry("operation", "wait", "op-done", "--timeout", "30")
    assert "lost the connection to" in ended.err
    assert "; trying again" in ended.err


def test_a_wait_that_takes_too_long_exits_5(world: World) -> None:
    ended = world.skerry("operation", "wait", "op-running", "--timeout", "0.5", code=5)
    assert "is not finished after 0.5 s" in ended.err
    assert "skerry operation wait op-running" in ended.err
