"""The manual, tried: what README, tenants.md and api.md show is typed on a real cloud, and prints what they show.

A block marked `console` holds commands after `$ ` (and `> ` for a line that goes on) with what they print. Everything
else that can be held against the code without a host is: quoted messages, keys, metrics, and names of files.
"""

import ast
import os
import re
import select
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from agent.config import Config as AgentConfig
from controller.api.metrics import METRICS
from controller.config import parse
from lab.layout import ROOT
from tests.host.test_two_commands import on_a_terminal
from tests.lab.calls import Cloud

README = ROOT / "README.md"
DOCS = ROOT / "docs"
API = "http://127.0.0.1:8080"
"""The API's URL as the pages write it; a lab's may have another port."""

LEFT_OUT = "…"
"""Alone on a line: something that is printed and not shown."""

LIMIT_S = 60.0
"""For one command."""

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_VARIES: tuple[tuple[str, str], ...] = (
    (r"\b(vm|vol|net|img|key|size|op|req|host|tok|prj)-[0-9a-z]{12}\b", r"\1-ID"),
    (r"\bsk[tj]_\S+", "TOKEN"),
    (r"\bsha256:[0-9a-f]+", "DIGEST"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?", "MOMENT"),
    (r"\b\d+\.\d+ s\b", "TIME"),
    (r"\b\d+[smhd]\b", "AGE"),
    (r"\b(\d+\.\d+\.\d+)\.\d+\b", r"\1.N"),
    (r"\b\d+(?:\.\d+)?(?= (?:vCPUs|MiB|GiB))", "N"),
    (r"(?<=free on one host is )\d+", "N"),
    (r"^id: \d+", "id: N"),
    (r"\s+", " "),
)
"""What differs from run to run: ids, secrets, times, the last number of an address, and what a machine has."""


class Step(NamedTuple):
    """A command of a page, and the lines that it is shown to print."""

    page: str
    command: str
    shown: tuple[str, ...]

    @property
    def fails(self) -> bool:
        """Whether the page shows it fail."""
        return any(line.startswith(("error:", "Error:")) for line in self.shown)


def steps(page: str, text: str) -> list[Step]:
    """Return the commands of a page's console blocks, in order."""
    found: list[tuple[list[str], list[str]]] = []
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1][0].append(line[2:])
            elif line.strip():
                found[-1][1].append(line)
    return [Step(page, "\n".join(command), tuple(shown)) for command, shown in found]


def plain(line: str) -> str:
    """Return a line without what varies from run to run."""
    for pattern, word in _VARIES:
        line = re.sub(pattern, word, line)
    return line.strip()


def missing(shown: Iterable[str], printed: str) -> str:
    """Return the first line that is shown and was not printed in that order, empty where all were."""
    lines = iter([plain(line) for line in _ESCAPES.sub("", printed).replace("\r", "\n").splitlines()])
    for line in shown:
        wanted = plain(line)
        if wanted != LEFT_OUT and not any(wanted == one for one in lines):
            return line
    return ""


class Terminal:
    """A shell that keeps its variables and its directory from one command to the next."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._count = 0

    def type(self, command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it printed on either channel."""
        assert self._process.stdin is not None
        self._count += 1
        mark = f"--- end of command {self._count}:"
        line = f"{{\n{command}\n}} </dev/null\n__code=$?\nprintf '\\n{mark} %s\\n' $__code\n(exit $__code)\n"
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        printed, _, code = self._until(rf"\n{mark} (\d+)\n", command).rpartition(f"\n{mark} ")
        return int(code), printed

    def _until(self, pattern: str, command: str) -> str:
        assert self._process.stdout is not None
        got, deadline = "", time.monotonic() + LIMIT_S
        while not re.search(pattern, got):
            left = deadline - time.monotonic()
            assert left > 0, f"`{command}` did not end in {LIMIT_S:.0f} s; it printed:\n{got}"
            if select.select([self._process.stdout], [], [], left)[0]:
                got += os.read(self._process.stdout.fileno(), 65536).decode(errors="replace")
        return got


@contextmanager
def terminal(cloud: Cloud, folder: Path) -> Iterator[Terminal]:
    """Open a shell in which `skerry` speaks to the cloud."""
    path = f"{cloud.lab.layout.skerry.parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8", "TERM": "dumb"}
    words = ["bash", "--noprofile", "--norc"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
    ) as process:
        try:
            yield Terminal(process)
        finally:
            process.kill()


def done(step: Step, cloud: Cloud, shell: Terminal) -> tuple[int, str]:
    """Do what a page shows; return the exit code and what was printed. A console is looked at as a person does."""
    words = shlex.split(step.command, comments=True)
    if words[:2] == ["skerry", "console"]:
        wanted = next(line for line in reversed(step.shown) if line != LEFT_OUT)
        return 0, on_a_terminal([str(cloud.lab.layout.skerry), *words[1:]], wanted)
    return shell.type(step.command.replace(API, cloud.lab.url))


