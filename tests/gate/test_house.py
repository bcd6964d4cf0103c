"""The house rules hold, and each check finds what breaks it."""

import re
import tomllib
from pathlib import Path

import pytest
from house import (
    CODE,
    EVERYWHERE,
    IN_CODE,
    MOST_LINES,
    TOP,
    Check,
    finished,
    first_line,
    length,
    names,
    own_words,
    owned_tasks,
    sources,
)


def faults(paths: list[Path], checks: tuple[Check, ...]) -> list[str]:
    return [
        f"{path.relative_to(TOP)} {fault}" for path in paths for check in checks for fault in check(path.read_text())
    ]


def test_the_code_keeps_the_rules() -> None:
    found = faults(sources(*CODE), (*EVERYWHERE, *IN_CODE))
    assert not found, "\n".join(found)


def test_the_tests_keep_the_rules() -> None:
    found = faults(sources("tests"), EVERYWHERE)
    assert not found, "\n".join(found)


def test_no_two_test_files_share_a_name() -> None:
    """pytest puts every test directory on one path: of two modules with one name, one would stand for both."""
    stems = [path.name for path in sources("tests") if path.name not in ("conftest.py", "__init__.py", "__main__.py")]
    assert sorted({name for name in stems if stems.count(name) > 1}) == []


def test_pages_and_scripts_name_only_what_a_reader_can_see() -> None:
    pages = [TOP / "README.md", TOP / "Makefile", *(TOP / "docs").rglob("*.md"), *(TOP / "lab").rglob("*.sh")]
    found = faults([page for page in pages if page.exists()], (own_words, finished))
    assert not found, "\n".join(found)


def test_every_dependency_is_declared_and_has_a_reason() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    page = (TOP / "docs" / "decisions" / "0001-foundations.md").read_text().lower()
    names_asked = [re.split(r"[\[>=<]", text)[0] for text in asked]
    missing = [name for name in names_asked if f"`{name}`" not in page]
    assert not missing, f"docs/decisions/0001-foundations.md says nothing of {', '.join(missing)}"


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (length, "x\n" * (MOST_LINES + 1), "x\n" * MOST_LINES),
        (first_line, "import os\n", '"""What it owns."""\nimport os\n'),
        (first_line, '# hello\n"""What it owns."""\n', ""),
        (finished, "x = 1  # TO" + "DO: more\n", "x = 1\n"),
        (own_words, "see /work" + "/main/x\n", "see the page\n"),
        (names, "class Vm" + "Manager: ...\n", "class Lease: ...\n"),
        (owned_tasks, "asyncio.create_task(f())\n", "tasks.create_task(f())\n"),
        (owned_tasks, "asyncio.ensure_future(f())\n", "await f()\n"),
    ],
)
def test_a_check_finds_what_breaks_its_rule(check: Check, bad: str, good: str) -> None:
    assert list(check(bad))
    assert not list(check(good))
