# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import asyncio

import pytest

from ccorchd.background import Background
from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError


async def test_failure_is_logged_by_name_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    done = asyncio.Event()
    async with Background() as background:
        failing = background.spawn(fail(), "what fails")
        assert failing is not None
        await failing
        background.spawn(_set(done), "what goes on")
        async with asyncio.timeout(10):
            await done.wait()
    assert "what fails failed" in caplog.text
    assert "broken" in caplog.text


async def test_end_cancels_members_and_takes_no_more() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    late = asyncio.Event()
    async with Background() as background:
        background.spawn(endless(), "endless")
        await begun.wait()
    assert ended.is_set()
    # Not awaited work is closed: else Python warned of it, and warnings are errors.
    assert background.spawn(_set(late), "too late") is None
    assert not late.is_set()


async def test_error_of_the_block_leaves_as_it_is_and_cancels_the_members() -> None:
    """Who asked for a start finds its reason by the error's type: an ExceptionGroup has none."""
    tasks = []

    async def run() -> None:
        async with Background() as background:
            tasks.append(background.spawn(asyncio.Event().wait(), "endless"))
            raise CcorchError(ErrorCode.HOST_FAILED, "no bus")

    with pytest.raises(CcorchError, match="no bus"):
        await run()
    assert [task is not None and task.cancelled() for task in tasks] == [True]


async def test_cancellation_goes_through() -> None:
    begun = asyncio.Event()

    async def run() -> None:
        async with Background() as background:
            background.spawn(asyncio.Event().wait(), "endless")
            begun.set()
            await asyncio.Event().wait()

    running = asyncio.ensure_future(run())
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def _set(event: asyncio.Event) -> None:
    event.set()
