"""Opening the database: SQLite by default, PostgreSQL by a URL; brought to the newest schema by Alembic."""

from pathlib import Path
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from common.errors import Conflict, Invalid, Temporary

MIGRATIONS = Path(__file__).parent / "migrations"

LOG_PAGES = 16_000
"""Of SQLite's log, after which a commit takes it over itself: where nothing else does, or one writes very much."""

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


class Schema(NamedTuple):
    """Which revision a database has."""

    revision: str | None
    """None: no tables were made yet."""
    newest: str
    known: bool
    """Whether this release knows that revision, or there is none."""


def schema_at(url: str) -> Schema:
    """Look which revision the database at a URL has. Makes nothing.

    Raises Invalid for a URL of no known database, Temporary where it can't be opened.
    """
    script = ScriptDirectory(str(MIGRATIONS))
    newest = script.get_current_head() or ""
    file = sqlite_file(url)
    if file and not file.exists():
        return Schema(None, newest, known=True)
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
    except DatabaseError as err:
        raise Temporary(f"it can't be opened: {str(err.orig).strip()}") from err
    finally:
        engine.dispose()
    return Schema(revision, newest, known=_knows(revision))


def _knows(revision: str | None) -> bool:
    known = {one.revision for one in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    return revision is None or revision in known


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite database; None: the URL is of another one."""
    file = make_url(url).database if url.startswith("sqlite") else None
    return Path(file) if file else None


def shown_url(url: str) -> str:
    """Return a database's URL as people may see it: without a password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.partition(":")[0]


def is_shared(engine: Engine) -> bool:
    """Say whether several controllers may use this database at a time."""
    return engine.dialect.name == "postgresql"


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to the newest revision; nothing happens where it is there.

    Controllers that start together wait for the first of them. Raises Temporary where the database is away, Conflict
    where a newer release brought it to a schema that this one does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            if is_shared(engine):
                connection.execute(text("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(7598452122)"))
            there = MigrationContext.configure(connection).get_current_revision()
            if not _knows(there):
                raise Conflict(
                    f"the database has schema {there}, which this release does not know: a newer one ran on it",
                    fix="install that release, or restore the backup from before it (docs/operators.md, Backup)",
                )
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
        f"wal_autocheckpoint={LOG_PAGES}",
    )
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediately(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
