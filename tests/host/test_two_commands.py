"""`make up` and `make down` as a newcomer sees them: what is printed works as printed, and nothing stays."""

import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.cloud import Lab
from lab.commands import run
from lab.layout import ROOT
from lab.processes import end, marked, mentioning
from lab.traces import COMMAND, traces
from lab.underlay import ensure_underlay

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


def command(*words: str, timeout_s: float = 200) -> str:
    """Run the lab's command line, as the Makefile does, and return what it printed."""
    return run([sys.executable, "-P", "-m", "lab", *words], timeout_s=timeout_s, folder=ROOT)


@pytest.fixture
def name() -> Iterator[str]:
    """Give the name of a lab that is gone afterwards, whatever the test did."""
    name = f"two{os.getpid()}"
    yield name
    Lab(name).down()


def commands_in(printed: str) -> list[list[str]]:
    """Return the commands under `Try next:`."""
    block = printed.split("Try next:\n")[1].split("\n\n", maxsplit=1)[0]
    return [shlex.split(line) for line in block.splitlines()]


def test_up_shows_a_login_prompt_and_what_it_says_works_as_printed(name: str) -> None:
    printed = command("up", "--name", name)
    lab = Lab(name)
    assert "hello login:" in printed
    assert re.search(r"VM hello runs at 10\.20\.0\.\d+ on h1", printed)
    assert f"API: {lab.url}\n" in printed

    create, show, console = commands_in(printed)
    run(create, timeout_s=90)
    assert re.search(r"^web +running +10\.20\.0\.\d+ ", run(show), re.MULTILINE)
    assert "web login:" in on_a_terminal(console, "web login:")
    run([create[0], "vm", "delete", "web", "--wait"], timeout_s=90)

    assert "hello login:" in command("up", "--name", name)

    command("down", "--name", name)
    assert traces(lab.layout) == []
    assert mentioning(f"{lab.layout.folder}/") == set()
    assert not COMMAND.is_symlink() or COMMAND.exists()
    command("down", "--name", name)


def on_a_terminal(words: list[str], wanted: str) -> str:
    """Run a command on a terminal, press Enter, read until something comes, then detach with Ctrl-]."""
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    os.set_blocking(master, False)
    seen, deadline = "", time.monotonic() + 60
    while wanted not in seen and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            seen += os.read(master, 65536).decode(errors="replace")
        except BlockingIOError:
            os.write(master, b"\r")
    os.write(master, b"\x1d")
    try:
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return seen


def test_stop_and_start_keep_the_machines(name: str) -> None:
    lab = Lab(name)
    lab.up(1)
    lab.furnish()
    lab.cli("vm", "create", "stays", "--image", "tiny", "--size", "small", "--wait")
    vm = lab.vm("stays")

    command("stop", "--name", name)

    assert marked("SKERRY_LAB", str(lab.layout.folder)) == set()
    assert lab.host("h1").init() is None

    command("start", "--name", name)

    assert lab.vm("stays").id == vm.id
    path = "/v1/projects/demo/vms/stays"
    lab.api.wait(path, lambda seen: seen.state == "running", "running", timeout_s=60)
    deadline = time.monotonic() + 30
    while vm.id not in lab.host("h1").run(["virsh", "-q", "list", "--name"]):
        assert time.monotonic() < deadline, "the host did not boot its machine again"
        time.sleep(0.2)


def test_up_repairs_and_down_removes_what_was_killed(name: str) -> None:
    lab = Lab(name)
    lab.up(1)
    keeper, init = lab.controller.keeper(), lab.host("h1").init()
    assert keeper is not None
    assert init is not None
    end([keeper, init], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while marked("SKERRY_LAB", str(lab.layout.folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked("SKERRY_LAB", str(lab.layout.folder)) == set()

    lab.up(1)
    lab.wait_for_hosts()
    assert lab.api.get("/v1/hosts/h1").state == "ready"

    end(marked("SKERRY_LAB", str(lab.layout.folder)), signal.SIGKILL)
    lab.down()
    assert traces(lab.layout) == []


def test_a_port_that_another_program_took_meanwhile_is_given_up(name: str) -> None:
    lab = Lab(name)
    ensure_underlay(lab.layout)
    lab.controller.init()
    port = int(lab.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        lab.controller.start()
        lab.controller.ensure_port()
        assert lab.controller.listens()
    assert int(lab.url.rpartition(":")[2]) != port


def test_a_lost_command_line_token_is_made_anew(name: str) -> None:
    lab = Lab(name)
    lab.up(1)
    for path in (lab.layout.folder / "token", lab.layout.cli_config):
        path.unlink()
    lab.up(1)
    assert re.search(r"^h1 +ready ", lab.cli("host", "list"), re.MULTILINE)
