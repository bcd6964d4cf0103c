"""Who last had a machine placed in a zone that has to survive the loss of a host."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "zone_use",
        sa.Column("zone", sa.String(40), primary_key=True),
        sa.Column("controller", sa.String(40), primary_key=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
    )
