# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prompts into a real tmux, to a small program that behaves as badly as agents do: it swallows Enters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ccorchd import config
from ccorchd.agents.base import Paths
from ccorchd.agents.claude import ClaudeAgent
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.host.reports import ReportServer
from ccorchd.host.tmux import TmuxServer, server_environment, write_config
from ccorchd.instances import prompts
from ccorchd.instances.live import Live
from ccorchd.model import InstanceRecord, Limits, Report

# Appends each line that it is given to the file SAID, after it has swallowed as many Enters as it is told to.
AGENT = """
import os, sys, tty
tty.setraw(0)
os.write(1, b"\\x1b[?2004hREADY\\r\\n")
said, swallow = sys.argv[1], int(sys.argv[2])
text, pasted = b"", 0
while True:
    for byte in os.read(0, 65536):
        text += bytes([byte])
        if text.endswith(b"\\x1b[201~"):
            pasted += 1
        elif byte == 13 and swallow:
            text, swallow = text[:-1], swallow - 1
        elif byte == 13 and text.strip():
            with open(said, "ab") as file:
                file.write(text.replace(b"\\x1b[200~", b"").replace(b"\\x1b[201~", b"") + b"\\n")
            text = b""
"""


class Desk:
    """An agent in tmux, its record, and what the daemon would hold of it."""

    def __init__(self, root: Path, tmux: TmuxServer, *, confirm_timeout: float) -> None:
        self.said = root / "said"
        self.agent = ClaudeAgent()
        paths = Paths(root, root / "events.sock", root / "spool", root)
        self.live = Live(paths, ReportServer(1, paths.socket, paths.spool, self._unheard), "unit.scope", tmux=tmux)
        self.record = InstanceRecord(
            id=1, project_id=1, project="shop", name="one", agent="claude", session_id="", branch="", base="",
            base_commit="", worktree=str(root), repository=str(root), port=0, prompt="", limits=Limits(),
            environment={}, wanted=True, state=State.IDLE, reason=Reason.NONE, reason_text="", since=0.0, created=0.0,
            restarts=0,
        )  # fmt: skip
        variables = {"CCORCH_PROMPTS_CONFIRM_TIMEOUT": str(confirm_timeout), "CCORCH_INSTANCES_START_TIMEOUT": "20"}
        self.config = config.load(root / "config", variables)
        self.confirms = asyncio.ensure_future(self._confirm())

    async def _unheard(self, report: Report) -> dict[str, object]:
        return {}

    @property
    def lines(self) -> list[str]:
        return self.said.read_text().splitlines() if self.said.exists() else []

    async def _confirm(self) -> None:
        """Confirm each line that the agent has taken, as its report would."""
        count = 0
        while True:
            waiter = self.live.confirmation
            if waiter is not None and not waiter.done() and len(self.lines) > count:
                count += 1
                waiter.set_result(None)
            await asyncio.sleep(0.02)

    async def send(self, text: str) -> bool:
        return await prompts.deliver(lambda: self.record, self.live, self.agent, text, self.config)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Desk]]]:
    desks: list[Desk] = []

    async def start(swallow: int, *, confirm_timeout: float = 20) -> Desk:
        write_config(tmp_path / "tmux.conf", "shop/one")
        command = [sys.executable, "-c", AGENT, str(tmp_path / "said"), str(swallow)]
        tmux = TmuxServer(tmp_path / "tmux.sock")
        argv = TmuxServer.launch_argv(tmux.socket, cwd=tmp_path, command=command, config=tmp_path / "tmux.conf")
        process = await asyncio.create_subprocess_exec(*argv, env=server_environment({"PATH": "/usr/bin:/bin"}))
        assert await process.wait() == 0
        desk = Desk(tmp_path, tmux, confirm_timeout=confirm_timeout)
        desks.append(desk)
        async with asyncio.timeout(20):
            while "READY" not in await tmux.capture("agent"):
                await asyncio.sleep(0.02)
        desk.live.ready.set()
        return desk

    yield start
    for desk in desks:
        desk.confirms.cancel()
        assert desk.live.tmux is not None
        await desk.live.tmux.kill()


