# SPDX-License-Identifier: LGPL-2.1-or-later
"""The database file, its lock, and the one thread that runs whole transactions as functions.

Two asyncio tasks that shared a connection would share a transaction, and the roll-back of one would take the other's
rows. So nothing outside this thread ever holds the connection: callers hand over a function and get its result after
the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import fcntl
import filecmp
import logging
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from peewee import PeeweeException, SqliteDatabase

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.storage import migrations
from ccorchd.storage.store import Store

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BUSY_TIMEOUT: Final = 5.0
"""Seconds to wait for another program (a person with sqlite3) that holds SQLite's lock."""

_COMMIT_GRACE: Final = 10.0
"""Seconds that a transaction which is being committed gets beyond its time-out: it can no longer be taken back."""

_QUICK: Final = 64 * 1024**2
"""A bigger file is checked for damage only after a crash, so that the daemon is ready soon: 64 MiB take about 0.1 s."""

_PRAGMAS: Final = {
    "journal_mode": "wal",
    # With WAL, NORMAL could lose the last commits at a power cut; a report is acknowledged after its commit, so FULL.
    "synchronous": "full",
    "foreign_keys": "on",
    "busy_timeout": int(_BUSY_TIMEOUT * 1000),
    "journal_size_limit": 16 * 1024**2,
    "trusted_schema": "off",
}


class _Stage(enum.Enum):
    QUEUED = enum.auto()
    RUNNING = enum.auto()
    COMMITTING = enum.auto()
    DONE = enum.auto()
    ABANDONED = enum.auto()


class _Abandoned(Exception):
    """Rolls the transaction back: nobody waits for it any more."""


class _Job:
    """One function on its way through the thread. Whoever comes first, caller or thread, decides whether it counts."""

    def __init__(self, work: Callable[[Store], Any]) -> None:
        self.work = work
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()
        # A caller that was cancelled leaves its result behind; that must not be logged as "never retrieved".
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._stage = _Stage.QUEUED
        self._lock = threading.Lock()

    def advance(self, stage: _Stage) -> bool:
        """Called in the thread; False means that the job was abandoned and must leave no trace."""
        with self._lock:
            if self._stage is _Stage.ABANDONED:
                return False
            self._stage = stage
            return True

    def abandon(self, interrupt: Callable[[], None]) -> bool:
        """Called in the loop; False means that it is too late, the commit is under way or done."""
        with self._lock:
            if self._stage in (_Stage.COMMITTING, _Stage.DONE):
                return False
            if self._stage is _Stage.RUNNING:
                # Under the lock, so that it cannot hit the next job: the thread has to pass here before it goes on.
                interrupt()
            self._stage = _Stage.ABANDONED
            return True

    def finish(self, result: Any, error: BaseException | None) -> None:
        if not self.advance(_Stage.DONE):
            return
        if isinstance(error, StopIteration):
            # A future cannot carry this one, and the caller would wait for its whole time-out.
            wrapped = RuntimeError("the function ended with StopIteration")
            wrapped.__cause__ = error
            error = wrapped

        def deliver() -> None:
            if self.future.done():
                return
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)

        # The loop may be gone when the daemon is torn down in a hurry; then nobody wants the result.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(deliver)


