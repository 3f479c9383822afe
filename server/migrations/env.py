"""Run by alembic: migrate over the connection that `SqlStore.open` hands over.

There is no alembic.ini and no offline mode: the only way in is the programme itself, so that a
server never meets tables that it does not know.
"""

from alembic import context

from wildflower.server.tables import METADATA

# SQLite's data definitions are transactional once the driver does not commit by itself
# (`server.sql`): a step that fails leaves nothing behind.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
