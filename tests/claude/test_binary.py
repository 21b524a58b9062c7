# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real Claude Code, pinned, through whole turns: no dialog, hooks, prompts, tools, a violent end, its memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fake_api import prompts, tool_results

from ccorchd.contract import Reason, State


async def test_fresh_worktree_prompt_tool_answer(pane: Any) -> None:
    """From a home that has never seen it to an answer, with a permission asked for on the way."""
    await pane.start("[bash touch made-by-claude]\nand a second line")
    await pane.until_state(State.WAITING)
    assert pane.record.reason is Reason.PERMISSION
    assert pane.record.reason_text == "Bash touch made-by-claude"
    await pane.tmux.keys("agent", "1")
    await pane.until_state(State.IDLE)
    assert (pane.paths.worktree / "made-by-claude").exists()
    assert [message.partition(" (")[0] for message in pane.messages] == [
        "session started, model " + pane.reports[0].payload["model"],
        "prompt: [bash touch made-by-claude] and a second line",
        "waiting for permission: Bash touch made-by-claude",
        "tool Bash: touch made-by-claude",
        "answer: done: [bash touch made-by-claude]",
    ]
    assert pane.messages[3].endswith(" s, ok)")
    assert pane.changes[0].state is State.WORKING  # with a prompt to begin with it is not idle first
    assert pane.reports[0].payload["session_id"] == pane.record.session_id
    file = json.loads((pane.home / ".claude.json").read_text())
    assert file["projects"][pane.record.repository]["hasTrustDialogAccepted"] is True


async def test_write_tool_and_failing_tool(pane: Any) -> None:
    pane.record.options["permission_mode"] = "acceptEdits"
    await pane.start("[write note.txt hello there] [bash false]")
    await pane.until_state(State.IDLE)
    assert (pane.paths.worktree / "note.txt").read_text() == "hello there\n"
    assert any(message.startswith("tool Write: note.txt (") for message in pane.messages)
    assert any(
        message.startswith("tool Bash: false (") and "failed: Exit code 1" in message for message in pane.messages
    )
    assert len(tool_results(pane.api.conversations()[-1])) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        "  two\n\n\tlines; 'quoted' $(not run) \\ äöü ☂",
        "/clear is a word here",
        "!touch bad",
        "#remember",
        "x" * 20_000,
    ],
    ids=["lines", "slash", "bang", "hash", "long"],
)
async def test_prompts_arrive_exactly(pane: Any, prompt: str) -> None:
    await pane.start(prompt)
    await pane.until_state(State.IDLE)
    await pane.send(prompt + " ")
    await pane.until_event("Stop", 2)
    # What is pasted has its tabs made spaces by Claude Code.
    prompts_in = [prompt.strip(), prompt.strip().replace("\t", "    ")]
    said = [report.payload["prompt"] for report in pane.reports if report.event == "UserPromptSubmit"]
    assert [text.strip() for text in said] == prompts_in
    assert not (pane.paths.worktree / "bad").exists()
    assert pane.record.session_id == pane.reports[-1].payload["session_id"]


@pytest.mark.parametrize("when", ["idle", "mid-stream", "mid-tool"])
async def test_killed_and_resumed_with_memory(pane: Any, when: str) -> None:
    await pane.start("The word is periwinkle.")
    await pane.until_state(State.IDLE)
    await pane.until_written("done: The word is periwinkle.")
    if when == "mid-stream":
        await pane.send("[slow 600]")
        await asyncio.to_thread(pane.api.wait_for, "[slow")
    elif when == "mid-tool":
        await pane.send("[bash sleep 600]")
        await pane.until(lambda: pane.record.doing == "Bash: sleep 600")
    session = pane.record.session_id
    await pane.kill_agent()
    await pane.start(resume=True)
    await pane.until(lambda: "session resumed" in pane.messages[-1])
    assert pane.record.state is State.IDLE
    stops = sum(report.event == "Stop" for report in pane.reports)
    await pane.send("[recall]")
    await pane.until_event("Stop", stops + 1)
    assert "The word is periwinkle." in pane.reports[-1].payload["last_assistant_message"]
    assert "The word is periwinkle." in prompts(pane.api.conversations()[-1])[0]
    assert pane.record.session_id == session == pane.reports[-1].payload["session_id"]


