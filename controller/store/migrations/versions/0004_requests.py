"""Documents with the request that they were written for."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column("document", sa.Column("request", sa.String(64), nullable=False, server_default=sa.text("''")))
