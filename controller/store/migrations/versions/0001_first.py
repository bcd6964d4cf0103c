"""The first schema. Written out, not made from `tables.py`: a migration says what was true then."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "address",
        sa.Column("network", sa.String(40), primary_key=True),
        sa.Column("offset", sa.Integer(), primary_key=True),
        sa.Column("address", sa.String(45), nullable=False),
        sa.Column("vm", sa.String(40), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("mac", sa.String(17), nullable=False),
        sa.UniqueConstraint("vm", "index", name="one_address_a_nic"),
    )
    op.create_table(
        "capacity",
        sa.Column("host", sa.String(40), primary_key=True),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
        sa.Column("vcpus_used", sa.Integer(), nullable=False),
        sa.Column("memory_mib_used", sa.Integer(), nullable=False),
        sa.Column("disk_gib_used", sa.Integer(), nullable=False),
    )
    op.create_table(
        "document",
        sa.Column("host", sa.String(40), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(40), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_document_owner", "document", ["owner"])
    op.create_table(
        "enrolment",
        sa.Column("host", sa.String(40), primary_key=True),
        sa.Column("join_digest", sa.String(64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.create_table(
        "event",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("resource", sa.String(40), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("event_of_project", "event", ["project", "seq"])
    op.create_index("event_of_resource", "event", ["resource", "seq"])
    op.create_table(
        "operation",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("resource", sa.String(40), nullable=False),
        sa.Column("finished_at", sa.Float()),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_operation_finished_at", "operation", ["finished_at"])
    op.create_index("ix_operation_resource", "operation", ["resource"])
    op.create_table(
        "placement",
        sa.Column("owner", sa.String(40), primary_key=True),
        sa.Column("host", sa.String(40), nullable=False),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_gib", sa.Integer(), nullable=False),
    )
    op.create_index("ix_placement_host", "placement", ["host"])
    op.create_table(
        "queue",
        sa.Column("resource", sa.String(40), primary_key=True),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("pokes", sa.Integer(), nullable=False),
        sa.Column("leased_by", sa.String(40)),
        sa.Column("leased_until", sa.Float(), nullable=False),
    )
    op.create_index("ix_queue_due_at", "queue", ["due_at"])
    op.create_table(
        "resource",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("observed_generation", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(40)),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("deleted_at", sa.Float()),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("kind", "project", "name", name="one_name"),
    )
    op.create_index("ix_resource_revision", "resource", ["revision"])
    op.create_table(
        "sequence",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "token",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("resource", sa.String(40), nullable=False, unique=True),
        sa.Column("project", sa.String(63), nullable=False),
        sa.Column("role", sa.Integer(), nullable=False),
    )
    op.create_table(
        "vni",
        sa.Column("network", sa.String(40), primary_key=True),
        sa.Column("vni", sa.Integer(), nullable=False, unique=True),
    )
    op.execute("INSERT INTO sequence (name, value) VALUES ('revision', 0)")
    _defend_events()


def _defend_events() -> None:
    """The event table is append-only for everybody, this program included."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER event_no_{verb.lower()} BEFORE {verb} ON event "
                "BEGIN SELECT RAISE(ABORT, 'the event table is append-only'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_event_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the event table is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_event_change()"
    )
