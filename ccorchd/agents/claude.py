# SPDX-License-Identifier: LGPL-2.1-or-later
"""Claude Code as an agent. Everything that depends on how that program behaves is here and in :mod:`.claude_home`.

Measured with 2.1.197. What it does is told by its hooks (https://code.claude.com/docs/en/hooks), which a settings file
of our own adds to the user's. Two things fire no hook: Esc at the keyboard, and an answer to a permission dialog. Its
live session file tells those (:meth:`ClaudeAgent.status_file`).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from ccorchd.agents.arguments import prompt_argument
from ccorchd.agents.base import Agent, Launch, Paths, find_program, hook_command
from ccorchd.agents.claude_home import ClaudeHome
from ccorchd.agents.wording import call, cut, one_line, tool_line
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Report

API_KEY_SECRET: Final = "anthropic-api-key"
"""Name of the secret that holds an API key; without it Claude Code uses the user's own log-in."""

PERMISSION_MODES: Final = ("default", "acceptEdits", "plan", "auto", "dontAsk", "bypassPermissions")

EVENTS: Final = (
    "SessionStart",
    "UserPromptSubmit",
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "PermissionRequest",
    "Notification",
    "Stop",
    "StopFailure",
    "SubagentStart",
    "SubagentStop",
    "SessionEnd",
)

_HOOK_TIMEOUT: Final = 15
"""Seconds. The helper gives up after 5 and spools; Claude Code's own default is 10 minutes."""

_BACKGROUND: Final = "background: "

_TOOL_KEYS: Final = (
    "command",
    "file_path",
    "notebook_path",
    "pattern",
    "path",
    "url",
    "query",
    "skill",
    "description",
    "prompt",
)
"""Keys of a tool's input that say best what it is about, best first."""


