"""Statements that are built once. To make one anew, with its cache key and its parameters, costs ten times what the
database takes to run it: so what every request and every turn runs is compiled once for each kind of database, and
handed to the driver as text with parameters. What runs rarely is built where it is used.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.exc import DBAPIError


class Prepared:
    """One such statement. Its parameters are named: of an insert, after the columns."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._texts: dict[str, str] = {}

    def text(self, dialect: Dialect) -> str:
        """Return it as the driver takes it."""
        found = self._texts.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect)
            own = {name: value for name, value in (compiled.params or {}).items() if value is not None}
            assert not own, f"{compiled} has values of its own: {own}"
            found = self._texts[dialect.name] = str(compiled)
        return found


class Driver:
    """The driver's own cursor on a connection. Its errors are SQLAlchemy's, like those of the other statements."""

    def __init__(self, connection: Connection) -> None:
        self._dialect = connection.dialect
        self._error: type[Exception] = connection.dialect.loaded_dbapi.Error
        self._together = connection.dialect.name == "postgresql"  # several statements in one round trip
        self._cursor: Any = connection.connection.cursor()

    def change(self, statement: Prepared, values: Mapping[str, Any]) -> int:
        """Run it; return how many rows it changed."""
        try:
            self._cursor.execute(statement.text(self._dialect), values)
        except self._error as err:
            raise self._ours(statement, err) from err
        changed: int = self._cursor.rowcount
        return changed

    def rows(self, statement: Prepared, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it; return the rows that it gives."""
        try:
            self._cursor.execute(statement.text(self._dialect), values)
            found: list[tuple[Any, ...]] = self._cursor.fetchall()
        except self._error as err:
            raise self._ours(statement, err) from err
        return found

    def say(self, *words: str) -> None:
        """Run statements that have no values: savepoints."""
        try:
            for one in ["; ".join(words)] if self._together else words:
                self._cursor.execute(one)
        except self._error as err:
            raise self._ours(None, err) from err

    def _ours(self, statement: Prepared | None, err: Exception) -> BaseException:
        text = statement.text(self._dialect) if statement else ""
        return DBAPIError.instance(text, None, err, self._error, hide_parameters=True, dialect=self._dialect)
