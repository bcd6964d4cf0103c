"""What hosts can do, beside the room that they have: the CPU that they can give guests, and their capabilities."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column. What it holds comes with each host's next hello."""
    op.add_column("capacity", sa.Column("traits", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
