"""docs/adding-a-kind.md is true: doing what it says adds a kind that lives, and that the gate finds whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from adding import PAGE, changed, copy_tree, follow

LIFE = """
import asyncio, sys, tempfile
from pathlib import Path

from api_world import world


async def life(directory: Path) -> None:
    async with world(directory) as cloud:
        await cloud.make("/v1/projects", "shop")
        bad = await cloud.call("POST", "/v1/projects/shop/notes", {"name": "milk", "spec": {"text": ""}})
        assert (bad.status, bad.json["code"]) == (400, "invalid"), bad.raw
        made = await cloud.make("/v1/projects/shop/notes", "milk", {"text": "buy milk"})
        await ended(cloud, made["operation"]["id"])
        shown = (await cloud.call("GET", "/v1/projects/shop/notes/milk")).json["resource"]
        assert shown["status"]["state"] == "active", shown
        assert shown["spec"] == {"text": "buy milk", "pinned": False}, shown
        gone = await cloud.call("DELETE", "/v1/projects/shop/notes/milk")
        await ended(cloud, gone.json["operation"]["id"])
        assert (await cloud.call("GET", "/v1/projects/shop/notes/milk")).status == 404
        paths = (await cloud.call("GET", "/openapi.json", as_=None)).json["paths"]
        assert "/v1/projects/{project}/notes/{name}" in paths


async def ended(cloud, operation: str) -> None:
    reply = await cloud.call("GET", f"/v1/operations/{operation}?wait_s=10")
    assert reply.json["state"] == "done", reply.raw


with tempfile.TemporaryDirectory() as directory:
    asyncio.run(life(Path(directory)))
print("lived")
"""


class Copy:
    """A copy of the tree, and commands run in it: its modules, none of the real tree's."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def python(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run Python in the copy."""
        return subprocess.run(
            [sys.executable, "-P", *words],
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": f"{self.tree}:{self.tree / 'tests/api'}", "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    def pytest(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run tests of the copy."""
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *words)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(copy_tree(tmp_path / "tree"))


@pytest.mark.timeout(300)
def test_following_the_page_adds_a_kind_that_lives(copy: Copy) -> None:
    files = follow(PAGE.read_text(), copy.tree)
    assert sorted(set(files)) == [
        "common/kinds/__init__.py", "common/kinds/note.py", "controller/kinds/note.py", "tests/kinds/test_note.py",
    ]  # fmt: skip

    made = copy.python("-m", "controller.reference")
    assert made.returncode == 0, made.stderr
    assert "## note" in (copy.tree / "docs/reference/kinds.md").read_text()

    tested = copy.pytest(
        "tests/kinds/test_note.py",
        "tests/gate/test_kinds_are_whole.py",
        "tests/gate/test_pages.py",
        "-k",
        "note or fresh",
    )
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout
    lived = copy.python("-c", LIFE)
    assert lived.stdout.splitlines()[-1:] == ["lived"], lived.stderr
    shown = copy.python("-m", "controller.cli.main", "note", "create", "--help").stdout
    assert "skerry note create milk --text 'buy milk' --pinned" in shown
    assert "--pinned / --no-pinned" in shown


@pytest.mark.parametrize("left_out", ["controller/kinds/note.py", "tests/kinds/test_note.py"])
def test_the_gate_names_the_part_that_is_missing(copy: Copy, left_out: str) -> None:
    follow(PAGE.read_text(), copy.tree)
    (copy.tree / left_out).unlink()
    ended = copy.pytest("tests/gate/test_kinds_are_whole.py", "-k", "note")
    assert ended.returncode == 1
    assert f"kind note lacks {left_out}" in ended.stdout


def test_a_change_that_does_not_fit_is_refused() -> None:
    assert changed("a\nb\n", " a\n+x\n b\n") == "a\nx\nb\n"
    assert changed("a\nb\n", " a\n-b\n") == "a\n"
    with pytest.raises(AssertionError, match="0 times"):
        changed("a\nb\n", " c\n+x\n")
