# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ccorchd.host.inotify import Inotify
from ccorchd.instances.statusfiles import StatusFiles


@pytest.fixture
async def inotify() -> AsyncIterator[Inotify]:
    made = Inotify()
    yield made
    made.close()


async def told(event: asyncio.Event) -> None:
    async with asyncio.timeout(10):
        await event.wait()
    event.clear()


async def test_each_file_of_a_shared_folder_is_told_of_alone(inotify: Inotify, tmp_path: Path) -> None:
    files, first, second = StatusFiles(inotify), asyncio.Event(), asyncio.Event()
    folder = tmp_path / "not/yet/there"
    files.follow(folder / "1.json", first.set)
    files.follow(folder / "2.json", second.set)
    (folder / "1.json").write_text("written")
    await told(first)
    assert not second.is_set()
    (folder / "new").write_text("moved here")
    (folder / "new").rename(folder / "2.json")
    await told(second)


async def test_forgotten_file_is_silent_and_the_last_one_ends_the_watch(inotify: Inotify, tmp_path: Path) -> None:
    files, first, second = StatusFiles(inotify), asyncio.Event(), asyncio.Event()
    files.follow(tmp_path / "1.json", first.set)
    files.follow(tmp_path / "2.json", second.set)
    files.forget(tmp_path / "1.json")
    files.forget(tmp_path / "1.json")
    (tmp_path / "1.json").write_text("x")
    (tmp_path / "2.json").write_text("x")
    await told(second)
    assert not first.is_set()
    files.forget(tmp_path / "2.json")
    files.follow(tmp_path / "1.json", first.set)
    (tmp_path / "1.json").write_text("again")
    await told(first)


async def test_replaced_folder_is_read_anew_and_followed_again(inotify: Inotify, tmp_path: Path) -> None:
    files, changed = StatusFiles(inotify), asyncio.Event()
    folder = tmp_path / "sessions"
    files.follow(folder / "1.json", changed.set)
    folder.rmdir()
    await told(changed)  # what may have been missed is looked at
    files.follow(folder / "1.json", changed.set)
    (folder / "1.json").write_text("x")
    await told(changed)


async def test_folder_that_cannot_be_made_is_logged(
    inotify: Inotify, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    StatusFiles(inotify).follow(tmp_path / "file" / "1.json", lambda: None)
    assert "cannot be watched" in caplog.text
