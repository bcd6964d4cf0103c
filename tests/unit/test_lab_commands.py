"""The lab's commands: what a long one says is said as it comes, and what fails is told with its last words."""

import time
from pathlib import Path

import pytest

from common.run import CommandFailed
from lab.commands import watch
from lab.debian import listed


def test_a_watched_command_says_its_lines_and_only_the_end_of_its_progress() -> None:
    said: list[str] = []
    watch(["printf", "one\\n10%%\\r100%%\\ntwo\\n"], said.append, timeout_s=10)
    assert said == ["one", "100%", "two"]


def test_a_watched_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(CommandFailed, match="ended with 4: before\nit went wrong"):
        watch(["sh", "-c", "echo before; echo it went wrong >&2; exit 4"], lambda _line: None, timeout_s=10)


def test_a_watched_command_is_ended_when_its_time_is_over() -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="ended with -9"):
        watch(["sleep", "60"], lambda _line: None, timeout_s=0.1)
    assert time.monotonic() - started < 50


def test_a_watched_command_ends_with_whoever_watches() -> None:
    def interrupted(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(["sh", "-c", "echo here; exec sleep 60"], interrupted, timeout_s=50)


def test_a_list_of_packages_is_read_without_its_reasons(tmp_path: Path) -> None:
    file = tmp_path / "packages.txt"
    file.write_text("# why: what\n\nlvm2   volume groups\nudev\n")
    assert listed(file) == ["lvm2", "udev"]
