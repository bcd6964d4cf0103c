"""Users' passwords and sessions, tokens that expire, and whose domain a grave is.

What a token may do stands in its spec: the table has its hash and its end only. Tokens from before have none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table of passwords, and that of tokens anew."""
    op.create_table(
        "password",
        sa.Column("user", sa.String(40), primary_key=True),
        sa.Column("hash", sa.String(255), nullable=False),
    )
    op.create_table(
        "token_with_end",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("resource", sa.String(40), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
    )
    op.execute("INSERT INTO token_with_end (digest, resource, expires_at) SELECT digest, resource, 0 FROM token")
    op.drop_table("token")
    op.rename_table("token_with_end", "token")
    op.create_index("ix_token_resource", "token", ["resource"])
    op.add_column("grave", sa.Column("domain", sa.String(40), nullable=False, server_default=sa.text("''")))