@pytest.mark.host
@pytest.mark.timeout(400)
def test_what_the_pages_show_is_what_one_sees(cloud: Cloud, tmp_path: Path) -> None:
    tour = [
        *steps("README.md", README.read_text()),
        *steps("docs/tenants.md", (DOCS / "tenants.md").read_text()),
        *steps("docs/api.md", (DOCS / "api.md").read_text()),
    ]
    assert len(tour) > 40
    told = []
    try:
        with terminal(cloud, tmp_path) as shell:
            for step in tour:
                began = time.monotonic()
                code, printed = done(step, cloud, shell)
                told.append(f"$ {step.command}\n{printed.strip()}\n({time.monotonic() - began:.1f} s)")
                story = "\n".join(told[-6:])
                assert (code != 0) == step.fails, f"{step.page}: `{step.command}` ended with {code}:\n{story}"
                lacks = missing((line.replace(API, cloud.lab.url) for line in step.shown), printed)
                assert not lacks, f"{step.page}: `{step.command}` did not print `{lacks}`:\n{story}"
    finally:
        (ROOT / "build" / "lab-logs").mkdir(parents=True, exist_ok=True)
        (ROOT / "build" / "lab-logs" / "docs.txt").write_text("\n".join(told) + "\n")
        cloud.tidy()
    left = cloud.must("GET", "/v1/projects/demo/vms?limit=1000")["items"]
    assert left == [], "a page does not clean up after itself"


# --- without a host -----------------------------------------------------------------------------------------------


def test_a_page_is_taken_apart_into_commands_and_what_they_print() -> None:
    page = "a\n```console\n$ one \\\n> two\nout\n\n$ three\n```\n```sh\n$ no\n```\n```console\n$ four\nerror: x\n```\n"
    assert steps("p", page) == [
        Step("p", "one \\\ntwo", ("out",)),
        Step("p", "three", ()),
        Step("p", "four", ("error: x",)),
    ]
    assert [step.fails for step in steps("p", page)] == [False, False, True]


def test_what_was_not_printed_is_found_out() -> None:
    printed = "vm   web\x1b[0m\nstate running\n  5s ago vm.create by vm-0123456789ab at 10.20.0.7\n"
    assert missing(["vm web", "…", "9m ago vm.create by vm-abcdefghijkl at 10.20.0.3"], printed) == ""
    assert missing(["state running", "vm web"], printed) == "vm web"
    assert missing(["state stopped"], printed) == "state stopped"


def said(code: str) -> Iterator[str]:
    """Give every text in a module's code, with `…` for what is filled in; neither docstrings nor comments."""
    tree = ast.parse(code)
    spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else LEFT_OUT for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            yield node.value


def is_said(message: str, texts: Iterable[str]) -> bool:
    """Say whether some text has the message's fixed parts, in order."""
    parts = [re.escape(part.strip()) for part in message.split(LEFT_OUT) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def quoted(page: str) -> list[str]:
    """Return the messages in the first column of a page's tables."""
    cells = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall(r"`((?:\\`|[^`])+)`", cell)]


def test_quoted_messages_are_the_code_s_own() -> None:
    code = [path for part in ("agent", "common", "controller") for path in (ROOT / part).rglob("*.py")]
    texts = [text for path in code for text in said(path.read_text())]
    messages = quoted((DOCS / "troubleshooting.md").read_text())
    assert len(messages) > 100
    assert [message for message in messages if not is_said(message.replace("\\`", "`"), texts)] == []


def test_a_message_that_nobody_says_is_found_out() -> None:
    code = '"""No such thing."""\nraise Bad(f"host {name} has {count} machines: " f"{names}")\n"said as text"'
    texts = list(said(code))
    assert is_said("host … has … machines: …", texts)
    assert not is_said("host … has … guests: …", texts)
    assert not is_said("No such thing.", texts)
    assert quoted("| `a …`, `b` | why `c` |\n| text | `d` |\n") == ["a …", "b"]


def test_metrics_that_pages_name_are_there() -> None:
    known = {shown.name for shown in METRICS} | {f"{shown.name}_total" for shown in METRICS if shown.type == "counter"}
    known |= {"skerry_http_request_seconds", "skerry_http_request_seconds_count"}
    named = {name for page in DOCS.glob("*.md") for name in re.findall(r"\bskerry_[a-z0-9_]+", page.read_text())}
    assert named > {"skerry_ready", "skerry_host_connected"}
    assert named - known == set()


def test_every_key_of_the_agent_s_configuration_is_on_the_operators_page() -> None:
    page = (DOCS / "operators.md").read_text()
    keys = {
        (section.name, key.name)
        for section in msgspec.structs.fields(AgentConfig)
        for key in msgspec.structs.fields(section.type)
    }
    shown = set(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert shown == keys


def test_configuration_that_pages_show_can_be_read() -> None:
    blocks = [
        block
        for page in DOCS.glob("*.md")
        for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        parse(block, "the page")


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_files_of_the_tree_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:agent|common|controller|lab|tests|docs)/[\w/.-]+\.(?:py|md|txt|sh|toml))`", page.read_text()
    )
    if page.name == "adding-a-kind.md":
        named = [name for name in named if "note" not in name]
    assert [name for name in named if not (ROOT / name).exists()] == []