class ClaudeAgent(Agent):
    """Launches Claude Code in its own session and reads its hooks."""

    kind: ClassVar[str] = "claude"
    interrupt_keys: ClassVar[tuple[str, ...]] = ("Escape",)
    secrets: ClassVar[tuple[str, ...]] = (API_KEY_SECRET,)
    takes_prompts: ClassVar[bool] = True
    confirms_prompts: ClassVar[bool] = True

    def __init__(
        self,
        *,
        command: str = "claude",
        permission_mode: str = "default",
        model: str = "",
        config_dir: str = "",
        text_limit: int = 16384,
    ) -> None:
        """*command* is a name or a path; an empty *model* or *config_dir* means the user's own choice."""
        self._command = command
        self._permission_mode = permission_mode
        self._model = model
        self._config_dir = config_dir
        self._text_limit = text_limit

    # -- launching ---------------------------------------------------------------------------------------------------

    def check(self, environment: Mapping[str, str], options: Mapping[str, str]) -> None:
        for name, value in options.items():
            if name == "permission_mode" and value not in PERMISSION_MODES:
                raise CcorchError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"{value!r} is no permission mode of Claude Code",
                    f"It is one of {', '.join(PERMISSION_MODES)}.",
                )
        find_program(
            os.path.expanduser(self._command),
            environment,
            "Install Claude Code (npm install -g @anthropic-ai/claude-code), or set claude.command to its path.",
        )
        mode = options.get("permission_mode") or self._permission_mode
        if mode == "bypassPermissions" and os.getuid() == 0 and environment.get("IS_SANDBOX") != "1":
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                "Claude Code refuses the permission mode bypassPermissions to root",
                "Run ccorch as an ordinary user, or choose another permission mode.",
            )

    def prepare(self, instance: InstanceRecord, paths: Paths, *, resume: bool, prompt: str) -> Launch:
        """Write the settings file, see to it that no dialog is in the way, and return the command line.

        Raises ``AgentFailed`` if the user's Claude Code configuration cannot be read, in which case it stays untouched.
        """
        home = self._home(instance)
        home.make_ready(repository=instance.repository, api_key=instance.environment.get("ANTHROPIC_API_KEY", ""))
        settings = paths.runtime / "claude-settings.json"
        settings.touch(mode=0o600)
        settings.write_text(json.dumps(self._settings(instance), indent=2) + "\n", encoding="utf-8")
        argv = [os.path.expanduser(self._command)]
        argv += ["--resume" if resume else "--session-id", _session_id(instance)]
        argv += ["-n", str(instance.address), "--settings", str(settings)]
        argv += ["--permission-mode", instance.options.get("permission_mode") or self._permission_mode]
        if model := instance.options.get("model") or self._model:
            argv += ["--model", model]
        if prompt:
            argv += ["--", prompt_argument(self.prompt_text(prompt))]
        environment = {
            **paths.hook_environment(),
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        if self._config_dir:
            environment["CLAUDE_CONFIG_DIR"] = str(home.folder)
        return Launch(argv, environment)

    def _home(self, instance: InstanceRecord) -> ClaudeHome:
        return ClaudeHome.find(instance.environment, self._config_dir)

    def _settings(self, instance: InstanceRecord) -> dict[str, Any]:
        hooks = {
            event: [{"hooks": [{"type": "command", "command": hook_command(event), "timeout": _HOOK_TIMEOUT}]}]
            for event in EVENTS
        }
        settings: dict[str, Any] = {"hooks": hooks}
        if instance.options.get("api_key") == "stored":
            settings["apiKeyHelper"] = hook_command("ApiKey", ask_secret=API_KEY_SECRET)
        mode = instance.options.get("permission_mode") or self._permission_mode
        # Whoever chose such a mode has been told where it is set what it means; the dialog would wait unseen.
        if mode == "bypassPermissions":
            settings["skipDangerousModePermissionPrompt"] = True
        elif mode == "auto":
            settings["skipAutoPermissionPrompt"] = True
        return settings

    def session_lost(self, screen: str) -> bool:
        words = " ".join(screen.split())
        return "No conversation found with session ID" in words or (
            "Session ID" in words and "is already in use" in words
        )

    def prompt_text(self, text: str) -> str:
        """Put a space before what would be a command of the shell (``!``), of its own (``/``) or a note (``#``).

        Tabs in a paste become four spaces each, which is its doing; those in a prompt to start with stay.
        """
        return f" {text}" if text.startswith(("/", "!", "#")) else text

    # -- what hooks mean ---------------------------------------------------------------------------------------------

    def interpret(self, instance: InstanceRecord, report: Report) -> Change:
        meanings: dict[str, Callable[[InstanceRecord, dict[str, Any]], Change]] = {
            "SessionStart": self._session_start,
            "UserPromptSubmit": self._prompt,
            "PreToolUse": self._tool_begins,
            "PostToolUse": self._tool_ended,
            "PostToolUseFailure": self._tool_failed,
            "PermissionRequest": self._permission,
            "Notification": self._notification,
            "Stop": self._stop,
            "StopFailure": self._stop_failure,
            "SubagentStart": self._subagent_begins,
            "SubagentStop": self._subagent_ended,
            "SessionEnd": self._session_end,
        }
        meaning = meanings.get(report.event)
        return meaning(instance, report.payload) if meaning else Change()

    def _session_start(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        source = _text(payload, "source")
        if source == "compact":
            # Comes in the middle of a turn, which goes on.
            return Change(kind="agent.session", message="conversation compacted")
        # A first start was given its prompt on the command line and begins with it at once: it is never really idle,
        # and whoever waits for "idle" must not be told so.
        working = source == "startup" and bool(instance.prompt)
        session = _text(payload, "session_id")
        words = {"startup": "session started", "resume": "session resumed", "clear": "conversation cleared"}
        message = words.get(source, f"session started ({one_line(source, 40)})")
        if model := one_line(payload.get("model") or "", 60):
            message += f", model {model}"
        return Change(
            state=State.WORKING if working else State.IDLE,
            doing="reading its prompt" if working else "",
            session_id=session if _is_uuid(session) and session != instance.session_id else None,
            kind="agent.session",
            message=message,
            data={"source": source, "session_id": session},
        )

    def _prompt(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        prompt = _text(payload, "prompt")
        return Change(
            state=State.WORKING,
            doing="thinking",
            kind="agent.prompt",
            message=f"prompt: {one_line(prompt)}",
            prompt_confirmed=True,
            data={"prompt": cut(prompt, self._text_limit)},
        )

    def _tool_begins(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        tool, detail = _tool(instance, payload)
        return Change(state=State.WORKING, doing=one_line(call(tool, detail), 120))

    def _tool_ended(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        return self._tool_over(instance, payload, "ok", 6)

    def _tool_failed(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        if payload.get("is_interrupt"):
            return self._tool_over(instance, payload, "interrupted", 6)
        lines = _text(payload, "error").strip().splitlines()
        return self._tool_over(instance, payload, f"failed: {one_line(lines[0], 100)}" if lines else "failed", 5)

    def _tool_over(self, instance: InstanceRecord, payload: dict[str, Any], outcome: str, priority: int) -> Change:
        tool, detail = _tool(instance, payload)
        took = payload.get("duration_ms")
        seconds = took / 1000 if isinstance(took, int | float) else None
        data: dict[str, object] = {"tool": tool, "outcome": outcome}
        if seconds is not None:
            data["seconds"] = seconds
        if isinstance(given := payload.get("tool_input"), dict):
            data["input"] = cut(json.dumps(given, ensure_ascii=False), self._text_limit)
        if result := _result(payload):
            data["result"] = cut(result, self._text_limit)
        return Change(
            state=State.WORKING,
            doing="thinking",
            kind="agent.tool",
            message=tool_line(tool, detail, seconds, outcome),
            priority=priority,
            data=data,
        )

    def _permission(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        tool, detail = _tool(instance, payload)
        if tool == "AskUserQuestion":
            return _waiting(Reason.ANSWER, detail or "a question", f"waiting for an answer: {detail or 'a question'}")
        if tool == "ExitPlanMode":
            return _waiting(Reason.PERMISSION, "its plan", "waiting for permission: go on with its plan")
        text = f"{tool} {detail}".rstrip()
        return _waiting(Reason.PERMISSION, text, f"waiting for permission: {text}")

    def _notification(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        kind = _text(payload, "notification_type")
        message = one_line(_text(payload, "message"))
        if kind == "elicitation_dialog":
            return _waiting(Reason.ANSWER, message, f"waiting for an answer: {message}")
        # permission_prompt repeats PermissionRequest 6 s later, when the answer may long have been given; idle_prompt
        # comes 60 s after Stop and must not end a turn that has begun since. Neither is news.
        return Change()

    def _stop(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        answer = _text(payload, "last_assistant_message")
        background = payload.get("background_tasks")
        tasks = background if isinstance(background, list) else []
        return Change(
            state=State.WORKING if tasks else State.IDLE,
            doing=one_line(f"{_BACKGROUND}{_background(tasks)}", 120) if tasks else "",
            kind="agent.answer",
            message=f"answer: {one_line(answer)}" if answer.strip() else "turn over",
            data={"answer": cut(answer, self._text_limit)},
        )

    def _stop_failure(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        error = _text(payload, "error") or "unknown"
        words = (_text(payload, key) for key in ("error_details", "last_assistant_message", "message"))
        details = one_line(next(filter(None, words), ""), 200)
        said = f"{error}: {details}" if details else error
        common: dict[str, Any] = {"kind": "agent.error", "doing": "", "data": {"error": error, "details": details}}
        if error == "rate_limit":
            return Change(
                state=State.WAITING,
                reason=Reason.QUOTA,
                reason_text=details or "rate limit",
                message=f"waiting for quota: {said}",
                priority=4,
                **common,
            )
        if error in ("authentication_failed", "billing_error", "oauth_org_not_allowed"):
            return Change(
                state=State.WAITING,
                reason=Reason.ANSWER,
                reason_text="sign in to Claude" if error == "authentication_failed" else said,
                message=f"waiting for a person: {said}",
                priority=3,
                **common,
            )
        return Change(state=State.IDLE, message=f"turn failed: {said}", priority=3, **common)

    def _subagent_begins(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        name = one_line(_text(payload, "agent_type") or "subagent", 60)
        return Change(
            state=State.WORKING, doing=f"subagent {name}", kind="agent.subagent", message=f"subagent {name} started"
        )

    def _subagent_ended(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        name = one_line(_text(payload, "agent_type") or "subagent", 60)
        answer = _text(payload, "last_assistant_message")
        tail = f": {one_line(answer)}" if answer.strip() else ""
        # No state: a subagent in the background may end after the turn.
        return Change(kind="agent.subagent", message=f"subagent {name} ended{tail}")

    def _session_end(self, instance: InstanceRecord, payload: dict[str, Any]) -> Change:
        reason = one_line(_text(payload, "reason"), 60)
        if reason in ("clear", "resume"):
            return Change()  # a SessionStart with the new session follows
        message = f"session ended ({reason})" if reason else "session ended"
        return Change(doing="", kind="agent.session", message=message)

    # -- what the live session file means ------------------------------------------------------------------------------

    def status_file(self, instance: InstanceRecord) -> Path | None:
        """Return the file that Claude Code rewrites at each change of its status; None without a process.

        It is stale after SIGKILL: believe it only while the process lives.
        """
        return self._home(instance).folder / "sessions" / f"{instance.pid}.json" if instance.pid else None

    def interpret_status(self, instance: InstanceRecord, text: str) -> Change:
        """Return what the session file's *text* tells beyond the hooks: an interrupted turn, an answered dialog.

        Changes that a hook reports too are left to the hook; an unreadable or older text changes nothing.
        """
        try:
            record = json.loads(text)
            status, updated = record["status"], float(record["statusUpdatedAt"]) / 1000
        except (ValueError, KeyError, TypeError):
            return Change()
        if updated <= instance.since:
            return Change()
        waits = instance.state is State.WAITING and instance.reason in (Reason.PERMISSION, Reason.ANSWER)
        turn = instance.state is State.WORKING and not instance.doing.startswith(_BACKGROUND)
        if status == "idle" and (waits or turn):
            # At the end of a turn this comes a moment before or after Stop, whose message then says more.
            return Change(state=State.IDLE, doing="")
        if status == "busy" and waits:
            return Change(state=State.WORKING, doing=instance.reason_text)
        if status == "waiting" and instance.state is State.WORKING:
            what = one_line(record.get("waitingFor") or "a person", 100)
            return _waiting(Reason.PERMISSION, what, f"waiting for permission: {what}")
        return Change()


def _waiting(reason: Reason, text: str, message: str) -> Change:
    return Change(
        state=State.WAITING,
        reason=reason,
        reason_text=one_line(text, 200),
        kind="agent.waiting",
        message=one_line(message),
        priority=5,
    )


def _text(payload: Mapping[str, Any], key: str) -> str:
    value = payload.get(key)
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _tool(instance: InstanceRecord, payload: Mapping[str, Any]) -> tuple[str, str]:
    """Return a tool's name and what it is about, with paths below the worktree made relative."""
    tool = one_line(_text(payload, "tool_name") or "?", 60)
    given = payload.get("tool_input")
    if not isinstance(given, dict):
        return tool, ""
    questions = given.get("questions")
    if isinstance(questions, list) and questions and isinstance(questions[0], dict):
        return tool, one_line(questions[0].get("question", ""))
    for key in _TOOL_KEYS:
        if (value := given.get(key)) and isinstance(value, str):
            return tool, one_line(value.removeprefix(instance.worktree.rstrip("/") + "/"))
    return tool, ""


def _result(payload: Mapping[str, Any]) -> str:
    response = payload.get("tool_response", payload.get("error", ""))
    if isinstance(response, dict):
        out = "\n".join(part for key in ("stdout", "stderr") if isinstance(part := response.get(key), str) and part)
        return out if out or "stdout" in response else json.dumps(response, ensure_ascii=False)
    return response if isinstance(response, str) else json.dumps(response, ensure_ascii=False)


def _background(tasks: list[Any]) -> str:
    first = tasks[0]
    name = ""
    if isinstance(first, dict):
        name = next((str(first[key]) for key in ("description", "command", "name", "id") if first.get(key)), "")
    more = f" and {len(tasks) - 1} more" if len(tasks) > 1 else ""
    return (name or f"{len(tasks)} tasks") + (more if name else "")


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _session_id(instance: InstanceRecord) -> str:
    if not _is_uuid(instance.session_id):
        raise CcorchError(
            ErrorCode.INTERNAL, f"the session id {instance.session_id!r} of {instance.address} is no UUID"
        )
    return instance.session_id
