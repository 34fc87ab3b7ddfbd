"""The tables: three of a common Postfix/Dovecot set-up, read as they are, and our own, which are named pymx_….

`domains`, `users` and `aliases` may have been made by an earlier installation: other column widths, `aliases.source`
not unique, mixed case, rows changed by other programs at any time. So nothing here depends on their widths, and our
tables hold no foreign keys into them (column types and engines of an old table may not allow one); a row of
`pymx_user_settings` counts only while its id and its address both match the user's.

Text is compared without case: MariaDB's usual collations do, and SQLite is told to (NOCASE).

The migrations make the tables, with MariaDB's engine and character set, which are not said here: SQLAlchemy would load
all it has for MariaDB in every process, also where the database is SQLite.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, MetaData, String, Table
from sqlalchemy.types import TypeEngine

SCHEMA_VERSION = "0002"  # the head of accounts/migrations; a test compares them
VERSION_TABLE = "pymx_schema"

metadata = MetaData()


def _caseless(width: int) -> TypeEngine[str]:
    return String(width).with_variant(String(width, collation="NOCASE"), "sqlite")


domains = Table(
    "domains",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", _caseless(50), nullable=False, unique=True),
)

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("domain_id", Integer, ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
    Column("password", String(106), nullable=False),
    Column("email", _caseless(120), nullable=False, unique=True),
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("domain_id", Integer, ForeignKey("domains.id", ondelete="CASCADE"), nullable=False),
    Column("source", _caseless(120), nullable=False, unique=True),
    Column("destinations", String(255), nullable=False),
)

# NULL in a quota is the configured default, 0 is unlimited.
user_settings = Table(
    "pymx_user_settings",
    metadata,
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("email", String(255), nullable=False),
    Column("quota_octets", BigInteger, nullable=True),
    Column("quota_messages", BigInteger, nullable=True),
)

# Who was removed here: what lies in a mailbox of that name must not go to the next user of the name.
removed_users = Table(
    "pymx_removed_users",
    metadata,
    Column("email", String(190), primary_key=True),
    Column("removed_at", BigInteger, nullable=False),
)

schema = Table(VERSION_TABLE, metadata, Column("version_num", String(32), primary_key=True))
