"""Several controllers on one database: who they are, which hosts each has, and a log of changes that all follow."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the tables. A database with one controller (SQLite) leaves them empty."""
    op.create_table(
        "controller",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("url", sa.String(255), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("alive", sa.Boolean(), nullable=False),
        sa.Column("alive_until", sa.Float(), nullable=False),
    )
    op.create_table(
        "link",
        sa.Column("host", sa.String(40), primary_key=True),
        sa.Column("controller", sa.String(40), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
    )
    op.create_index("ix_link_controller", "link", ["controller"])
    op.create_table(
        "change",
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("mark", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.create_table(
        "fact",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.Text(), nullable=False),
    )
