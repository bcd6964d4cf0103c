"""Sockets handed over, and readiness told, as a service manager does it."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import Invalid
from common.sockets import feed_watchdog, notify, take_listeners, watchdog_s
from tests.patience import PATIENCE_S

FIRST = 200
"""Where a test puts its descriptors: a service manager starts at 3, which pytest has in use."""


@pytest.fixture
def handed_over() -> Iterator[tuple[int, int]]:
    """Two listening sockets under the numbers FIRST and FIRST + 1."""
    ports = []
    for offset in range(2):
        made = socket.create_server(("127.0.0.1", 0))
        ports.append(made.getsockname()[1])
        os.dup2(made.fileno(), FIRST + offset)
        made.close()
    yield ports[0], ports[1]
    for offset in range(2):
        try:
            os.close(FIRST + offset)
        except OSError:
            continue


def test_sockets_are_taken_by_name_and_only_once(handed_over: tuple[int, int]) -> None:
    environ = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:link", "LISTEN_PID": "42", "HOME": "/"}

    taken = take_listeners(environ, pid=42, first=FIRST)

    assert {name: sock.getsockname()[1] for name, sock in taken.items()} == {
        "api": handed_over[0],
        "link": handed_over[1],
    }
    assert environ == {"HOME": "/"}
    assert not any(os.get_inheritable(sock.fileno()) for sock in taken.values())
    for sock in taken.values():
        sock.close()


def test_sockets_of_another_process_are_left_alone() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "api", "LISTEN_PID": "41"}
    assert take_listeners(environ, pid=42) == {}
    assert "LISTEN_FDS" in environ


def test_without_variables_nothing_is_taken() -> None:
    assert take_listeners({}) == {}


@pytest.mark.parametrize(
    ("count", "names"), [("2", "api"), ("two", "api:link"), ("2", "api:api"), ("1", "")],
)  # fmt: skip
def test_variables_that_make_no_sense_are_refused(count: str, names: str) -> None:
    with pytest.raises(Invalid, match="does not go with"):
        take_listeners({"LISTEN_FDS": count, "LISTEN_FDNAMES": names})


def test_a_descriptor_that_is_no_socket_is_named() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(Invalid, match=f"file descriptor {fd}, handed over as 'api', is no socket"):
            take_listeners({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"}, first=fd)
    finally:
        os.close(fd)


def test_readiness_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(2)
        notify("READY=1", {"NOTIFY_SOCKET": path})
        assert manager.recv(64) == b"READY=1"


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notify("READY=1", {})


async def test_a_watchdog_hears_of_the_loop_again_and_again(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        feeding = asyncio.create_task(feed_watchdog({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000"}))
        try:
            async with asyncio.timeout(PATIENCE_S):
                heard = [await asyncio.get_running_loop().sock_recv(manager, 64) for _ in range(3)]
        finally:
            feeding.cancel()
    assert heard == [b"WATCHDOG=1"] * 3


async def test_no_watchdog_is_fed_where_none_waits() -> None:
    await feed_watchdog({})
    await feed_watchdog({"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"})
    assert watchdog_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, pid=7) == 60
