"""What each thing counts, and for every project and domain what is used up of each counter, beside its limit."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column and the table. The controller that starts next counts what is there."""
    op.add_column("resource", sa.Column("counts", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
    op.create_table(
        "quota",
        sa.Column("account", sa.String(80), primary_key=True),
        sa.Column("counter", sa.String(32), primary_key=True),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("ceiling", sa.BigInteger()),
        sa.Column("parent", sa.String(80), nullable=False),
        sa.CheckConstraint("used >= 0", name="never_below_nothing"),
    )
