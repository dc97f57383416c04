"""Alembic's entry: runs the versions on the connection that `Database.migrate` passes."""

from alembic import context

from tandemn.control.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
