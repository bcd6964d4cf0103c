"""Formatting, lint, types and import contracts hold, and the contracts break where they should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from adding import TOP, copy_tree

BIN = Path(sys.executable).parent

TOOLS = {
    "ruff-format": ["ruff", "format", "--check", "."],
    "ruff": ["ruff", "check", "."],
    "mypy": ["mypy"],
    "pyright": ["pyright"],
    "imports": ["lint-imports"],
}


def run(words: list[str], where: Path) -> "subprocess.CompletedProcess[str]":
    """Run a tool of the environment."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_is_content(tool: str) -> None:
    ended = run(TOOLS[tool], TOP)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree to plant violations in."""
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("agent/memory.py", "import controller.config", "agent, controller and lab meet only in common"),
        ("common/names.py", "import agent.config", "agent, controller and lab meet only in common"),
        ("lab/cloud.py", "import sim.world", "agent, controller and lab meet only in common"),
        ("controller/store/rows.py", "import controller.loop.loop", "The controller's layers point one way"),
        ("controller/api/why.py", "import controller.fleet.hosts", "The controller's layers point one way"),
        ("controller/cli/render.py", "import controller.api.routes", "The controller's layers point one way"),
        ("controller/stray.py", "", "The controller's layers point one way"),
        (
            "controller/fleet/hosts.py",
            "import controller.cli.render",
            "Nothing of the controller builds on the command",
        ),
        (
            "controller/kinds/vm.py",
            "import controller.store.store",
            "Planners and the scheduler see the store's data, not its database",
        ),
        ("controller/kinds/vm.py", "import asyncio", "Planners import no I/O"),
        ("agent/kinds/domain_plan.py", "import agent.drivers.libvirt", "Planners import no I/O"),
        ("agent/drivers/netlink.py", "import agent.loop", "The agent's layers point one way"),
        ("common/ids.py", "import common.names", "common's layers point one way"),
        ("agent/link.py", "import libvirt", "Each foreign library has its door"),
        ("controller/api/why.py", "import sqlalchemy", "Each foreign library has its door"),
        ("controller/loop/loop.py", "import aiohttp", "aiohttp is known at the edges"),
    ],
)
def test_a_planted_import_breaks_its_contract(tree: Path, file: str, line: str, contract: str) -> None:
    planted = tree / file
    before = planted.read_text() if planted.exists() else None
    planted.write_text(f"{before or ''}\n{line}\n")
    try:
        ended = run(["lint-imports", "--no-cache"], tree)
    finally:
        if before is None:
            planted.unlink()
        else:
            planted.write_text(before)
    said = " ".join(ended.stdout.split())
    assert ended.returncode == 1
    assert f"{contract} BROKEN" in said or "not listed as layers" in said, said


def test_every_planner_is_held_to_purity() -> None:
    contracts = (TOP / ".importlinter").read_text()
    plans = [path for path in (TOP / "agent" / "kinds").glob("*.py") if path.stem.endswith(("_plan", "_xml"))]
    assert plans
    assert [path.stem for path in plans if f"agent.kinds.{path.stem}\n" not in contracts] == []
