"""SQLite's log, taken over into the database while commits go on."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from controller.store import checkpoints as checkpoints_module
from controller.store.checkpoints import Checkpoints
from controller.store.database import open_database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Give an SQLite database with one table."""
    engine = open_database(f"sqlite:///{tmp_path / 'books.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE one (n INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def checkpoints(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoints]:
    """Give what takes the log over, each ten transactions."""
    monkeypatch.setattr(checkpoints_module, "EVERY", 10)
    opened = Checkpoints(engine)
    opened.open()
    yield opened
    opened.close()


def commit(connection: Connection, number: int) -> None:
    with connection.begin():
        connection.execute(text("INSERT INTO one VALUES (:n)"), {"n": number})


def rows_without_the_log(engine: Engine, tmp_path: Path) -> int:
    """Count what is in the database itself."""
    alone = tmp_path / "alone.db"
    shutil.copy(tmp_path / "books.db", alone)
    with sqlite3.connect(alone) as connection:
        found: int = connection.execute("SELECT count(*) FROM one").fetchone()[0]
    return found


def test_all_of_the_log_is_taken_over_while_commits_go_on(
    engine: Engine, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with engine.connect() as connection:
        for number in range(10):
            commit(connection, number)
            checkpoints.committed(1)
        beside = checkpoints._beside
        assert beside is not None
        commit(connection, 10)
        beside.result()
        commit(connection, 11)
        checkpoints.committed(2)

        assert rows_without_the_log(engine, tmp_path) == 12
        assert checkpoints._beside is None


def test_a_log_that_was_taken_over_is_written_from_its_start(
    engine: Engine, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    sizes = set()
    with engine.connect() as connection:
        for number in range(100):
            commit(connection, number)
            checkpoints.committed(1)
            if checkpoints._beside is not None:
                checkpoints._beside.result()
            sizes.add((tmp_path / "books.db-wal").stat().st_size)

    assert max(sizes) < 30 * 4096
