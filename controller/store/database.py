"""Opening the database: SQLite by default, PostgreSQL by a URL; brought to the newest schema by Alembic."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from common.errors import Invalid, Temporary

MIGRATIONS = Path(__file__).parent / "migrations"

CACHE_KIB = 64 * 1024
"""Of SQLite's pages, at most: ids are random, so that one commit touches pages all over the database."""


def open_database(url: str) -> Engine:
    """Return an engine for a database URL (`sqlite:////path` or `postgresql://user@host/name`).

    SQLite is opened with WAL and synchronous=FULL: what is answered is on disk.
    Raises Invalid for another kind of URL.
    """
    if url.startswith("sqlite"):
        engine = create_engine(url, paramstyle="named", connect_args={"timeout": 10, "check_same_thread": False})
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediately)
        return engine
    if url.startswith("postgresql"):
        return _open_postgresql(url)
    raise Invalid(
        f"database {url.partition(':')[0]!r} is not known",
        fix="use sqlite:////var/lib/skerry/skerry.db or postgresql://user@host/name",
    )


def _open_postgresql(url: str) -> Engine:
    """Open it so that nobody waits for ever: for a server that is away, for a lock, or for a controller that froze
    in the middle of its transaction (the server then ends that one's session)."""
    settings = {
        "statement_timeout": "30s",
        "lock_timeout": "20s",
        "idle_in_transaction_session_timeout": "5s",
        "synchronous_commit": "on",
    }
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError) as err:
        raise Invalid("the database's URL can't be read", fix="write it as postgresql://user@host/name") from err
    return create_engine(
        parsed,
        pool_size=2,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": "skerry-controller",
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        },
    )


def is_shared(engine: Engine) -> bool:
    """Say whether several controllers may use this database at a time."""
    return engine.dialect.name == "postgresql"


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to the newest revision; nothing happens where it is there.

    Controllers that start together wait for the first of them. Raises Temporary where the database is away.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            if is_shared(engine):
                connection.execute(text("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(7598452122)"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except OperationalError as err:
        raise Temporary(
            f"the database can't be opened: {str(err.orig).strip()}", fix="see that it runs, and [controller] database"
        ) from err


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN itself: the driver's own would break savepoints
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        f"cache_size=-{CACHE_KIB}",
    )
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
