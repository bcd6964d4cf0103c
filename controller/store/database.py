"""Opening the database: SQLite by default, PostgreSQL by a URL; brought to the newest schema by Alembic."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event

from common.errors import Invalid

MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(url: str) -> Engine:
    """Return an engine for a database URL (`sqlite:////path` or `postgresql+psycopg://…`).

    SQLite is opened with WAL and synchronous=FULL: what is answered is on disk.
    Raises Invalid for another kind of URL.
    """
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": 10, "check_same_thread": False})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediately)
        return engine
    if url.startswith("postgresql"):
        return create_engine(url, pool_pre_ping=True)
    raise Invalid(
        f"database {url.partition(':')[0]!r} is not known",
        fix="use sqlite:////var/lib/skerry/skerry.db or postgresql+psycopg://user@host/name",
    )


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; nothing happens where it is there."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN itself: the driver's own would break savepoints
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