async def test_wrong_kind_of_start_is_told(pane: Any) -> None:
    await pane.start(resume=True)
    assert await pane.tmux.exit_of(timeout=60) == (1, None)
    assert pane.agent.session_lost(await pane.tmux.capture("agent"))
    await pane.tmux.kill()
    await pane.start("hello")
    await pane.until_written("done: hello")
    await pane.kill_agent()
    await pane.start()
    assert await pane.tmux.exit_of(timeout=60) == (1, None)
    assert pane.agent.session_lost(await pane.tmux.capture("agent"))


async def test_clear_is_followed_to_the_new_session(pane: Any) -> None:
    await pane.start("hello")
    await pane.until_state(State.IDLE)
    before = pane.record.session_id
    await pane.command("/clear")
    await pane.until(lambda: pane.record.session_id != before)
    await pane.send("after")
    await pane.until_event("Stop", 2)
    assert pane.reports[-1].payload["session_id"] == pane.record.session_id


async def test_stored_key_reaches_the_api_by_the_helper_alone(pane: Any) -> None:
    del pane.environment["ANTHROPIC_AUTH_TOKEN"]
    pane.record.options["api_key"] = "stored"
    await pane.start("hello")
    await pane.until_state(State.IDLE)
    headers = pane.api.conversations()[0]["_headers"]
    key = headers.get("x-api-key") or headers["authorization"].removeprefix("Bearer ")
    assert key.startswith("sk-ant-made-up-")
    process = Path(f"/proc/{pane.record.pid}")
    assert key.encode() not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert key not in (pane.paths.runtime / "claude-settings.json").read_text()


async def test_users_own_key_asks_nothing(pane: Any) -> None:
    key = "sk-ant-made-up-9876543210-9876543210"
    del pane.environment["ANTHROPIC_AUTH_TOKEN"]
    pane.environment["ANTHROPIC_API_KEY"] = pane.record.environment["ANTHROPIC_API_KEY"] = key
    await pane.start("hello")
    await pane.until_state(State.IDLE)
    assert pane.api.conversations()[0]["_headers"]["x-api-key"] == key


async def test_bypass_mode_asks_nothing(pane: Any) -> None:
    pane.record.options["permission_mode"] = "bypassPermissions"
    pane.environment["IS_SANDBOX"] = "1"  # which is what root needs for it
    await pane.start("[bash touch made]")
    await pane.until_state(State.IDLE)
    assert (pane.paths.worktree / "made").exists()


async def test_question_waits_for_an_answer(pane: Any) -> None:
    await pane.start("[ask Which colour?]")
    await pane.until_state(State.WAITING)
    assert (pane.record.reason, pane.record.reason_text) == (Reason.ANSWER, "Which colour?")
    await pane.tmux.keys("agent", "1")
    await pane.until_state(State.IDLE)


async def test_rate_limit_waits_for_quota(pane: Any) -> None:
    pane.environment["CLAUDE_CODE_MAX_RETRIES"] = "1"
    await pane.start("[429 1]")
    await pane.until_state(State.WAITING)
    assert pane.record.reason is Reason.QUOTA
    assert pane.messages[-1].startswith("waiting for quota: rate_limit")


async def test_server_error_ends_the_turn(pane: Any) -> None:
    pane.environment["CLAUDE_CODE_MAX_RETRIES"] = "1"
    await pane.start("[500]")
    await pane.until_event("StopFailure")
    assert pane.record.state is State.IDLE
    assert pane.changes[-1].priority == 3


async def test_interrupt_and_answered_dialog_show_in_the_session_file(pane: Any) -> None:
    await pane.start("hello")
    await pane.until_state(State.IDLE)
    pane.follows_status = True
    await pane.send("[slow 600]")
    await pane.until_state(State.WORKING)
    await asyncio.to_thread(pane.api.wait_for, "[slow")
    await pane.tmux.keys("agent", *pane.agent.interrupt_keys)
    await pane.until_state(State.IDLE)
    await pane.send("[bash touch asked; sleep 600]")
    await pane.until_state(State.WAITING)
    await pane.tmux.keys("agent", "1")
    await pane.until_state(State.WORKING)
    await pane.tmux.keys("agent", *pane.agent.interrupt_keys)
    await pane.until_state(State.IDLE)


async def test_exit_is_reported(pane: Any) -> None:
    await pane.start("hello")
    await pane.until_state(State.IDLE)
    await pane.command("/exit")
    await pane.until_event("SessionEnd")
    assert await pane.tmux.exit_of(timeout=60) == (0, None)
    assert pane.agent.exit_change(0, None).state is State.STOPPED
