"""The tables of a Postfix/Dovecot set-up where they are missing, and pymx's first own ones.

Written out and not taken from pymx.accounts.tables: a version must go on doing what it did.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "if_not_exists": True}


def upgrade() -> None:
    caseless = {"collation": "NOCASE"} if op.get_bind().dialect.name == "sqlite" else {}
    op.create_table(
        "domains",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(50, **caseless), nullable=False, unique=True),
        **_OPTIONS,
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("domain_id", sa.Integer, sa.ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
        sa.Column("password", sa.String(106), nullable=False),
        sa.Column("email", sa.String(120, **caseless), nullable=False, unique=True),
        **_OPTIONS,
    )
    op.create_table(
        "aliases",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("domain_id", sa.Integer, sa.ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
        sa.Column("source", sa.String(120, **caseless), nullable=False, unique=True),
        sa.Column("destinations", sa.String(255), nullable=False),
        **_OPTIONS,
    )
    op.create_table(
        "pymx_user_settings",
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("email", sa.String(255), nullable=False),
        sa.Column("quota_octets", sa.BigInteger, nullable=True),
        **_OPTIONS,
    )
    op.create_table(
        "pymx_removed_users",
        sa.Column("email", sa.String(190), primary_key=True),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        **_OPTIONS,
    )
