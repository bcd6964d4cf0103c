"""Where the members of groups are, so that no rule of theirs is broken by two at once."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "membership",
        sa.Column("group_id", sa.String(40), primary_key=True),
        sa.Column("owner", sa.String(40), primary_key=True),
        sa.Column("domain", sa.String(40), nullable=False),
        sa.Column("apart", sa.String(40)),
        sa.UniqueConstraint("group_id", "apart", name="one_member_a_place"),
    )
    op.create_index("ix_membership_owner", "membership", ["owner"])
    op.create_table(
        "meeting",
        sa.Column("group_id", sa.String(40), primary_key=True),
        sa.Column("domain", sa.String(40), nullable=False),
    )
