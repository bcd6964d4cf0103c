"""What a doctor complains of: what it can utter, by its source; what it did utter; and that one complaint is sound."""

import ast
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest

from common import checkup
from common.checkup import Finding

Lines = set[tuple[str, int]]


def possible(*modules: ModuleType) -> Lines:
    """Return the lines on which `warn` or `fail` is called."""
    found: Lines = set()
    for module in modules:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        names = ((node.lineno, node.func) for node in calls)
        found |= {(module.__name__, line) for line, f in names if isinstance(f, ast.Name) and f.id in ("warn", "fail")}
    return found


def heard(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Lines:
    """Return a set to which every complaint of these modules is added from now on."""
    uttered: Lines = set()

    def listening(make: Callable[..., Finding]) -> Callable[..., Finding]:
        def made(*words: str) -> Finding:
            frame = sys._getframe(1)
            uttered.add((frame.f_globals["__name__"], frame.f_lineno))
            return make(*words)

        return made

    makers = {name: getattr(checkup, name) for name in ("warn", "fail")}
    for module in modules:
        for name, make in makers.items():
            monkeypatch.setattr(module, name, listening(make))
    return uttered


def assert_only(found: Iterable[Finding], check: str, level: str, words: str) -> None:
    """Fail unless these findings have one complaint, that one, with a way out."""
    wrong = [one for one in found if one.level != "ok"]
    assert [(one.check, one.level) for one in wrong] == [(check, level)]
    assert words in f"{wrong[0].says}; {wrong[0].fix}"
    assert wrong[0].fix
