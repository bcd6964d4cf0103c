"""Domains: the one named `default`, with all projects there are in it."""

import time

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_DEFAULT = "dom-000000000000"


def upgrade() -> None:
    """Make the domain, and have each project's spec name it."""
    connection = op.get_bind()
    bump = "UPDATE sequence SET value = value + 1 WHERE name = 'revision' RETURNING value"
    number = connection.execute(sa.text(bump)).scalar_one()
    resource = sa.table(
        "resource",
        *(sa.column(name) for name in ("id", "kind", "project", "name", "labels", "generation", "observed_generation")),
        *(sa.column(name) for name in ("spec", "status", "owner", "created_at", "deleted_at", "revision")),
    )
    connection.execute(
        sa.insert(resource).values(
            id=_DEFAULT, kind="domain", project="", name="default", labels="{}", generation=1, observed_generation=1,
            spec="{}", status='{"state":"active"}', owner=None, created_at=time.time(), deleted_at=None,
            revision=number,
        )
    )  # fmt: skip
    queue = "INSERT INTO queue (resource, due_at, pokes, leased_by, leased_until) VALUES (:resource, 0, 1, NULL, 0)"
    connection.execute(sa.text(queue), {"resource": _DEFAULT})
    for row in connection.execute(sa.select(resource).where(resource.c.kind == "project")).mappings().all():
        spec = msgspec.json.decode(row["spec"], type=dict[str, object]) | {"domain": _DEFAULT}
        wanted = {"spec": msgspec.json.encode(spec).decode(), "revision": number}
        connection.execute(sa.update(resource).where(resource.c.id == row["id"]).values(**wanted))
