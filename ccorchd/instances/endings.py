# SPDX-License-Identifier: LGPL-2.1-or-later
"""How an agent ended, put together from its pane, its scope and what the kernel counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from ccorchd.agents.base import Agent
from ccorchd.contract import Reason, State
from ccorchd.errors import CcorchError
from ccorchd.instances.launch import SETUP_EXIT
from ccorchd.instances.live import Live
from ccorchd.instances.sampler import Kill
from ccorchd.model import Change, InstanceRecord, Usage

_SCREEN_LINES: Final = 15
_TMUX_TIMEOUT: Final = 5.0


async def last_words(live: Live) -> tuple[int | None, int | None, str]:
    """Return exit status, signal and the last lines of the agent's screen, as far as tmux still knows."""
    if live.tmux is None:
        return None, None, ""
    try:
        async with asyncio.timeout(_TMUX_TIMEOUT):
            status, signal = await live.tmux.exit_of("agent")
            screen = await live.tmux.capture("agent")
    except (CcorchError, TimeoutError):
        return None, None, ""
    lines = [line.rstrip() for line in screen.splitlines() if line.strip()]
    return status, signal, "\n".join(lines[-_SCREEN_LINES:])


def end_change(
    record: InstanceRecord,
    agent: Agent,
    live: Live,
    status: int | None,
    signal: int | None,
    screen: str,
    kill: Kill | None,
    result: str,
) -> Change:
    """Return what the end of an agent means: failed or stopped, and why, with its last screen if it failed."""
    change = agent.exit_change(status, signal)
    reason, text, message = change.reason, change.reason_text, change.message
    oom = kill is not None or result == "oom-kill"
    if live.setup_failure and status == SETUP_EXIT:
        reason, text, message = Reason.SETUP, live.setup_failure, f"not started: {live.setup_failure}"
    elif oom and (signal == 9 or status in (None, 137)):
        reason = Reason.OUT_OF_MEMORY
        if kill and kill.pid != live.pid and signal == 9:  # too fast for the samples, but its end tells
            kill = replace(kill, pid=live.pid, name="its agent", resident=0)
        text = kill.sentence(record.limits.memory_max) if kill else "the kernel killed it"
        message = text
    elif status is None and signal is None:
        text = "its scope was stopped from outside" if result else "its terminal ended from outside"
        message = f"{agent.kind} is gone: {text}"
    failed = change.state is State.FAILED or reason in (Reason.SETUP, Reason.OUT_OF_MEMORY)
    return Change(
        state=State.FAILED if failed else State.STOPPED,
        reason=reason,
        reason_text=text,
        doing="",
        kind="instance.failed" if failed else "instance.stopped",
        message=message,
        priority=4 if failed else 5,
        data={**change.data, **({"screen": screen} if failed and screen else {})},
    )


def final_words(why: str, usage: Usage | None) -> str:
    """Return *why* it was stopped, and what it used."""
    if usage is None or usage.cpu_seconds is None:
        return why
    peak = f", {usage.memory_peak / 1024**2:.0f} MiB at most" if usage.memory_peak else ""
    return f"{why}; it used {usage.cpu_seconds:.1f} s of CPU{peak}"
