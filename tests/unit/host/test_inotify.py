# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of real folders, as the kernel tells them."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchd.host import inotify
from ccorchd.host.inotify import Change, Inotify


@pytest.fixture
async def changes() -> asyncio.Queue[Change]:
    return asyncio.Queue()


@pytest.fixture
async def watcher() -> Iterator[Inotify]:  # type: ignore[misc]
    watcher = Inotify()
    yield watcher
    watcher.close()


async def following(queue: asyncio.Queue[Change]) -> Change:
    return await asyncio.wait_for(queue.get(), 10)


async def test_renames_into_a_folder(tmp_path: Path, watcher: Inotify, changes: asyncio.Queue[Change]) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    watcher.watch(folder, inotify.MOVED_TO, changes.put_nowait)
    (folder / "made").touch()
    for name in ("a", "größer " + "x" * 200):
        (tmp_path / "file").touch()
        (tmp_path / "file").rename(folder / name)
        assert await following(changes) == Change(inotify.MOVED_TO, name)
    assert changes.empty()


async def test_a_file_that_is_written(tmp_path: Path, watcher: Inotify, changes: asyncio.Queue[Change]) -> None:
    path = tmp_path / "status.json"
    path.touch()
    watcher.watch(path, inotify.CLOSE_WRITE, changes.put_nowait)
    path.write_text("{}")
    assert await following(changes) == Change(inotify.CLOSE_WRITE, "")


async def test_a_folder_that_goes(tmp_path: Path, watcher: Inotify, changes: asyncio.Queue[Change]) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    watch = watcher.watch(folder, inotify.MOVED_TO | inotify.ONLYDIR, changes.put_nowait)
    folder.rmdir()
    assert (await following(changes)).lost
    assert not watch.active
    watch.cancel()
    folder.mkdir()
    again = watcher.watch(folder, inotify.MOVED_TO, changes.put_nowait)
    (tmp_path / "file").touch()
    (tmp_path / "file").rename(folder / "file")
    assert (await following(changes)).name == "file"
    again.cancel()


async def test_cancelled_and_closed(tmp_path: Path, changes: asyncio.Queue[Change]) -> None:
    watcher = Inotify()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = watcher.watch(tmp_path / "one", inotify.CREATE, changes.put_nowait)
    second = watcher.watch(tmp_path / "two", inotify.CREATE, changes.put_nowait)
    first.cancel()
    first.cancel()
    (tmp_path / "one" / "file").touch()
    (tmp_path / "two" / "file").touch()
    assert (await following(changes)).name == "file"
    assert changes.empty()
    watcher.close()
    watcher.close()
    assert not second.active
    with pytest.raises(OSError, match="closed"):
        watcher.watch(tmp_path, inotify.CREATE, changes.put_nowait)


async def test_errors_are_named(tmp_path: Path, watcher: Inotify, changes: asyncio.Queue[Change]) -> None:
    with pytest.raises(FileNotFoundError):
        watcher.watch(tmp_path / "nowhere", inotify.CREATE, changes.put_nowait)
    watcher.watch(tmp_path, inotify.CREATE, changes.put_nowait)
    with pytest.raises(FileExistsError):
        watcher.watch(tmp_path, inotify.DELETE, changes.put_nowait)


async def test_a_failing_callback(tmp_path: Path, watcher: Inotify, changes: asyncio.Queue[Change]) -> None:
    def fail(change: Change) -> None:
        changes.put_nowait(change)
        raise RuntimeError(change.name)

    watcher.watch(tmp_path, inotify.CREATE, fail)
    for name in ("a", "b"):
        (tmp_path / name).touch()
        assert (await following(changes)).name == name


async def test_lost_changes_are_told_to_every_watch(tmp_path: Path, watcher: Inotify) -> None:
    """More changes than the kernel keeps for us: whoever watches must look at everything again."""
    told: dict[str, asyncio.Event] = {}

    def tell(name: str, change: Change) -> None:
        if change.lost:
            told[name].set()

    for name in ("busy", "quiet"):
        (tmp_path / name).mkdir()
        told[name] = asyncio.Event()
        watcher.watch(tmp_path / name, inotify.CREATE | inotify.DELETE, functools.partial(tell, name))
    path = str(tmp_path / "busy/file")
    for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2 + 1):
        os.mkdir(path)
        os.rmdir(path)
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in told.values())), 20)
