"""The reference pages are as the code makes them, and every command that a page shows can be typed."""

import re
from pathlib import Path

import pytest
from wholeness import TOP, command_fault

from common.errors import ERRORS
from common.kinds import KINDS
from controller.reference import PAGES, REFERENCE

_REST = re.compile(r"\s*;\s|\s+(?:&&|\|\|?|[0-9&]?>)")
"""Where the shell's words end a command."""
_BLOCK = re.compile(r"^```(?:sh|console|bash)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def stale(directory: Path) -> list[str]:
    """Return the pages that are not as the code makes them, and those that it does not make."""
    found = [name for name, page in PAGES.items() if _text(directory / name) != page()]
    return found + sorted(path.name for path in directory.glob("*") if path.name not in PAGES)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def shown_commands(page: str, known: set[str]) -> list[str]:
    """Return the `skerry` lines of a page's code that name a kind or command there is and have no placeholders."""
    lines = [line.strip().removeprefix("$ ") for block in _BLOCK.findall(page) for line in block.splitlines()]
    plain = [_REST.split(line, maxsplit=1)[0] for line in lines if line.startswith("skerry ")]
    return [line for line in plain if "…" not in line and line.split()[1] in known]


def test_the_reference_is_fresh() -> None:
    assert not stale(REFERENCE), f"docs/reference is not what the code makes ({', '.join(stale(REFERENCE))}): make docs"


def test_a_stale_page_is_found(tmp_path: Path) -> None:
    for name, page in PAGES.items():
        (tmp_path / name).write_text(page())
    assert stale(tmp_path) == []
    (tmp_path / "kinds.md").write_text("old")
    (tmp_path / "api.md").unlink()
    (tmp_path / "more.md").write_text("")
    assert stale(tmp_path) == ["kinds.md", "api.md", "more.md"]


def test_every_error_code_is_documented() -> None:
    page = (REFERENCE / "errors.md").read_text()
    assert [error.code for error in ERRORS if f"`{error.code}`" not in page] == []


PAGES_WITH_COMMANDS = [
    page
    for page in (TOP / "README.md", *sorted((TOP / "docs").rglob("*.md")))
    if page.exists() and page.name != "adding-a-kind.md"
]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: str(page.relative_to(TOP)))
def test_the_commands_that_a_page_shows_can_be_typed(page: Path) -> None:
    everything = {kind.name for kind in KINDS} | {
        "console",
        "why",
        "events",
        "operation",
        "audit",
        "status",
        "context",
        "capacity",
        "cpus",
        "quota",
    }
    faults = [fault for line in shown_commands(page.read_text(), everything) if (fault := command_fault(line))]
    assert not faults, "\n".join(faults)


def test_relative_links_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(TOP)}: {link}"
        for page in PAGES_WITH_COMMANDS
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert not broken, "\n".join(broken)