class Storage:
    """An open database. Make one with :meth:`open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A daemon thread: a hung disk must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name="storage", daemon=True)

    @property
    def path(self) -> Path:
        return self._path

    @classmethod
    async def open(cls, path: Path) -> Storage:
        """Open or create the database *path*, which nobody else may have open, and bring it to the newest schema.

        Raise ``StorageFailed`` if another process has it, if it is damaged (a copy is kept), another program's or a
        newer ccorch's; ``NoSpace`` if the disk is full.
        """
        storage = cls(path)
        opening = _Job(lambda store: None)
        storage._queue.put(opening)
        storage._thread.start()
        try:
            await asyncio.shield(opening.future)
        except asyncio.CancelledError:
            storage._closing = True
            storage._queue.put(None)
            raise
        return storage

    async def run(self, work: Callable[[Store], T], *, timeout: float = 30) -> T:
        """Run *work* as one transaction in the database thread and return its result once it is committed.

        If *work* raises, all it did is rolled back and the exception is raised here. *timeout* is in seconds and counts
        from now, waiting for others included; after it, and when the caller is cancelled, the transaction is taken
        back.

        Raise ``Timeout``, ``NoSpace``, ``StorageFailed``, ``ShuttingDown`` after :meth:`close`, and what *work* raises.
        """
        if self._closing:
            raise CcorchError(ErrorCode.SHUTTING_DOWN, "the database is closed, since the daemon is shutting down")
        job = _Job(work)
        self._queue.put(job)
        try:
            await asyncio.wait((job.future,), timeout=timeout)
            if not job.future.done():
                if job.abandon(self._interrupt):
                    raise CcorchError(
                        ErrorCode.TIMEOUT,
                        f"the database did not answer within {timeout:g} s; nothing was saved",
                        f"Is the disk of {self._path.parent} overloaded?",
                    )
                await asyncio.wait((job.future,), timeout=_COMMIT_GRACE)
                if not job.future.done():
                    raise CcorchError(
                        ErrorCode.TIMEOUT,
                        f"the database did not finish saving within {timeout + _COMMIT_GRACE:g} s; "
                        "whether it was saved is not known",
                        f"Is the disk of {self._path.parent} overloaded?",
                    )
        except asyncio.CancelledError:
            job.abandon(self._interrupt)
            raise
        result: T = job.future.result()
        return result

    async def close(self) -> None:
        """Take no more work, do all that was handed over before, and close the file. Later calls wait for the same."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await asyncio.shield(self._ended)
        # The last thing the thread did was to say so; joining it takes no time, and no thread is left for a test to
        # find.
        self._thread.join(5)

    def _interrupt(self) -> None:
        if self._connection is not None:
            self._connection.interrupt()

    # All below runs in the database thread.

    def _main(self) -> None:
        loop = self._ended.get_loop()
        try:
            self._serve()
        finally:

            def ended() -> None:
                if not self._ended.done():
                    self._ended.set_result(None)

            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended)

    def _serve(self) -> None:
        opening = self._queue.get()
        assert opening is not None
        with contextlib.ExitStack() as stack:
            try:
                with _translated_files(self._path), _translated(self._path):
                    database = self._open(stack)
            except BaseException as error:
                # Lock and file are let go before the caller hears of it, who may try again at once.
                stack.close()
                opening.finish(None, error)
                return
            store = Store(database)
            opening.finish(None, None)
            while (job := self._queue.get()) is not None:
                self._perform(job, database, store)

    def _open(self, stack: contextlib.ExitStack) -> Any:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(_locked(self._path))
        _prepare(self._path)
        # Any: what types peewee tells differs between its versions.
        database: Any = SqliteDatabase(str(self._path), pragmas=_PRAGMAS, autoconnect=False)
        database.connect()
        stack.callback(self._close, database)
        self._connection = database.connection()
        return database

    def _close(self, database: Any) -> None:
        # Nobody may interrupt a connection that is being closed.
        self._connection = None
        # No PRAGMA optimize before: without statistics the planner chooses the same indexes at any size, while those
        # of a young database mislead it when there are 100,000 events.
        database.close()

    def _perform(self, job: _Job, database: Any, store: Store) -> None:
        if not job.advance(_Stage.RUNNING):
            return
        connection: sqlite3.Connection = database.connection()
        try:
            # Not peewee's own transactions: SQLite rolls back by itself when the disk is full, and peewee 4 then
            # raises that there is nothing to roll back, in place of the reason.
            with _translated(self._path), database.manual_commit():
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = job.work(store)
                    if not job.advance(_Stage.COMMITTING):
                        raise _Abandoned
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        with contextlib.suppress(sqlite3.Error):
                            connection.execute("ROLLBACK")
                    raise
        except BaseException as error:
            job.finish(None, error)
        else:
            job.finish(result, None)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside *path*; raise ``StorageFailed`` naming the process that has it.

    SQLite's own locks let two daemons take turns, and each would believe that it owns the instances. The lock is the
    kernel's (flock(2)), so it ends with its holder however that ends; the file stays and says nothing by itself.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CcorchError(
                ErrorCode.STORAGE_FAILED,
                f"{path} is in use by {_holder(descriptor)}",
                "Only one ccorchd may use it: stop the other one, or give this one a CCORCH_SUFFIX.",
            ) from error
        # The number is for the message above alone; a full disk must not stop us for that.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    number = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    if not number.isdigit():
        return "another process"
    try:
        name = Path(f"/proc/{number}/comm").read_text().strip()
    except OSError:
        return f"process {number}"
    return f"process {number} ({name})"


