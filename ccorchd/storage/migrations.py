# SPDX-License-Identifier: LGPL-2.1-or-later
"""The schema, as numbered steps of SQL. ``PRAGMA user_version`` says how many of them a database has had.

A released step is never edited: ``tests/unit/storage/golden`` holds a database of each released schema, which must
still open. Steps are plain SQL because ``playhouse.migrate`` rebuilds tables, and with foreign keys on that deletes
child rows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

APPLICATION_ID: Final = 0x63636F72
"""``ccor``: tells our file from any other SQLite database (https://www.sqlite.org/fileformat2.html#application_id)."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        # AUTOINCREMENT: an id is never used a second time, since D-Bus object paths are made from it.
        """
        CREATE TABLE project (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            repository TEXT NOT NULL UNIQUE,
            created REAL NOT NULL,
            agreed_hash TEXT NOT NULL
        )
        """,
        """
        CREATE TABLE instance (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            project_id INTEGER NOT NULL REFERENCES project (id) ON DELETE RESTRICT,
            name TEXT NOT NULL,
            agent TEXT NOT NULL,
            session_id TEXT NOT NULL,
            branch TEXT NOT NULL,
            base TEXT NOT NULL,
            base_commit TEXT NOT NULL,
            worktree TEXT NOT NULL,
            port INTEGER NOT NULL,
            prompt TEXT NOT NULL,
            limits TEXT NOT NULL,
            environment TEXT NOT NULL,
            options TEXT NOT NULL,
            wanted INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            reason_text TEXT NOT NULL,
            since REAL NOT NULL,
            created REAL NOT NULL,
            restarts INTEGER NOT NULL,
            pid INTEGER NOT NULL,
            boot_id TEXT NOT NULL,
            started INTEGER NOT NULL,
            doing TEXT NOT NULL,
            UNIQUE (project_id, name)
        )
        """,
        "CREATE UNIQUE INDEX instance_port ON instance (port) WHERE port > 0",
        # Names stand in the row beside the ids, so that the history of what was removed can still be read.
        """
        CREATE TABLE event (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            time REAL NOT NULL,
            kind TEXT NOT NULL,
            project_id INTEGER REFERENCES project (id) ON DELETE SET NULL,
            instance_id INTEGER REFERENCES instance (id) ON DELETE SET NULL,
            project TEXT NOT NULL,
            instance TEXT NOT NULL,
            actor TEXT NOT NULL,
            priority INTEGER NOT NULL,
            message TEXT NOT NULL,
            data TEXT NOT NULL,
            uid TEXT UNIQUE
        )
        """,
        "CREATE INDEX event_instance ON event (instance_id, id)",
        "CREATE INDEX event_project ON event (project_id, id)",
        "CREATE INDEX event_name ON event (project, instance, id)",
        "CREATE INDEX event_kind ON event (kind, id)",
    ),
)


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> tuple[int, int]:
    """Bring the database of *connection* (in autocommit mode) to the newest schema; return the versions before and
    after.

    Each step is one transaction. Before the first step on a database that holds something, a copy is kept beside it as
    ``NAME.v<version>``. Raise ``StorageFailed`` if the database is another program's or a newer ccorch's; nothing has
    been touched then.
    """
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [tables] = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application or tables or version) and application != APPLICATION_ID:
        raise CcorchError(
            ErrorCode.STORAGE_FAILED,
            f"{path} is a database of another program",
            "Move it away; ccorchd makes a new one at its next start.",
        )
    if version > len(migrations):
        raise CcorchError(
            ErrorCode.STORAGE_FAILED,
            f"{path} has schema {version} of a newer ccorch; this one knows schemas up to {len(migrations)}",
            "Install that newer version again. Nothing was changed.",
        )
    if 0 < version < len(migrations):
        _keep_copy(connection, path.with_name(f"{path.name}.v{version}"))
    # Off before BEGIN (it is a no-op inside a transaction): a step may rebuild a table that others refer to.
    # https://www.sqlite.org/lang_altertable.html#otheralter
    connection.execute("PRAGMA foreign_keys = OFF")
    for number, step in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            if number == 1:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in step:
                connection.execute(statement)
            if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
                raise CcorchError(
                    ErrorCode.STORAGE_FAILED,
                    f"{path} cannot be brought to schema {number}: a row of {broken[0]} has no {broken[2]}",
                    "The database is unchanged. Please report this.",
                )
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return version, max(version, len(migrations))


def _keep_copy(connection: sqlite3.Connection, copy: Path) -> None:
    """Write a copy of the database through SQLite's backup API, which takes in what still lies in the WAL."""
    partial = copy.with_name(copy.name + ".part")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(partial)) as target:
        connection.backup(target)
    partial.replace(copy)
