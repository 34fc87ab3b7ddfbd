"""A limit for the number of messages beside that of octets."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # MariaDB has no transaction around it: a run that was stopped may have got this far
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("pymx_user_settings")}
    if "quota_messages" not in there:
        op.add_column("pymx_user_settings", sa.Column("quota_messages", sa.BigInteger, nullable=True))