def _prepare(path: Path) -> None:
    """Check the file and migrate it, on a connection of its own: migrations need foreign keys off."""
    # SQLite gives WAL and shared memory the permissions of the main file, so they are set before it is opened.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    size = path.stat().st_size
    wal = path.with_name(path.name + "-wal")
    crashed = wal.exists() and wal.stat().st_size > 0
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)) as connection:
        try:
            before, after = migrations.migrate(connection, path)
            if size and (crashed or size <= _QUICK):
                [answer] = connection.execute("PRAGMA quick_check(1)").fetchone()
                if answer != "ok":
                    raise _damaged(path, answer)
        except sqlite3.DatabaseError as error:
            if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _damaged(path, str(error)) from error
            raise
    if 0 < before < after:
        _log.info("the database was brought from schema %d to %d", before, after)


def _damaged(path: Path, detail: str) -> CcorchError:
    try:
        copy = _keep_damaged(path)
        kept = f"A copy is kept as {copy}. "
    except OSError as error:
        kept = f"A copy could not be kept: {error.strerror}. "
    return CcorchError(
        ErrorCode.STORAGE_FAILED,
        f"the database {path} is damaged: {' '.join(detail.split())}",
        f'{kept}Try "sqlite3 {path} .recover", or move the file away: branches and worktrees are not in it and stay.',
    )


def _keep_damaged(path: Path) -> Path:
    # systemd starts the daemon again and again: one copy of the same bytes is enough.
    for earlier in sorted(path.parent.glob(f"{path.name}.damaged-*")):
        if not earlier.name.endswith(("-wal", ".part")) and filecmp.cmp(path, earlier, shallow=False):
            return earlier
    copy = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        shutil.copy2(wal, copy.with_name(copy.name + "-wal"))
    # Under another name until it is whole, so that half a copy is not taken for one.
    partial = copy.with_name(copy.name + ".part")
    try:
        shutil.copy2(path, partial)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return copy


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code, the low byte of the extended one, or 0 (https://www.sqlite.org/rescode.html)."""
    # peewee raises a class of its own, in 3.14 as in 4; the code is in the exception that it was handling.
    original: BaseException | None = error
    while original is not None and not isinstance(original, sqlite3.Error):
        original = original.__cause__ or original.__context__
    return (getattr(original, "sqlite_errorcode", None) or 0) & 0xFF


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into our own errors."""
    try:
        yield
    except (PeeweeException, sqlite3.Error) as error:
        raise _translate(path, error) from error


@contextlib.contextmanager
def _translated_files(path: Path) -> Iterator[None]:
    """Turn what the file system raises while the database is opened into our own errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path) from error
        raise CcorchError(
            ErrorCode.STORAGE_FAILED,
            f"the database {path} cannot be opened: {error.filename or path.parent}: {error.strerror}",
            "The folder must be writable for the user that ccorchd runs as.",
        ) from error


def _translate(path: Path, error: PeeweeException | sqlite3.Error) -> CcorchError:
    code = _code(error)
    match code:
        case sqlite3.SQLITE_FULL:
            return _no_space(path)
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _free(path) < 1024**2:
            # A full disk shows as an I/O error where SQLite grows its shared memory file or meets a quota.
            return _no_space(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return CcorchError(
                ErrorCode.STORAGE_FAILED,
                f"another program holds the database {path}",
                "Is it open in sqlite3 or a backup? End that and try again.",
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CcorchError(
                ErrorCode.STORAGE_FAILED, f"the database {path} is damaged: {error}", "Restart ccorchd to check it."
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return CcorchError(
                ErrorCode.STORAGE_FAILED,
                f"the database {path} cannot be written: {error}",
                "The file and its folder must be writable for the user that ccorchd runs as.",
            )
    return CcorchError(ErrorCode.STORAGE_FAILED, f"the database {path} failed: {error}")


def _no_space(path: Path) -> CcorchError:
    return CcorchError(
        ErrorCode.NO_SPACE,
        f"there is no space left for the database {path}; nothing was saved",
        f"Free some space on the file system of {path.parent} and try again.",
    )


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return 0
