"""Doing what docs/adding-a-kind.md says, to a copy of the tree."""

import re
import shutil
from pathlib import Path

TOP = Path(__file__).parents[2]
PAGE = TOP / "docs" / "adding-a-kind.md"
COPIED = (
    "agent",
    "common",
    "controller",
    "docs",
    "lab",
    "sim",
    "tests",
    "pyproject.toml",
    "README.md",
    "CHANGES.md",
    ".importlinter",
)

_STEP = re.compile(r"^`(?P<path>[\w./]+)`\n\n(?P<blocks>(?:```\w+\n.*?^```\n\n?)+)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def copy_tree(to: Path) -> Path:
    """Copy the sources and tests."""
    for name in COPIED:
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, to / name)
    return to


def steps(page: str) -> list[tuple[str, str, str]]:
    """Return (file, language, text) of every block that stands below a file's name."""
    return [
        (step["path"], block["language"], block["text"])
        for step in _STEP.finditer(page)
        for block in _BLOCK.finditer(step["blocks"])
    ]


def follow(page: str, tree: Path) -> list[str]:
    """Write the files and make the changes that a page shows; return the files."""
    done = []
    for path, language, text in steps(page):
        file = tree / path
        if language == "diff":
            file.write_text(changed(file.read_text(), text))
        else:
            assert not file.exists(), f"{path} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        done.append(path)
    return done


def changed(before: str, diff: str) -> str:
    """Return a text after a change shown by context (` `), removed (`-`) and added (`+`) lines."""
    lines = diff.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " +")
    assert before.count(old) == 1, f"these lines are there {before.count(old)} times:\n{old}"
    return before.replace(old, new)
