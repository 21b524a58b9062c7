# SPDX-License-Identifier: LGPL-2.1-or-later
"""The thread, its transactions and time-outs, and what happens when file or disk misbehave."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import Event
from ccorchd.storage import Storage, Store

REPOSITORY = Path(__file__).resolve().parents[3]


def add(kind: str) -> Callable[[Store], Event | None]:
    return lambda store: store.add_event(Event(kind, kind))


async def kinds(storage: Storage) -> list[str]:
    return [event.kind for event in await storage.run(lambda store: store.events())]


async def refused_to_open(path: Path) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        await Storage.open(path)
    return caught.value


class Gate:
    """Work that stops half-way, in the database thread, until it is let go."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self.open = threading.Event()

    def __call__(self, store: Store) -> str:
        store.add_event(Event(self._kind, self._kind))
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self.open.wait(30)
        return "through"


# Transactions


async def test_a_function_is_one_transaction(storage: Storage) -> None:
    def work(store: Store) -> None:
        store.add_project("p", "/r")
        store.add_event(Event("x", "x"))
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await storage.run(work)
    assert await kinds(storage) == []
    assert await storage.run(lambda store: store.projects()) == []


async def test_one_that_fails_does_not_touch_its_neighbours(storage: Storage) -> None:
    def fail(store: Store) -> None:
        store.add_event(Event("lost", "x"))
        raise CcorchError(ErrorCode.WRONG_STATE, "no")

    results = await asyncio.gather(
        *(storage.run(fail if number % 3 == 0 else add(f"k{number}")) for number in range(30)), return_exceptions=True
    )
    assert sum(isinstance(result, CcorchError) for result in results) == 10
    assert await kinds(storage) == [f"k{number}" for number in range(30) if number % 3]


async def test_odd_exceptions_come_through(storage: Storage) -> None:
    def stop(store: Store) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await storage.run(stop)
    with pytest.raises(FileNotFoundError):
        await storage.run(lambda store: os.stat("/nonexistent"))
    with pytest.raises(TimeoutError):
        await storage.run(lambda store: (_ for _ in ()).throw(TimeoutError()))
    await storage.run(add("x"))
    assert await kinds(storage) == ["x"]


async def test_other_sql_errors_are_ours(storage: Storage) -> None:
    with pytest.raises(CcorchError, match="no such table") as caught:
        await storage.run(lambda store: store._database.execute_sql("SELECT * FROM absent"))
    assert caught.value.code is ErrorCode.STORAGE_FAILED


async def test_pragmas(storage: Storage) -> None:
    def read(name: str) -> Any:
        return storage.run(lambda store: store._database.execute_sql(f"PRAGMA {name}").fetchone()[0])

    assert await read("journal_mode") == "wal"
    assert await read("synchronous") == 2
    assert await read("foreign_keys") == 1


# Time-outs


async def test_time_out_takes_the_transaction_back(storage: Storage) -> None:
    gate = Gate("late")
    with pytest.raises(CcorchError, match="nothing was saved") as caught:
        await storage.run(gate, timeout=0.05)
    assert caught.value.code is ErrorCode.TIMEOUT
    gate.open.set()
    assert await kinds(storage) == []


async def test_time_out_stops_a_query_that_does_not_end(storage: Storage) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    started = threading.Event()

    def work(store: Store) -> None:
        started.set()
        store._database.execute_sql(endless).fetchall()

    with pytest.raises(CcorchError) as caught:
        await storage.run(work, timeout=0.3)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert started.is_set()
    await asyncio.wait_for(storage.run(add("next")), 10)
    assert await kinds(storage) == ["next"]


async def test_what_timed_out_in_the_queue_is_never_done(storage: Storage) -> None:
    gate = Gate("first")
    first = asyncio.create_task(storage.run(gate))
    await gate.reached.wait()
    with pytest.raises(CcorchError) as caught:
        await storage.run(add("second"), timeout=0.05)
    assert caught.value.code is ErrorCode.TIMEOUT
    gate.open.set()
    assert await first == "through"
    assert await kinds(storage) == ["first"]


