# SPDX-License-Identifier: LGPL-2.1-or-later
"""With 100,000 events every question that the faces ask is answered at once, through an index."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ccorchd.model import Address, Event
from ccorchd.storage import Storage, Store

ROWS = 100_000
KINDS = ("tool", "prompt", "state", "message")


def kind(number: int) -> str:
    if number % 20_000 == 7:
        return "rare"
    return "audit.Send" if number % 50 == 0 else KINDS[number % len(KINDS)]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "ccorch.db"
    from ccorchd.storage.migrations import migrate

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, path)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO project VALUES (?, ?, ?, 0, '')", [(n, f"p{n}", f"/p{n}") for n in (1, 2)])
        connection.executemany(
            "INSERT INTO instance VALUES (?, ?, ?, 'demo', '', 'b', 'main', 'c', '/w', 0, '', '{}', '{}', '{}', 0, "
            "'idle', '', '', 0, 0, 0, 0, '', 0, '')",
            [(n, 1 + (n - 1) // 10, f"i{n}") for n in range(1, 21)],
        )
        connection.executemany(
            "INSERT INTO event VALUES (NULL, ?, ?, ?, ?, ?, ?, 'ccorchd', 6, ?, ?, ?)",
            (
                (
                    n,
                    kind(n),
                    1 + n % 20 // 10,
                    1 + n % 20,
                    f"p{1 + n % 20 // 10}",
                    f"i{1 + n % 20}",
                    "m" * 80,
                    "{}",
                    f"u{n}",
                )
                for n in range(ROWS)
            ),
        )
        connection.execute("COMMIT")
    return path


@pytest.fixture
async def storage(full: Path) -> AsyncIterator[Storage]:
    started = time.perf_counter()
    storage = await Storage.open(full)
    assert time.perf_counter() - started < 0.8, "the daemon has to be ready within a second"
    yield storage
    await storage.close()


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"newest_first": True}, None),
        ({"after": ROWS - 10}, "PRIMARY KEY"),
        ({"before": 50, "newest_first": True}, "PRIMARY KEY"),
        ({"instance_id": 3, "newest_first": True}, "event_instance"),
        ({"instance_id": 3, "after": ROWS - 1000}, "event_instance"),
        ({"project_id": 1, "newest_first": True}, "event_project"),
        ({"address": Address("p2", "i14"), "newest_first": True}, "event_name"),
        ({"kinds": ["rare"]}, "event_kind"),
        ({"kinds": ["rare", "nothing"], "newest_first": True}, "event_kind"),
        ({"kinds": ["tool"], "newest_first": True}, "event_kind"),
        ({"audit": True, "newest_first": True}, "event_kind"),
        ({"audit": True, "instance_id": 11}, "event_instance"),
    ],
    ids=str,
)
async def test_questions_are_quick(storage: Storage, wanted: dict[str, Any], index: str | None) -> None:
    def plan(store: Store) -> str:
        connection = store._database.connection()
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        store.events(limit=50, **wanted)
        connection.set_trace_callback(None)
        steps = [row[3] for query in asked for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
        return "; ".join(steps)

    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        found = await storage.run(lambda store: store.events(limit=50, **wanted))
        seconds.append(time.perf_counter() - started)
    assert 0 < len(found) <= 50
    steps = await storage.run(plan)
    assert min(seconds) < 0.05, steps
    assert (index is None) or (index in steps and "SCAN" not in steps)


async def test_adding_is_quick(storage: Storage) -> None:
    seconds = []
    for number in range(20):
        event = Event("tool", "x", instance_id=1, uid=f"new-{time.time_ns()}-{number}")
        started = time.perf_counter()
        await storage.run(lambda store, event=event: store.add_event(event))  # type: ignore[misc]
        seconds.append(time.perf_counter() - started)
    assert sorted(seconds)[10] < 0.05
