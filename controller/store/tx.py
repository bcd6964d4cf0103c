"""One transaction: the connection, the moment, the revision it writes, and what it changed."""

from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, select, update

from common.codec import from_json, to_json
from common.documents import AnyDoc
from common.ids import Id, Revision
from common.kinds import kind_named
from common.kinds.kind import AnyResource, Resource
from controller.store import tables
from controller.store.rows import AnyRow, Change, Document, Event, Gone, Put


class Counter:
    """Revisions for many transactions that are committed together: read once, and written back once."""

    def __init__(self, last: int) -> None:
        self.last = last

    def next(self) -> Revision:
        """Return the next one."""
        self.last += 1
        return Revision(self.last)


class Tx:
    """Handed to the functions of this package, which are the only SQL there is. Lives as long as its transaction."""

    def __init__(self, connection: Connection, now: float, counter: "Counter | None" = None) -> None:
        self.connection = connection
        self.now = now
        self._counter = counter
        self.changes: list[Change] = []
        self.poked: set[Id] = set()
        self._revision: Revision | None = None

    def run(self, statement: Executable, values: Any = None) -> CursorResult[Any]:
        """Execute a statement."""
        return self.connection.execute(statement, values)

    @property
    def revision(self) -> Revision:
        """Return the revision of everything this transaction writes: higher than any that was committed before."""
        if self._revision is None and self._counter:
            self._revision = self._counter.next()
        if self._revision is None:
            bump = (
                update(tables.sequence)
                .where(tables.sequence.c.name == "revision")
                .values(value=tables.sequence.c.value + 1)
                .returning(tables.sequence.c.value)
            )
            self._revision = Revision(self.run(bump).scalar_one())
        return self._revision

    def last_revision(self) -> Revision:
        """Return the revision that was given last."""
        c = tables.sequence.c
        return Revision(self.run(select(c.value).where(c.name == "revision")).scalar_one())

    def put(self, row: AnyRow | AnyResource) -> None:
        """Note a row as it now stands, for the working set and the watchers."""
        self.changes.append(Put(row))

    def gone(self, row: AnyRow | AnyResource) -> None:
        """Note a row that is no more."""
        self.changes.append(Gone(row))

    def resource(self, resource: Id) -> AnyResource | None:
        """Read a resource."""
        found = self.run(select(tables.resource).where(tables.resource.c.id == resource)).mappings().one_or_none()
        return resource_from(found) if found else None


def resource_values(row: AnyResource) -> dict[str, Any]:
    """Return a resource as column values."""
    plain = {name: getattr(row, name) for name in row.__struct_fields__ if name not in ("labels", "spec", "status")}
    return plain | {name: to_json(getattr(row, name)).decode() for name in ("labels", "spec", "status")}


def resource_from(row: Any) -> AnyResource:
    """Return a resource from a mapping of columns."""
    kind = kind_named(row["kind"])
    what = f"stored {row['kind']} {row['id']}"
    return Resource(
        **{key: row[key] for key in row if key not in ("labels", "spec", "status")},
        labels=from_json(row["labels"], dict[str, str], what),
        spec=from_json(row["spec"], kind.spec, what),
        status=from_json(row["status"], kind.status, what),
    )


def document_from(row: Any) -> Document:
    """Return a document from a mapping of columns."""
    doc: AnyDoc = from_json(row["body"], AnyDoc, f"stored document {row['key']}")  # type: ignore[arg-type]
    return Document(**{key: row[key] for key in row if key != "body"}, doc=doc)


def event_from(row: Any) -> Event:
    """Return an event from a mapping of columns."""
    values = dict(row) | {"before": row["before"].encode(), "after": row["after"].encode()}
    return Event(**values)
