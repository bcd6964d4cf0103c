"""The documented backup and restore of SQLite, typed as the manual shows it; a real agent follows over the link."""

import asyncio
import re
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from fleet_bench import World
from link_bench import eventually

from common.documents import DocKey
from controller.main import main
from controller.store.rows import EPOCH

TOP = Path(__file__).parents[2]


def documented_copy(live: Path, copy: Path) -> None:
    """Run what the manual says makes a backup, on these files."""
    page = (TOP / "docs" / "operators.md").read_text()
    found = re.search(r"python3 - <<'EOF'\n(.*?live\.backup\(copy\)\n)EOF", page, re.DOTALL)
    assert found, "the manual shows no backup of SQLite"
    code = found[1].replace("/var/lib/skerry-controller/skerry.db", str(live)).replace("/backup/skerry.db", str(copy))
    assert str(live) in code
    assert str(copy) in code
    names: dict[str, sqlite3.Connection] = {}
    exec(code, names)
    for name in ("live", "copy"):
        names[name].close()


@pytest.mark.parametrize("told", [True, False], ids=["told", "forgotten"])
async def test_an_agent_follows_a_restored_database_over_the_link(tmp_path: Path, told: bool) -> None:
    world, copy = World(tmp_path / "one"), tmp_path / "copy.db"
    live = world.directory / "skerry.db"
    async with world.up():
        identity = await world.joined("h1")
        await world.want(identity.host, 1)
    async with world.agent(identity) as agent:
        async with world.up():
            await eventually(lambda: len(agent.shelf.world) == 1)
            documented_copy(live, copy)
            newer = await world.want(identity.host, 2)
            for _ in range(5):
                await world.want(identity.host, 1)
            await eventually(lambda: len(agent.shelf.world) == 2)
            before = world.store.seen.fact(EPOCH)
        for name in ("skerry.db", "skerry.db-wal", "skerry.db-shm"):
            (world.directory / name).unlink(missing_ok=True)
        copy.rename(live)
        if told:
            config = tmp_path / "controller.toml"
            config.write_text(f'[controller]\nstate_dir = "{world.directory}"\n')
            ended = await asyncio.to_thread(CliRunner().invoke, main, ["--config", str(config), "restored"])
            assert ended.exit_code == 0, ended.output
            assert "hosts take this database's word from now on" in ended.output
        async with world.up():
            await eventually(lambda: world.connected(identity))
            changed = await world.want(identity.host, 1)
            await world.settled(identity.host)
            await eventually(lambda: agent.memory.fact(EPOCH) == world.store.seen.fact(EPOCH))
            known = agent.memory.items[DocKey(f"volume/{changed}")]
            document = world.store.seen.document(identity.host, known.key)
            assert document is not None
            assert known.revision == document.revision, "what the database says now is what the host has"
            assert newer in agent.shelf.world, "what the database does not know is kept"
            assert DocKey(f"volume/{newer}") in agent.memory.items
            assert (world.store.seen.fact(EPOCH) != before) is told
