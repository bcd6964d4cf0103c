"""Events with their result, chained by hashes. What is there already is chained as it stands."""

import hashlib

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COVERED = (
    "seq", "at", "actor", "request", "action", "kind", "resource", "project", "name", "message", "result", "before",
    "after",
)  # fmt: skip
_PAGE = 1000


def upgrade() -> None:
    """Add the columns and the head, and chain the rows."""
    text = sa.Column("result", sa.String(16), nullable=False, server_default=sa.text("''"))
    digest = sa.Column("hash", sa.String(64), nullable=False, server_default=sa.text("''"))
    op.add_column("event", text)
    op.add_column("event", digest)
    op.create_index("event_of_request", "event", ["request"])
    op.create_table(
        "chain",
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    _let_events_change()
    seq, head = _chain()
    _defend_events()
    op.get_bind().execute(sa.text("INSERT INTO chain (seq, hash) VALUES (:seq, :hash)"), {"seq": seq, "hash": head})


def _chain() -> tuple[int, str]:
    """Give every row its hash. Returns the last one's number and hash."""
    event = sa.table("event", *(sa.column(name) for name in (*_COVERED, "hash")))
    connection = op.get_bind()
    last, head = 0, "0" * 64
    while True:
        rows = connection.execute(sa.select(event).where(event.c.seq > last).order_by(event.c.seq).limit(_PAGE))
        page = rows.mappings().all()
        for row in page:
            covered = [float(row[name]) if name == "at" else row[name] for name in _COVERED]
            head = hashlib.sha256(head.encode() + msgspec.json.encode(covered)).hexdigest()
            last = row["seq"]
            connection.execute(sa.update(event).where(event.c.seq == last).values(hash=head))
        if len(page) < _PAGE:
            return last, head


def _let_events_change() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER event_no_update")
        op.execute("DROP TRIGGER event_no_delete")
    else:
        op.execute("DROP TRIGGER event_append_only ON event")


def _defend_events() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER event_no_{verb.lower()} BEFORE {verb} ON event "
                "BEGIN SELECT RAISE(ABORT, 'the event table is append-only'); END"
            )
    else:
        op.execute(
            "CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_event_change()"
        )
