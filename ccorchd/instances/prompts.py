# SPDX-License-Identifier: LGPL-2.1-or-later
"""Getting a prompt into an agent: pasted once, confirmed by the agent's own report, or an error.

A look at the screen proves nothing: a paste that arrives too early is lost or split, and one whose Enter was swallowed
sits there unsent. So a prompt is pasted only when the agent is ready, and counts as delivered when the agent says so.
What is repeated is Enter alone, never the text. It has to be now and then: Claude Code swallows an Enter that comes
within a moment of its start or of the end of a turn. And one prompt is under way at a time, since a paste that meets
another's Enter is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ccorchd.agents.base import Agent
from ccorchd.config import Config
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.host.tmux import TmuxServer
from ccorchd.instances.live import Live
from ccorchd.model import Address, InstanceRecord

_BUSY_PAUSE: Final = 0.5
"""Seconds between a paste and its Enter in the middle of a turn. With none, Claude Code swallows one Enter in three
that comes just after a turn has begun; the text then lies there and runs into the next prompt."""

_FIRST_PAUSE: Final = 1.5
"""Seconds until Enter is pressed again; each further pause is twice as long. A confirmation takes 0.1 s or so."""


def check_ready(record: InstanceRecord, agent: Agent) -> None:
    """Raise unless a prompt may be pasted into *record*'s agent now (or once it has started)."""
    if not agent.takes_prompts:
        raise CcorchError(
            ErrorCode.WRONG_STATE,
            f"{record.address} runs a {agent.kind!r} agent, which takes no prompts",
            f"Use: ccorchctl attach {record.address}",
        )
    if not record.state.running or record.state is State.STOPPING:
        raise CcorchError(
            ErrorCode.WRONG_STATE,
            f"{record.address} is {record.state}, so it cannot take a prompt",
            f"Start it first: ccorchctl instance start {record.address}",
        )
    if record.state is State.WAITING and record.reason in (Reason.PERMISSION, Reason.ANSWER):
        raise CcorchError(
            ErrorCode.NOT_READY,
            f"{record.address} waits for {record.reason}: a prompt now would be taken for the answer",
            f"Answer it first: ccorchctl attach {record.address}",
        )


async def deliver(look: Callable[[], InstanceRecord], live: Live, agent: Agent, text: str, config: Config) -> bool:
    """Paste *text* and press Enter; return whether the agent confirmed it (False: it is queued behind a turn).

    *look* returns the record as it is at the time. Enter is pressed again after 1.5, 3, 6 … seconds, at most
    ``prompts.retries`` times. Raises ``NotReady`` if the agent does not come up in ``instances.start_timeout`` seconds,
    ``NotDelivered`` if it does not confirm within ``prompts.confirm_timeout`` seconds.
    """
    if live.tmux is None:
        raise CcorchError(ErrorCode.NOT_READY, f"{look().address} has no terminal yet", "Try again in a moment.")
    await _until_ready(look().address, live, float(config["instances.start_timeout"]))
    async with live.sending:
        record = look()  # its state may have changed meanwhile
        check_ready(record, agent)
        confirmed = live.confirmation = asyncio.get_running_loop().create_future()
        try:
            busy = record.state is State.WORKING
            await live.tmux.paste("agent", agent.prompt_text(text), enter=not busy)
            if busy:
                await asyncio.sleep(_BUSY_PAUSE)
                if look().state is State.WAITING:
                    raise CcorchError(
                        ErrorCode.NOT_DELIVERED,
                        f"{record.address} has just asked for {look().reason}, so the prompt was not sent off",
                        f"Answer it, then send off what lies in its input line: ccorchctl attach {record.address}",
                    )
                await live.tmux.keys("agent", "Enter")
            if not agent.confirms_prompts or (busy and look().state is State.WORKING):
                # Joins the running turn, which brings no confirmation of its own (claude-code.md).
                return False
            limit = float(config["prompts.confirm_timeout"])
            if await _confirmed(confirmed, look, live.tmux, limit, int(config["prompts.retries"])):
                return True
            late = f"did not confirm the prompt within {limit:g} s"
            words = "ended before it took the prompt" if confirmed.cancelled() else late
        finally:
            live.confirmation = None
            confirmed.cancel()
    raise CcorchError(
        ErrorCode.NOT_DELIVERED,
        f"{record.address} {words}",
        f"It may still lie in its input line: ccorchctl attach {record.address}",
    )


async def _until_ready(address: Address, live: Live, limit: float) -> None:
    """Wait until the agent takes prompts; raise ``NotReady`` after *limit* seconds, or when it ends before."""
    await live.settled(limit)
    if live.gone.is_set():
        raise CcorchError(
            ErrorCode.NOT_READY,
            f"{address} ended before it took a prompt",
            f"See why: ccorchctl instance why {address}",
        )
    if not live.ready.is_set():
        raise CcorchError(
            ErrorCode.NOT_READY,
            f"{address} is still starting and takes no prompt",
            f"Look at its screen: ccorchctl attach {address}",
        )


async def _confirmed(
    confirmed: asyncio.Future[None],
    look: Callable[[], InstanceRecord],
    tmux: TmuxServer,
    limit: float,
    presses: int,
) -> bool:
    """Wait at most *limit* seconds for *confirmed*, pressing Enter again up to *presses* times; tell whether it came.

    The future is cancelled when the agent ends, which is no confirmation either.
    """
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + limit, _FIRST_PAUSE
    while True:
        left = deadline - loop.time()
        await asyncio.wait([confirmed], timeout=min(pause, left) if presses else left)
        if confirmed.done():
            return not confirmed.cancelled()
        if loop.time() >= deadline:
            return False
        # Anywhere but at its prompt, Enter would be the answer to a question.
        record = look()
        if record.state is State.IDLE or record.reason is Reason.QUOTA:
            await tmux.keys("agent", "Enter")
        presses, pause = presses - 1, 2 * pause
