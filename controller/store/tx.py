"""One transaction: the connection, the moment, the revision it writes, and what it changed."""

from typing import Any

from sqlalchemy import CursorResult, Executable, bindparam, insert, select

from common.codec import from_json, to_json
from common.documents import AnyDoc
from common.ids import Id, Revision
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Resource
from controller.store import tables
from controller.store.batch import Batch
from controller.store.prepared import Prepared
from controller.store.rows import AnyRow, Change, Document, Event, Gone, Put

_RESOURCE = Prepared(select(tables.resource).where(tables.resource.c.id == bindparam("of")))
_INSERT_RESOURCE = Prepared(insert(tables.resource))
_COLUMNS = tuple(column.name for column in tables.resource.columns)


class Tx:
    """Handed to the functions of this package, which are the only SQL there is. Lives as long as its transaction."""

    def __init__(self, batch: Batch, now: float) -> None:
        self.batch = batch
        self.connection = batch.connection
        self.now = now
        self.changes: list[Change] = []
        self.poked: set[Id] = set()
        self._driver = batch.driver
        self._revision: Revision | None = None

    def run(self, statement: Executable, values: Any = None) -> CursorResult[Any]:
        """Execute a statement that runs rarely."""
        return self.connection.execute(statement, values)

    def change(self, statement: Prepared, **values: Any) -> int:
        """Execute a prepared statement; return how many rows it changed."""
        return self._driver.change(statement, values)

    def rows(self, statement: Prepared, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a prepared statement; return the rows that it gives."""
        return self._driver.rows(statement, values)

    def row(self, statement: Prepared, **values: Any) -> tuple[Any, ...] | None:
        """Execute a prepared statement; return the first row that it gives."""
        found = self._driver.rows(statement, values)
        return found[0] if found else None

    @property
    def revision(self) -> Revision:
        """Return the revision of everything this transaction writes: higher than any that was committed before."""
        if self._revision is None:
            self._revision = self.batch.next_revision()
        return self._revision

    def put(self, row: AnyRow | AnyResource) -> None:
        """Note a row as it now stands, for the working set and the watchers."""
        self.changes.append(Put(row))

    def gone(self, row: AnyRow | AnyResource) -> None:
        """Note a row that is no more."""
        self.changes.append(Gone(row))

    def resource(self, resource: Id) -> AnyResource | None:
        """Read a resource."""
        found = self.row(_RESOURCE, of=resource)
        return resource_from(dict(zip(_COLUMNS, found, strict=True))) if found else None


def insert_resource(tx: Tx, row: AnyResource) -> None:
    """Write a new resource."""
    tx.change(_INSERT_RESOURCE, **resource_values(row))
    tx.put(row)


_JSON = ("labels", "spec", "status", "counts")
"""A resource's columns that hold JSON."""


def resource_values(row: AnyResource) -> dict[str, Any]:
    """Return a resource as column values."""
    plain = {name: getattr(row, name) for name in row.__struct_fields__ if name not in _JSON}
    return plain | {name: to_json(getattr(row, name)).decode() for name in _JSON}


def resource_from(row: Any) -> AnyResource:
    """Return a resource from a mapping of columns."""
    kind = kind_named(row["kind"])
    what = f"stored {row['kind']} {row['id']}"
    return Resource(
        **{key: row[key] for key in row if key not in _JSON},
        labels=from_json(row["labels"], dict[str, str], what),
        spec=from_json(row["spec"], kind.spec, what),
        status=from_json(row["status"], kind.status, what),
        counts=from_json(row["counts"], dict[str, int], what),
    )


def document_from(row: Any) -> Document:
    """Return a document from a mapping of columns."""
    doc: AnyDoc = from_json(row["body"], AnyDoc, f"stored document {row['key']}")  # type: ignore[arg-type]
    plain = {key: row[key] for key in row if key not in ("body", "gone")}
    return Document(**plain, gone=bool(row["gone"]), doc=doc)  # SQLite's own word for true is 1


def event_from(row: Any) -> Event:
    """Return an event from a mapping of columns."""
    values = dict(row) | {"before": row["before"].encode(), "after": row["after"].encode()}
    return Event(**values)
