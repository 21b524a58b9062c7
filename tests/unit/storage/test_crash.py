# SPDX-License-Identifier: LGPL-2.1-or-later
"""SIGKILL at the worst moments: what was acknowledged is there, what was not is absent, and nothing counts twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ccorchd.model import Event
from ccorchd.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[3]

PROGRAM = """
import asyncio, sys, time
from pathlib import Path
from ccorchd.model import Event
from ccorchd.storage import Storage

def event(number):
    return Event("report", f"report {number}", uid=f"uid-{number}", data={"text": "x" * 500})

def between(store):
    store.add_project("p", "/r")
    assert store.add_event(event(1)) is not None
    print("inserted", flush=True)
    time.sleep(600)

def committing(store):
    # Stops at the COMMIT itself, with everything written that comes before it.
    def trace(statement):
        if statement.upper().startswith("COMMIT"):
            print("inserted", flush=True)
            time.sleep(600)
    store._database.connection().set_trace_callback(trace)
    store.add_project("p", "/r")
    # More than SQLite's page cache holds, so that pages of this transaction are in the WAL already.
    for number in range(1, 9):
        store.add_event(Event("report", "x" * 1_000_000, uid=f"uid-{number}"))

def whole(store):
    store.add_project("p", "/r")
    assert store.add_event(event(1)) is not None

async def main():
    storage = await Storage.open(Path(sys.argv[1]))
    match sys.argv[2]:
        case "between":
            await storage.run(between, timeout=600)
        case "committing":
            await storage.run(committing, timeout=600)
        case "after":
            await storage.run(whole)
            print("committed", flush=True)
            await asyncio.sleep(600)
        case "stream":
            number = 0
            while True:
                number += 1
                await storage.run(lambda store: store.add_event(event(number)))
                print(number, flush=True)

asyncio.run(main())
"""


@contextmanager
def program(path: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), moment], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def kill_at(path: Path, moment: str, word: str) -> None:
    with program(path, moment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == word + "\n"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["between", "committing"])
async def test_killed_between_insert_and_commit(path: Path, moment: str) -> None:
    kill_at(path, moment, "inserted")
    storage = await Storage.open(path)
    try:
        assert await storage.run(lambda store: store.events()) == []
        assert await storage.run(lambda store: store.projects()) == []
        # The sender got no answer and sends it again: now it counts.
        event = Event("report", "report 1", uid="uid-1")
        assert await storage.run(lambda store: store.add_event(event)) is not None
        assert await storage.run(lambda store: store.add_event(event)) is None
        assert len(await storage.run(lambda store: store.events())) == 1
    finally:
        await storage.close()


async def test_killed_after_commit(path: Path) -> None:
    kill_at(path, "after", "committed")
    assert path.with_name("ccorch.db-wal").stat().st_size > 0
    storage = await Storage.open(path)
    try:
        assert [event.uid for event in await storage.run(lambda store: store.events())] == ["uid-1"]
        assert [project.name for project in await storage.run(lambda store: store.projects())] == ["p"]
        # The answer was lost with the daemon, so the sender sends it again: it does not count twice.
        event = Event("report", "report 1", uid="uid-1")
        assert await storage.run(lambda store: store.add_event(event)) is None
        assert len(await storage.run(lambda store: store.events())) == 1
    finally:
        await storage.close()


@pytest.mark.parametrize("lines", [1, 7, 40])
async def test_killed_while_writing_on_and_on(path: Path, lines: int) -> None:
    with program(path, "stream") as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.kill()
        rest = process.stdout.read().split("\n")[:-1]
        process.wait(30)
    acknowledged = lines + len(rest)
    storage = await Storage.open(path)
    try:
        kept = await storage.run(lambda store: store.events(limit=100_000))
        # All that was acknowledged, in order, and at most the one whose acknowledgement was on its way.
        assert len(kept) in (acknowledged, acknowledged + 1)
        assert [event.uid for event in kept] == [f"uid-{number}" for number in range(1, len(kept) + 1)]
        # Everything is sent once more.
        for number in range(1, acknowledged + 4):
            event = Event("report", "again", uid=f"uid-{number}")
            await storage.run(lambda store, event=event: store.add_event(event))  # type: ignore[misc]
        uids = [event.uid for event in await storage.run(lambda store: store.events(limit=100_000))]
        assert uids == [f"uid-{number}" for number in range(1, acknowledged + 4)]
    finally:
        await storage.close()
