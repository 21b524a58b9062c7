# SPDX-License-Identifier: LGPL-2.1-or-later
"""The built-in stand-in: real git work without any account (:mod:`ccorchd.agents.demo_agent` runs in the pane)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from ccorchd.agents.arguments import prompt_argument
from ccorchd.agents.base import Agent, Launch, Paths, find_program
from ccorchd.agents.wording import call, cut, one_line, tool_line
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Report

PROGRAM: Final = Path(__file__).resolve().with_name("demo_agent.py")
PACE_VARIABLE: Final = "CCORCH_DEMO_PACE"


class DemoAgent(Agent):
    """Launches the demo agent and reads its reports.

    Its events have the names and fields of Claude Code's hooks as far as both mean the same. The option ``pace``
    (seconds between two steps) goes before the variable CCORCH_DEMO_PACE.
    """

    kind: ClassVar[str] = "demo"
    interrupt_keys: ClassVar[tuple[str, ...]] = ("C-c",)
    takes_prompts: ClassVar[bool] = True
    confirms_prompts: ClassVar[bool] = True

    def __init__(self, *, text_limit: int = 16384) -> None:
        self._text_limit = text_limit

    def check(self, environment: Mapping[str, str], options: Mapping[str, str]) -> None:
        if (pace := options.get("pace")) is not None and not _is_pace(pace):
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"pace={pace!r} is no number of seconds",
                "Write for example 0.5; 0 does not wait at all.",
            )
        find_program("git", environment, "Install git: the demo agent commits its work.")

    def prepare(self, instance: InstanceRecord, paths: Paths, *, resume: bool, prompt: str) -> Launch:
        argv = [sys.executable or "/usr/bin/python3", "-I", str(PROGRAM)]
        argv += ["--resume" if resume else "--session-id", instance.session_id, "--name", str(instance.address)]
        if prompt:
            argv += ["--", prompt_argument(prompt)]
        environment = paths.hook_environment()
        if pace := instance.options.get("pace") or os.environ.get(PACE_VARIABLE, ""):
            environment[PACE_VARIABLE] = pace
        return Launch(argv, environment)

    def session_lost(self, screen: str) -> bool:
        return "demo agent: no session" in " ".join(screen.split())

    def interpret(self, instance: InstanceRecord, report: Report) -> Change:
        meanings: dict[str, Callable[[InstanceRecord, dict[str, Any]], Change]] = {
            "SessionStart": self._session_start,
            "UserPromptSubmit": self._prompt,
            "PreToolUse": self._tool_begins,
            "PostToolUse": self._tool_ended,
            "PermissionRequest": self._permission,
            "PermissionResult": self._answered,
            "Question": self._question,
            "Answer": self._question_answered,
            "Stop": self._stop,
            "Interrupted": self._interrupted,
            "Error": self._error,
            "SessionEnd": self._session_end,
        }
        meaning = meanings.get(report.event)
        return meaning(instance, report.payload) if meaning else Change()

    def _session_start(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        earlier = payload.get("prompts", 0)
        resumed = payload.get("source") == "resume"
        busy = bool(payload.get("has_prompt"))
        return Change(
            state=State.WORKING if busy else State.IDLE,
            doing="reading its prompt" if busy else "",
            kind="agent.session",
            message=f"session resumed, {earlier} earlier prompts" if resumed else "session started",
            data={"source": str(payload.get("source", "")), "session_id": str(payload.get("session_id", ""))},
        )

    def _prompt(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        prompt = str(payload.get("prompt", ""))
        return Change(
            state=State.WORKING,
            doing="reading its prompt",
            kind="agent.prompt",
            message=f"prompt: {one_line(prompt)}",
            prompt_confirmed=True,
            data={"prompt": cut(prompt, self._text_limit)},
        )

    def _tool_begins(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        return Change(state=State.WORKING, doing=one_line(call(*_tool(payload)), 120))

    def _tool_ended(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        tool, detail = _tool(payload)
        took = payload.get("duration_ms")
        seconds = took / 1000 if isinstance(took, int | float) else None
        outcome = one_line(payload.get("outcome", "ok"), 100)
        data: dict[str, object] = {"tool": tool, "outcome": outcome, "input": detail}
        if seconds is not None:
            data["seconds"] = seconds
        if output := str(payload.get("output", "")):
            data["result"] = cut(output, self._text_limit)
        return Change(
            state=State.WORKING,
            kind="agent.tool",
            message=tool_line(tool, detail, seconds, outcome),
            priority=6 if outcome == "ok" else 5,
            data=data,
        )

    def _permission(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        tool, detail = _tool(payload)
        text = f"{tool} {detail}".rstrip()
        return _waiting(Reason.PERMISSION, text, f"waiting for permission: {text}")

    def _answered(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        tool, detail = _tool(payload)
        word = "granted" if payload.get("granted") else "refused"
        return Change(
            state=State.WORKING,
            doing=one_line(call(tool, detail), 120),
            kind="agent.permission",
            message=one_line(f"permission {word}: {tool} {detail}"),
        )

    def _question(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        question = one_line(payload.get("question", "a question"))
        return _waiting(Reason.ANSWER, question, f"waiting for an answer: {question}")

    def _question_answered(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        return Change(
            state=State.WORKING,
            doing="thinking",
            kind="agent.permission",
            message=f"answered: {one_line(payload.get('answer', ''))}",
        )

    def _stop(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        answer = str(payload.get("last_assistant_message", ""))
        return Change(
            state=State.IDLE,
            doing="",
            kind="agent.answer",
            message=f"answer: {one_line(answer)}" if answer else "turn over",
            data={"answer": cut(answer, self._text_limit)},
        )

    def _interrupted(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        return Change(state=State.IDLE, doing="", kind="agent.answer", message="interrupted at the keyboard")

    def _error(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        # No state: the turn goes on, or Stop ends it.
        return Change(
            kind="agent.error", message=one_line(payload.get("message", "an error")), priority=4, data=dict(payload)
        )

    def _session_end(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        reason = one_line(payload.get("reason", ""), 60)
        return Change(
            doing="", kind="agent.session", message=f"session ended ({reason})" if reason else "session ended"
        )


def _waiting(reason: Reason, text: str, message: str) -> Change:
    return Change(
        state=State.WAITING,
        reason=reason,
        reason_text=one_line(text, 200),
        kind="agent.waiting",
        message=one_line(message),
        priority=5,
    )


def _tool(payload: Mapping[str, Any]) -> tuple[str, str]:
    return one_line(payload.get("tool_name", "?"), 60), one_line(payload.get("detail", ""))


def _is_pace(text: str) -> bool:
    try:
        return 0 <= float(text) <= 3600
    except ValueError:
        return False
