# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon holds in memory for an instance that has processes. All of it can be made again from the record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from ccorchd.agents.base import Paths
from ccorchd.host.pidfd import PidWatch
from ccorchd.host.reports import ReportServer
from ccorchd.host.tmux import TmuxServer


@dataclass(slots=True)
class Live:
    """Handles of one running instance."""

    paths: Paths
    reports: ReportServer
    unit: str
    tmux: TmuxServer | None = None
    pid: int = 0
    watch: PidWatch | None = None
    cgroup: Path | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the agent has reported that it takes prompts."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its end has been recorded."""
    confirmation: asyncio.Future[None] | None = None
    """What the prompt that is on its way waits for: the agent confirms it."""
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a prompt is on its way: one at a time."""
    last_report: float = 0.0
    """Time of the newest report that changed the state: older ones out of a spool no longer may."""
    stop_reason: str = ""
    """Why it is being stopped on purpose; empty while nobody asked for it."""
    retried_session: bool = False
    setup_failure: str = ""
    status_file: Path | None = None

    async def settled(self, limit: float) -> None:
        """Wait until the agent takes prompts or is gone, at most *limit* seconds; the two events tell which."""
        waits = [asyncio.ensure_future(self.ready.wait()), asyncio.ensure_future(self.gone.wait())]
        try:
            await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def close(self) -> None:
        """Let go of everything without touching the instance."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None
        await self.reports.close()
        if self.confirmation is not None:
            self.confirmation.cancel()
