"""Alembic's entry point: runs the versions on the connection that `pymx.accounts.schema` hands over.

That connection is in AUTOCOMMIT, and what transaction there is belongs to schema.py.
"""

from alembic import context

from pymx.accounts.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,
)
context.run_migrations()
