"""Fresh databases in an instant: migrated once, copied from then on."""

from functools import cache

from sqlalchemy import Engine

from controller.store.database import migrate, open_database


@cache
def _template() -> bytes:
    engine = open_database("sqlite://")
    try:
        migrate(engine)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            image: bytes = raw.serialize()
            return image
    finally:
        engine.dispose()


def memory_engine() -> Engine:
    """Return a database in memory with the newest schema. It lasts until the engine is disposed."""
    engine = open_database("sqlite://")
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        connection.rollback()
        raw.deserialize(_template())
    return engine