async def test_cancelling_takes_the_transaction_back(storage: Storage) -> None:
    gate = Gate("cancelled")
    task = asyncio.create_task(storage.run(gate))
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    assert await kinds(storage) == []


async def test_a_commit_under_way_is_waited_for(storage: Storage) -> None:
    """Past the point of no return the caller must hear what really happened, though it is late."""
    loop = asyncio.get_running_loop()
    committing, go = asyncio.Event(), threading.Event()

    def trace(statement: str) -> None:
        if statement.upper().startswith("COMMIT") and not go.is_set():
            loop.call_soon_threadsafe(committing.set)
            assert go.wait(30)

    def work(store: Store) -> str:
        store._database.connection().set_trace_callback(trace)
        store.add_event(Event("slow", "x"))
        return "saved"

    async def release() -> None:
        await committing.wait()
        loop.call_later(0.2, go.set)

    releasing = asyncio.create_task(release())
    assert await storage.run(work, timeout=0.1) == "saved"
    await releasing
    assert await kinds(storage) == ["slow"]


# Closing


async def test_close_drains_and_refuses(path: Path) -> None:
    storage = await Storage.open(path)
    gate = Gate("first")
    tasks = [asyncio.create_task(storage.run(gate))] + [
        asyncio.create_task(storage.run(add(f"k{n}"))) for n in range(20)
    ]
    await gate.reached.wait()
    closing_tasks = [asyncio.create_task(storage.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(CcorchError) as caught:
        await storage.run(add("late"))
    assert caught.value.code is ErrorCode.SHUTTING_DOWN
    gate.open.set()
    await asyncio.gather(*tasks, *closing_tasks)
    await storage.close()
    again = await Storage.open(path)
    try:
        assert await kinds(again) == ["first", *(f"k{n}" for n in range(20))]
    finally:
        await again.close()


async def test_a_closed_database_is_one_private_file(path: Path) -> None:
    storage = await Storage.open(path)
    await storage.run(add("x"))
    for name in ("", "-wal", "-shm", ".lock"):
        assert stat.S_IMODE(path.with_name(path.name + name).stat().st_mode) == 0o600
    await storage.close()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["ccorch.db", "ccorch.db.lock"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_opening_can_be_cancelled(path: Path) -> None:
    task = asyncio.create_task(Storage.open(path))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for thread in threading.enumerate():
        if thread.name == "storage":
            await asyncio.to_thread(thread.join, 30)
    await (await Storage.open(path)).close()


# Two at once


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the database open until its input ends."""
    script = """
import asyncio, sys
from pathlib import Path
from ccorchd.storage import Storage
async def main():
    storage = await Storage.open(Path(sys.argv[1]))
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await storage.close()
asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


async def test_a_second_process_is_told_who_has_it(path: Path) -> None:
    with other_process(path) as process:
        error = await refused_to_open(path)
        assert error.code is ErrorCode.STORAGE_FAILED
        assert re.search(rf"in use by process {process.pid} \(.*python.*\)", error.message)
        assert "CCORCH_SUFFIX" in error.hint
    await (await Storage.open(path)).close()


async def test_the_lock_ends_with_a_killed_holder(path: Path) -> None:
    with other_process(path) as process:
        process.kill()
        process.wait(30)
        storage = await Storage.open(path)
    assert (path.with_name("ccorch.db.lock")).read_text() == f"{os.getpid()}\n"
    await storage.close()


async def test_twice_in_one_process_is_refused_too(storage: Storage, path: Path) -> None:
    assert f"process {os.getpid()}" in (await refused_to_open(path)).message
    await storage.run(add("still works"))


async def test_a_program_that_holds_sqlites_lock_is_named_as_such(storage: Storage, path: Path) -> None:
    await storage.run(lambda store: store._database.connection().execute("PRAGMA busy_timeout = 50"))
    with closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with pytest.raises(CcorchError, match="another program holds the database"):
            await storage.run(add("x"))
        person.execute("ROLLBACK")
    await storage.run(add("y"))
    assert await kinds(storage) == ["y"]


# A disk or file that misbehaves


async def test_disk_full(storage: Storage) -> None:
    def limit(store: Store) -> None:
        [pages] = store._database.execute_sql("PRAGMA page_count").fetchone()
        store._database.execute_sql(f"PRAGMA max_page_count = {pages}")

    def fill(store: Store) -> None:
        store.add_project("p", "/r")
        store.add_event(Event("big", "x" * 200_000))

    await storage.run(limit)
    with pytest.raises(CcorchError) as caught:
        await storage.run(fill)
    assert caught.value.code is ErrorCode.NO_SPACE
    assert str(storage.path) in caught.value.message
    assert "Free some space" in caught.value.hint
    # All of it was taken back, what needs no room still works, and so does everything once there is room.
    assert await storage.run(lambda store: store.projects()) == []
    await storage.run(lambda store: store._database.execute_sql("PRAGMA max_page_count = 1000000"))
    await storage.run(fill)
    assert await kinds(storage) == ["big"]


async def damaged(path: Path, harm: Callable[[bytearray], None]) -> bytes:
    storage = await Storage.open(path)

    def fill(store: Store) -> None:
        for number in range(300):
            store.add_event(Event("k", "x" * 100, uid=str(number)))

    await storage.run(fill)
    await storage.close()
    content = bytearray(path.read_bytes())
    harm(content)
    path.write_bytes(content)
    return bytes(content)


def no_header(content: bytearray) -> None:
    content[:100] = b"\xff" * 100


def no_middle(content: bytearray) -> None:
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xaa" * 4096


def cut_off(content: bytearray) -> None:
    del content[len(content) // 2 :]


def text(content: bytearray) -> None:
    content[:] = b"this is no database, this is a note"


@pytest.mark.parametrize("harm", [no_header, no_middle, cut_off, text])
async def test_a_damaged_file_is_refused_and_kept(path: Path, harm: Callable[[bytearray], None]) -> None:
    content = await damaged(path, harm)
    error = await refused_to_open(path)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert f"the database {path} is damaged" in error.message
    assert "\n" not in error.message
    [copy] = path.parent.glob("ccorch.db.damaged-*")
    assert copy.read_bytes() == content
    assert str(copy) in error.hint
    # A second try (systemd's) keeps no second copy.
    assert str(copy) in (await refused_to_open(path)).hint
    assert list(path.parent.glob("ccorch.db.damaged-*")) == [copy]
    # With the file out of the way it goes on.
    path.unlink()
    await (await Storage.open(path)).close()


async def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    content = path.read_bytes()
    error = await refused_to_open(path)
    assert "another program" in error.message
    assert path.read_bytes() == content


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await (await Storage.open(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    content = path.read_bytes()
    error = await refused_to_open(path)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert "schema 99 of a newer ccorch" in error.message
    assert path.read_bytes() == content


async def test_a_folder_in_the_way(path: Path) -> None:
    path.mkdir(parents=True)
    error = await refused_to_open(path)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert str(path) in error.message


async def test_a_file_in_the_place_of_the_folder(path: Path) -> None:
    path.parent.write_text("")
    error = await refused_to_open(path)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert str(path.parent) in error.message


async def test_a_folder_that_cannot_be_written() -> None:
    # Not even root may make a folder there.
    error = await refused_to_open(Path("/proc/self/ccorch/ccorch.db"))
    assert error.code is ErrorCode.STORAGE_FAILED
    assert "must be writable" in error.hint


async def test_a_failed_opening_leaves_lock_and_thread_behind_for_nobody(path: Path) -> None:
    await damaged(path, text)
    await refused_to_open(path)
    for thread in threading.enumerate():
        if thread.name == "storage":
            await asyncio.to_thread(thread.join, 30)
    shutil.rmtree(path.parent)
    await (await Storage.open(path)).close()
