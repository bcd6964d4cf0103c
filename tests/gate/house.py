"""The house rules that no linter knows, as functions of one file's text: each returns what is wrong, in words."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

TOP = Path(__file__).parents[2]
CODE = ("agent", "common", "controller", "lab", "sim")
MOST_LINES = 550

_UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")
_VAGUE = re.compile(r"(?:Manager|Helper|Helpers|Util|Utils|Base)$")
_FOREIGN = re.compile(r"/work/(?:main|shared)|\bissue\s+#?\d+\b", re.IGNORECASE)
"""Paths of a developer's machine, and trackers that a reader can't open."""

Check = Callable[[str], Iterator[str]]


def sources(*roots: str) -> list[Path]:
    """Return the Python files below these directories."""
    return sorted(path for root in roots for path in (TOP / root).rglob("*.py") if "__pycache__" not in path.parts)


def length(text: str) -> Iterator[str]:
    """A file is one noun, and fits a head."""
    lines = text.count("\n")
    if lines > MOST_LINES:
        yield f"has {lines} lines; a file has at most {MOST_LINES}: split it by what it is about"


def first_line(text: str) -> Iterator[str]:
    """A module's first line says what it owns."""
    tree = ast.parse(text)
    said = ast.get_docstring(tree)
    if not tree.body:
        return
    if not said:
        yield "has no docstring: say in the first line what the module owns"
    elif not text.startswith('"""' + said.splitlines()[0][:20]):
        yield "does not begin with its docstring"


def finished(text: str) -> Iterator[str]:
    """What is to do is in the tracker, not in the code."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _UNFINISHED.search(line):
            yield f"line {number}: {found[0]}: finish it, or take it out"


def own_words(text: str) -> Iterator[str]:
    """Nothing names what only its author can see."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := _FOREIGN.search(line):
            yield f"line {number}: {found[0]} means nothing to a reader"


def names(text: str) -> Iterator[str]:
    """A class is called by what it is."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and (found := _VAGUE.search(node.name)):
            yield f"class {node.name}: say what it is, without {found[0]}"


def owned_tasks(text: str) -> Iterator[str]:
    """Every task has an owner that waits for it: a TaskGroup."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        bare = isinstance(owner, ast.Name) and owner.id == "asyncio"
        if node.func.attr == "ensure_future" or (node.func.attr == "create_task" and bare):
            yield f"line {node.lineno}: a task without an owner: use a TaskGroup"


EVERYWHERE: tuple[Check, ...] = (length, finished, own_words, names)
IN_CODE: tuple[Check, ...] = (first_line, owned_tasks)
