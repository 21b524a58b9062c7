# SPDX-License-Identifier: LGPL-2.1-or-later
"""The schema and its steps, and databases of released schemas, which must open for ever.

A golden file is written once, when a schema is released: two PRAGMA lines (application_id, user_version) and the output
of ``sqlite3.Connection.iterdump()``.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import peewee
import pytest

from ccorchd.contract import Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Address, Event, InstanceRecord, Limits
from ccorchd.storage import Storage, models
from ccorchd.storage.migrations import MIGRATIONS, migrate

GOLDEN = Path(__file__).parent / "golden"

NEXT = (
    # Rebuilds the parent table, which with foreign keys on would take the children along.
    "CREATE TABLE project_new (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, repository TEXT "
    "NOT NULL UNIQUE, created REAL NOT NULL, agreed_hash TEXT NOT NULL, colour TEXT NOT NULL DEFAULT 'blue')",
    "INSERT INTO project_new SELECT *, 'red' FROM project",
    "DROP TABLE project",
    "ALTER TABLE project_new RENAME TO project",
)


@pytest.fixture
def golden(path: Path) -> Path:
    """A database file with the first released schema in it."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / "v1.sql").read_text())
    return path


@pytest.fixture
def connection(golden: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(golden, isolation_level=None)) as connection:
        yield connection


def schema(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: re.sub(r"\s+", " ", sql) for name, sql in rows}


def one(connection: sqlite3.Connection, query: str) -> object:
    return connection.execute(query).fetchone()[0]


async def test_golden_database_opens_and_goes_on(golden: Path) -> None:
    storage = await Storage.open(golden)
    try:
        [api, shop] = await storage.run(lambda store: store.projects())
        assert (api.name, api.repository, api.created, api.agreed_hash) == ("api", "/home/u/api", 1700000000.5, "")
        assert (shop.name, shop.agreed_hash) == ("web-shop", "5" * 64)
        [first, second] = await storage.run(lambda store: store.instances("web-shop"))
        assert first == InstanceRecord(
            id=1,
            project_id=2,
            project="web-shop",
            name="fix-login",
            agent="claude",
            session_id="0b0e7b9e-3d4c-4ba3-a8a7-0d1f6a1f5a11",
            branch="ccorch/fix-login",
            base="main",
            base_commit="a" * 40,
            worktree="/home/u/.local/share/ccorch/web-shop/fix-login",
            repository="/home/u/web shop",
            port=42000,
            prompt='Fix the "login"\nplease 😀',
            limits=Limits(memory_high=900, memory_max=1000, cpu_quota_percent=150.5, cpu_weight=50, tasks_max=None),
            environment={"PATH": "/usr/bin:/bin", "LANG": "de_DE.UTF-8"},
            wanted=True,
            state=State.WAITING,
            reason=Reason.PERMISSION,
            reason_text="Bash: rm -rf build",
            since=1700000100.25,
            created=1700000050.0,
            restarts=2,
            pid=4242,
            boot_id="6d9ba0d4-98dd-4f5a-b2ce-0ad6e2ae1b39",
            started=True,
            doing="Bash: rm -rf build",
            options={"model": "x"},
        )
        assert (second.name, second.state, second.reason) == ("old", State.FAILED, Reason.OUT_OF_MEMORY)
        events = await storage.run(lambda store: store.events())
        assert [(event.id, event.kind, event.instance, event.instance_id) for event in events] == [
            (1, "audit.CreateInstance", "fix-login", 1),
            (2, "tool", "fix-login", 1),
            (3, "removed", "gone", None),
        ]
        assert events[1].data == {"command": "ls", "seconds": 0.25}
        # Ids go on behind those of what was removed, and what is known by its uid stays known.
        again = Event("tool", "x", uid=events[1].uid)
        assert await storage.run(lambda store: store.add_event(again)) is None
        added = await storage.run(lambda store: store.add_event(Event("tool", "x", instance_id=2)))
        assert added is not None
        assert added.id == 4
        assert (await storage.run(lambda store: store.add_project("new", "/new"))).id == 4
        assert (await storage.run(lambda store: store.instance(Address("web-shop", "old")))).id == 2
    finally:
        await storage.close()


async def test_released_steps_were_not_edited(golden: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(golden)) as old, closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        assert migrate(new, tmp_path / "x", MIGRATIONS[:1]) == (0, 1)
        assert schema(old) == schema(new)
        assert one(old, "PRAGMA user_version") == 1


def test_each_schema_has_a_golden_file() -> None:
    assert sorted(file.name for file in GOLDEN.glob("*.sql")) == [f"v{n}.sql" for n in range(1, len(MIGRATIONS) + 1)]


def test_models_are_the_tables(tmp_path: Path) -> None:
    kinds = {
        peewee.AutoField: "INTEGER",
        peewee.IntegerField: "INTEGER",
        peewee.BooleanField: "INTEGER",
        peewee.FloatField: "REAL",
        peewee.TextField: "TEXT",
    }
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, tmp_path / "x")
        for model in (models.Project, models.Instance, models.Event):
            table = connection.execute(f"PRAGMA table_info({model._meta.table_name})").fetchall()
            columns = {name: (kind, bool(required or key)) for _, name, kind, required, _, key in table}
            fields = {
                field.column_name: (next(kinds[base] for base in type(field).__mro__ if base in kinds), not field.null)
                for field in model._meta.sorted_fields
            }
            assert fields == columns


def test_a_step_is_taken_once_and_a_copy_is_kept(connection: sqlite3.Connection, golden: Path) -> None:
    assert migrate(connection, golden, (*MIGRATIONS, NEXT)) == (1, 2)
    assert one(connection, "SELECT group_concat(colour) FROM project") == "red,red"
    # The children are all there.
    assert one(connection, "SELECT count(*) FROM instance") == 3
    assert one(connection, "SELECT count(*) FROM event WHERE instance_id = 1") == 2
    assert one(connection, "PRAGMA user_version") == 2
    copy = golden.with_name("ccorch.db.v1")
    with closing(sqlite3.connect(copy)) as kept:
        assert one(kept, "PRAGMA user_version") == 1
        assert one(kept, "SELECT count(*) FROM instance") == 3
    assert copy.stat().st_mode & 0o777 == 0o600
    assert migrate(connection, golden, (*MIGRATIONS, NEXT)) == (2, 2)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (("CREATE TABLE extra (x)", "SELECT * FROM absent"), sqlite3.OperationalError),
        (("CREATE TABLE extra (x)", "DELETE FROM project WHERE name = 'web-shop'"), CcorchError),
    ],
)
def test_a_step_that_fails_leaves_nothing(
    connection: sqlite3.Connection, golden: Path, step: tuple[str, ...], error: type[Exception]
) -> None:
    before = list(connection.iterdump())
    with pytest.raises(error):
        migrate(connection, golden, (*MIGRATIONS, step))
    assert list(connection.iterdump()) == before
    assert one(connection, "PRAGMA user_version") == 1


async def test_what_a_newer_ccorch_wrote_is_refused(connection: sqlite3.Connection, golden: Path) -> None:
    migrate(connection, golden, (*MIGRATIONS, NEXT))
    connection.close()
    with pytest.raises(CcorchError, match="schema 2 of a newer ccorch; this one knows schemas up to 1"):
        await Storage.open(golden)
