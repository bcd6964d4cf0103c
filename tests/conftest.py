"""What holds for every test."""

import asyncio
from collections.abc import Iterator

import pytest
import structlog

from controller.store.database import migrate, open_database
from tests.postgres import Cluster, running_cluster


def pytest_configure() -> None:
    """Say that the main thread has no event loop, and have logs written plainly.

    Without the first, pytest-asyncio asks for the current loop before its first test, Python 3.11 makes one up for
    it, nobody closes that, and some later test fails with "unclosed event loop" when the garbage is collected.
    As to the second: structlog's default draws tracebacks with all their variables, seconds on a busy machine.
    """
    asyncio.set_event_loop(None)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ]
    )


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undo what a command that a test runs in its own process sets up for logs."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Give a PostgreSQL server, one for all tests of a process."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgres_template(cluster: Cluster) -> str:
    """Give a PostgreSQL database with the newest schema, to be copied."""
    url = cluster.database()
    engine = open_database(url)
    migrate(engine)
    engine.dispose()
    return url


@pytest.fixture
def postgres_url(cluster: Cluster, postgres_template: str) -> Iterator[str]:
    """Give a PostgreSQL database of the test's own with the newest schema."""
    url = cluster.copy(postgres_template)
    yield url
    cluster.drop(url)
