# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller is told when lock, file or disk are in another state than expected."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import Event
from ccorchd.storage import Storage, Store, database


async def refused_to_open(path: Path) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        await Storage.open(path)
    return caught.value


@contextmanager
def lock_held(path: Path, content: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    lock.write_text(content)
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


async def test_a_holder_that_is_not_known_is_called_another_process(path: Path) -> None:
    with lock_held(path, ""):
        assert (await refused_to_open(path)).message.endswith("is in use by another process")
    with lock_held(path, "not a number"):
        assert (await refused_to_open(path)).message.endswith("is in use by another process")
    await (await Storage.open(path)).close()


async def test_a_holder_that_is_gone_is_told_by_its_number(path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    with lock_held(path, f"{gone.pid}\n"):
        assert (await refused_to_open(path)).message.endswith(f"is in use by process {gone.pid}")


async def test_a_database_in_another_programs_transaction_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_TIMEOUT", 0.05)
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as person:
        person.execute("BEGIN EXCLUSIVE")
        error = await refused_to_open(path)
        person.execute("ROLLBACK")
    assert error.code is ErrorCode.STORAGE_FAILED
    assert "another program holds" in error.message
    assert not list(path.parent.glob("*.damaged-*"))
    await (await Storage.open(path)).close()


async def test_damage_while_it_is_open_is_told(storage: Storage, path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(CcorchError, match="is damaged") as caught:
        await storage.run(lambda store: store.events())
    assert caught.value.code is ErrorCode.STORAGE_FAILED
    assert "Restart ccorchd" in caught.value.hint


async def test_a_database_that_is_read_only_is_told(storage: Storage) -> None:
    await storage.run(lambda store: store._database.connection().execute("PRAGMA query_only = on"))
    with pytest.raises(CcorchError, match="cannot be written") as caught:
        await storage.run(lambda store: store.add_project("p", "/r"))
    assert caught.value.code is ErrorCode.STORAGE_FAILED


async def test_copies_of_different_damage_are_all_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await (await Storage.open(path)).close()
    whole = path.read_bytes()
    wal = path.with_name("ccorch.db-wal")
    stamps = iter(("20260101T000000", "20260101T000001"))
    monkeypatch.setattr(database.time, "strftime", lambda *_: next(stamps))
    for byte in (b"\xaa", b"\xbb"):
        path.write_bytes(byte * len(whole))
        wal.write_bytes(byte * 64)
        for _ in range(2):
            assert "is damaged" in (await refused_to_open(path)).message
            wal.write_bytes(byte * 64)
    copies = sorted(path.parent.glob("*.damaged-*"))
    assert [copy.name for copy in copies] == [
        "ccorch.db.damaged-20260101T000000",
        "ccorch.db.damaged-20260101T000000-wal",
        "ccorch.db.damaged-20260101T000001",
        "ccorch.db.damaged-20260101T000001-wal",
    ]
    assert {copy.read_bytes()[:1] for copy in copies[:2]} == {b"\xaa"}
    assert {copy.read_bytes()[:1] for copy in copies[2:]} == {b"\xbb"}


async def test_a_save_that_hangs_is_not_called_undone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_COMMIT_GRACE", 0.01)
    loop = asyncio.get_running_loop()
    committing, go = asyncio.Event(), threading.Event()

    def trace(statement: str) -> None:
        if statement.upper().startswith("COMMIT") and not go.is_set():
            loop.call_soon_threadsafe(committing.set)
            assert go.wait(30)

    def work(store: Store) -> None:
        store._database.connection().set_trace_callback(trace)
        store.add_event(Event("slow", "x"))

    try:
        with pytest.raises(CcorchError, match="whether it was saved is not known") as caught:
            await storage.run(work, timeout=0.5)
        assert caught.value.code is ErrorCode.TIMEOUT
        assert committing.is_set()
    finally:
        go.set()
    assert [event.kind for event in await storage.run(lambda store: store.events())] == ["slow"]


@pytest.mark.parametrize("repository", ["/a\0b", "/a\udcffb"])
async def test_a_path_that_cannot_be_kept_exactly_is_refused(storage: Storage, repository: str) -> None:
    with pytest.raises(CcorchError, match="cannot be kept in the database") as caught:
        await storage.run(lambda store: store.add_project("p", repository))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert await storage.run(Store.projects) == []
