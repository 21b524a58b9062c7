# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that goes on beside the caller: every task in one group, none able to end the daemon, all ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)


class Background:
    """A task group whose members may fail one by one: a failure is logged with its name and ends nothing else."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        if isinstance(error, Exception):
            # Members cannot fail, so it is the block's own: it leaves as it is, and not wrapped in an ExceptionGroup.
            await self._group.__aexit__(None, None, None)
        else:
            await self._group.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[object, object, object], name: str) -> asyncio.Task[None] | None:
        """Run *work* beside the caller; None (and *work* is closed) once the group is being cancelled."""
        if self._closing:
            work.close()
            return None
        task = self._group.create_task(self._guard(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before its first step has never looked at its work.
        task.add_done_callback(lambda _task: work.close())
        return task

    @staticmethod
    async def _guard(work: Coroutine[object, object, object], name: str) -> None:
        try:
            await work
        except Exception:
            _log.exception("%s failed", name)

    def cancel(self) -> None:
        """Cancel all members; the group takes no more."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