async def test_prompt_is_confirmed_at_once(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(0)
    async with asyncio.timeout(1.4):
        assert await desk.send("größer; than")
    assert desk.lines == ["größer; than"]
    assert not desk.live.confirmation


@pytest.mark.parametrize("swallowed", [1, 2])
async def test_swallowed_enter_is_pressed_again_and_nothing_pasted_twice(
    start: Callable[..., Awaitable[Desk]], swallowed: int
) -> None:
    desk = await start(swallowed)
    begun = asyncio.get_running_loop().time()
    assert await desk.send("once only")
    took = asyncio.get_running_loop().time() - begun
    assert (1.5, 4.5)[swallowed - 1] <= took < (1.5, 4.5)[swallowed - 1] + 1.4
    assert desk.lines == ["once only"]


async def test_prompt_that_is_never_confirmed_is_an_error_in_time(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(99, confirm_timeout=2)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(CcorchError) as caught:
        await desk.send("never")
    assert caught.value.code is ErrorCode.NOT_DELIVERED
    assert 2 <= asyncio.get_running_loop().time() - begun < 4
    assert not desk.live.confirmation


async def test_enter_is_not_pressed_when_a_question_has_come_up(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(1, confirm_timeout=2.5)
    sending = asyncio.ensure_future(desk.send("a prompt"))
    while not desk.live.confirmation:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    desk.record = replace(desk.record, state=State.WAITING, reason=Reason.PERMISSION)
    with pytest.raises(CcorchError):
        await sending
    assert desk.lines == []


async def test_two_at_a_time_go_one_after_the_other(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(1)
    assert await asyncio.gather(desk.send("first"), desk.send("second")) == [True, True]
    assert desk.lines == ["first", "second"]


async def test_prompt_behind_a_turn_is_queued(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(0)
    desk.record = replace(desk.record, state=State.WORKING)
    assert not await desk.send("later")
    async with asyncio.timeout(20):
        while desk.lines != ["later"]:
            await asyncio.sleep(0.02)


async def test_prompt_behind_a_turn_that_ends_is_confirmed(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(0)
    desk.record = replace(desk.record, state=State.WORKING)
    sending = asyncio.ensure_future(desk.send("just then"))
    while not desk.live.confirmation:
        await asyncio.sleep(0.01)
    desk.record = replace(desk.record, state=State.IDLE)
    assert await sending
    assert desk.lines == ["just then"]


async def test_prompt_behind_a_turn_that_asks_is_no_answer(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(0)
    desk.record = replace(desk.record, state=State.WORKING)
    sending = asyncio.ensure_future(desk.send("not now"))
    while not desk.live.confirmation:
        await asyncio.sleep(0.01)
    desk.record = replace(desk.record, state=State.WAITING, reason=Reason.PERMISSION)
    with pytest.raises(CcorchError) as caught:
        await sending
    assert caught.value.code is ErrorCode.NOT_DELIVERED
    assert "permission" in caught.value.message
    assert desk.lines == []


async def test_prompt_waits_for_the_agent_to_be_ready(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(0)
    desk.live.ready.clear()
    desk.record = replace(desk.record, state=State.STARTING)
    sending = asyncio.ensure_future(desk.send("early"))
    await asyncio.sleep(0)
    assert not desk.live.confirmation
    desk.record = replace(desk.record, state=State.IDLE)
    desk.live.ready.set()
    assert await sending


async def test_agent_that_ends_is_an_error_at_once(start: Callable[..., Awaitable[Desk]]) -> None:
    desk = await start(9)
    desk.live.ready.clear()
    starting = asyncio.ensure_future(desk.send("early"))
    await asyncio.sleep(0)
    desk.live.gone.set()
    with pytest.raises(CcorchError) as caught:
        await starting
    assert caught.value.code is ErrorCode.NOT_READY
    desk.live.gone.clear()
    desk.live.ready.set()
    sending = asyncio.ensure_future(desk.send("never"))
    while not desk.live.confirmation:
        await asyncio.sleep(0.01)
    await desk.live.close()
    with pytest.raises(CcorchError) as caught:
        await sending
    assert caught.value.code is ErrorCode.NOT_DELIVERED
