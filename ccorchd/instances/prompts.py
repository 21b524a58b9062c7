# SPDX-License-Identifier: LGPL-2.1-or-later
"""Getting a prompt into an agent: pasted once, confirmed by the agent's own report, or an error.

A look at the screen proves nothing: a paste that arrives too early is lost or split, and one whose Enter was swallowed
sits there unsent. So a prompt is pasted only when the agent is ready, and counts as delivered when the agent says so.
What is repeated is Enter alone, never the text.
"""

from __future__ import annotations

import asyncio

from ccorchd.agents.base import Agent
from ccorchd.config import Config
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.instances.live import Live
from ccorchd.model import InstanceRecord


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


async def deliver(record: InstanceRecord, live: Live, agent: Agent, text: str, config: Config) -> bool:
    """Paste *text* and press Enter; return whether the agent confirmed it (False: it is queued behind a turn).

    Raises ``NotReady`` if the agent does not come up in ``instances.start_timeout`` seconds, ``NotDelivered`` if it
    does not confirm within ``prompts.confirm_timeout`` seconds, spread over ``prompts.retries`` further Enters.
    """
    if live.tmux is None:
        raise CcorchError(ErrorCode.NOT_READY, f"{record.address} has no terminal yet", "Try again in a moment.")
    try:
        async with asyncio.timeout(float(config["instances.start_timeout"])):
            await live.ready.wait()
    except TimeoutError:
        raise CcorchError(
            ErrorCode.NOT_READY,
            f"{record.address} is still starting and takes no prompt",
            f"Look at its screen: ccorchctl attach {record.address}",
        ) from None
    confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    live.confirmations.append(confirmed)
    try:
        busy = record.state is not State.IDLE
        await live.tmux.paste("agent", agent.prompt_text(text), enter=True)
        if not agent.confirms_prompts or busy:
            # Joins the running turn, which brings no confirmation of its own (claude-code.md).
            return False
        attempts = int(config["prompts.retries"]) + 1
        for attempt in range(attempts):
            try:
                async with asyncio.timeout(float(config["prompts.confirm_timeout"]) / attempts):
                    await asyncio.shield(confirmed)
                return True
            except TimeoutError:
                if attempt + 1 < attempts:
                    await live.tmux.keys("agent", "Enter")
        raise CcorchError(
            ErrorCode.NOT_DELIVERED,
            f"{record.address} did not confirm the prompt within {float(config['prompts.confirm_timeout']):g} s",
            f"It may still lie in its input line: ccorchctl attach {record.address}",
        )
    finally:
        if confirmed in live.confirmations:
            live.confirmations.remove(confirmed)
        confirmed.cancel()
