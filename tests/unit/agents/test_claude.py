# SPDX-License-Identifier: LGPL-2.1-or-later
"""The profile of Claude Code: its command line, its settings, the user's file, and what its hooks mean.

The payloads are what version 2.1.197 sends; tests/claude runs the program itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccorchd.agents import registry
from ccorchd.agents.base import Paths
from ccorchd.agents.claude import EVENTS, ClaudeAgent
from ccorchd.agents.claude_home import ClaudeHome
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Limits, Report

SESSION = "88009ccb-6304-41aa-a03b-d18abd0b06c6"
OTHER = "af773098-2e0f-4fd0-9e0e-83b87cf33d4d"


@pytest.fixture
def instance(tmp_path: Path) -> InstanceRecord:
    return InstanceRecord(
        id=7,
        project_id=1,
        project="shop",
        name="one",
        agent="claude",
        session_id=SESSION,
        branch="ccorch/one",
        base="main",
        base_commit="",
        worktree=str(tmp_path / "worktree"),
        repository=str(tmp_path / "repository"),
        port=0,
        prompt="",
        limits=Limits(),
        environment={"HOME": str(tmp_path / "home")},
        wanted=True,
        state=State.STARTING,
        reason=Reason.NONE,
        reason_text="",
        since=0.0,
        created=0.0,
        restarts=0,
    )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    (tmp_path / "home").mkdir()
    return Paths(tmp_path / "run", tmp_path / "run/events.sock", tmp_path / "spool", tmp_path / "worktree")


def settings(paths: Paths) -> dict[str, Any]:
    found = json.loads((paths.runtime / "claude-settings.json").read_text())
    assert isinstance(found, dict)
    return found


# -- launching ---------------------------------------------------------------------------------------------------------


def test_first_start(instance: InstanceRecord, paths: Paths) -> None:
    launch = ClaudeAgent(model="opus").prepare(instance, paths, resume=False, prompt="--look\nat this")
    file = str(paths.runtime / "claude-settings.json")
    assert launch.argv == [
        *("claude", "--session-id", SESSION, "-n", "shop/one", "--settings", file),
        *("--permission-mode", "default", "--model", "opus", "--", "--look\nat this"),
    ]
    assert launch.environment["DISABLE_AUTOUPDATER"] == "1"
    assert launch.environment["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert launch.environment["CCORCH_SOCKET"] == str(paths.socket)
    assert "CLAUDE_CONFIG_DIR" not in launch.environment


def test_resume(instance: InstanceRecord, paths: Paths) -> None:
    instance.options.update(permission_mode="plan", model="haiku")
    argv = ClaudeAgent(model="opus").prepare(instance, paths, resume=True, prompt="").argv
    assert argv[1:3] == ["--resume", SESSION]
    assert "--" not in argv
    assert argv[-4:] == ["--permission-mode", "plan", "--model", "haiku"]


def test_settings_have_a_hook_for_each_event(instance: InstanceRecord, paths: Paths) -> None:
    ClaudeAgent().prepare(instance, paths, resume=False, prompt="")
    found = settings(paths)
    assert set(found["hooks"]) == set(EVENTS)
    for event, (entry,) in found["hooks"].items():
        (hook,) = entry["hooks"]
        assert hook["type"] == "command"
        assert f"hook.py {event}" in hook["command"]
        assert 5 < hook["timeout"] < 60
    assert "apiKeyHelper" not in found
    assert (paths.runtime / "claude-settings.json").stat().st_mode & 0o777 == 0o600


def test_stored_key_is_asked_for_by_name(instance: InstanceRecord, paths: Paths) -> None:
    instance.options["api_key"] = "stored"
    launch = ClaudeAgent().prepare(instance, paths, resume=False, prompt="")
    assert settings(paths)["apiKeyHelper"].endswith("hook.py ApiKey --ask-secret anthropic-api-key")
    assert not any("ANTHROPIC" in name for name in launch.environment)


def test_chosen_permission_mode_asks_no_more(instance: InstanceRecord, paths: Paths) -> None:
    ClaudeAgent(permission_mode="bypassPermissions").prepare(instance, paths, resume=False, prompt="")
    assert settings(paths)["skipDangerousModePermissionPrompt"] is True
    ClaudeAgent(permission_mode="default").prepare(instance, paths, resume=False, prompt="")
    assert "skipDangerousModePermissionPrompt" not in settings(paths)


def test_auto_mode_asks_no_more(instance: InstanceRecord, paths: Paths) -> None:
    ClaudeAgent(permission_mode="plan").prepare(instance, paths, resume=False, prompt="")
    assert "skipAutoPermissionPrompt" not in settings(paths)
    instance.options["permission_mode"] = "auto"
    ClaudeAgent(permission_mode="plan").prepare(instance, paths, resume=False, prompt="")
    assert settings(paths)["skipAutoPermissionPrompt"] is True


def test_root_may_bypass_permissions_in_a_sandbox_only(tmp_path: Path) -> None:
    program = tmp_path / "claude"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    agent = ClaudeAgent(permission_mode="bypassPermissions")
    environment = {"PATH": str(tmp_path)}
    agent.check({**environment, "IS_SANDBOX": "1"}, {})
    agent.check(environment, {"permission_mode": "plan"})
    if os.getuid() == 0:
        with pytest.raises(CcorchError, match="bypassPermissions to root"):
            agent.check(environment, {})
    else:
        agent.check(environment, {})


def test_session_id_must_be_one(instance: InstanceRecord, paths: Paths) -> None:
    instance.session_id = "--dangerously-skip-permissions"
    with pytest.raises(CcorchError):
        ClaudeAgent().prepare(instance, paths, resume=False, prompt="")


@pytest.mark.parametrize("start", ["/", "!", "#"])
def test_prompts_are_never_commands(instance: InstanceRecord, paths: Paths, start: str) -> None:
    prompt = f"{start}clear the air"
    argv = ClaudeAgent().prepare(instance, paths, resume=False, prompt=prompt).argv
    assert argv[-1] == f" {prompt}" == ClaudeAgent().prompt_text(prompt)
    assert ClaudeAgent().prompt_text("plain / ! #") == "plain / ! #"


def test_check(tmp_path: Path) -> None:
    with pytest.raises(CcorchError) as caught:
        ClaudeAgent().check({"PATH": str(tmp_path)}, {})
    assert caught.value.code is ErrorCode.MISSING_PROGRAM
    assert "claude.command" in caught.value.hint
    program = tmp_path / "claude"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ClaudeAgent().check({"PATH": str(tmp_path)}, {"model": "opus", "permission_mode": "plan"})
    ClaudeAgent(command=str(program)).check({"PATH": ""}, {})
    with pytest.raises(CcorchError, match="permission mode"):
        ClaudeAgent().check({"PATH": str(tmp_path)}, {"permission_mode": "yolo"})


@pytest.mark.parametrize(
    ("screen", "lost"),
    [
        (f"No conversation found with session ID:\n{SESSION}", True),
        (f"Error: Session ID {SESSION} is already in use.", True),
        ("> ok", False),
    ],
)
def test_session_lost(screen: str, lost: bool) -> None:
    assert ClaudeAgent().session_lost(screen) is lost


def test_registry_takes_the_settings() -> None:
    agents = registry(
        {
            "claude.command": "/opt/claude",
            "claude.permission_mode": "plan",
            "claude.model": "",
            "claude.config_dir": "",
            "events.text_limit": 100,
        }
    )
    assert set(agents) == {"claude", "demo", "command"}
    assert all(agent.kind == kind for kind, agent in agents.items())


# -- the user's own file -----------------------------------------------------------------------------------------------


def test_missing_file_is_made(instance: InstanceRecord, paths: Paths, tmp_path: Path) -> None:
    ClaudeAgent().prepare(instance, paths, resume=False, prompt="")
    file = tmp_path / "home/.claude.json"
    assert json.loads(file.read_text()) == {
        "hasCompletedOnboarding": True,
        "projects": {instance.repository: {"hasTrustDialogAccepted": True}},
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir()) == [".claude.json"]


def test_everything_else_is_kept(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    before = {
        "numStartups": 12,
        "theme": "dark",
        "größe": [1.5, None, "☂", 12345678901234567890],
        "hasCompletedOnboarding": False,
        "projects": {
            str(tmp_path / "other"): {"hasTrustDialogAccepted": False, "allowedTools": ["Bash"]},
            str(tmp_path / "mine"): {"hasTrustDialogAccepted": False, "lastCost": 0.25},
        },
        "customApiKeyResponses": {"approved": ["a"], "rejected": ["b"]},
    }
    file.write_text(json.dumps(before))
    file.chmod(0o640)
    home = ClaudeHome(tmp_path / ".claude", file)
    assert home.make_ready(repository=str(tmp_path / "mine")) is True
    expected = json.loads(json.dumps(before))
    expected["hasCompletedOnboarding"] = True
    expected["projects"][str(tmp_path / "mine")]["hasTrustDialogAccepted"] = True
    assert json.loads(file.read_text()) == expected
    assert list(json.loads(file.read_text())) == list(before)
    assert file.stat().st_mode & 0o777 == 0o640


def test_half_characters_are_kept(tmp_path: Path) -> None:
    """JavaScript cuts texts in the middle of a character, and writes the half as an escape."""
    file = tmp_path / ".claude.json"
    file.write_text('{"title": "caf\\u00e9 \\ud83d"}')
    assert ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path))
    text = file.read_text(encoding="utf-8")
    assert '"caf\u00e9 \\ud83d"' in text
    assert json.loads(text)["title"] == "caf\u00e9 \ud83d"


def test_complete_file_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    text = json.dumps({"projects": {str(tmp_path): {"hasTrustDialogAccepted": True}}, "hasCompletedOnboarding": True})
    file.write_text(text + "   ")
    facts = file.stat()
    assert ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path)) is False
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (facts.st_ino, facts.st_mtime_ns)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"projects": []}',
        '{"projects": {"REPOSITORY": 1}}',
        '{"customApiKeyResponses": {"approved": 1}}',
        "\xff",
    ],
)
def test_file_that_is_not_understood_is_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / ".claude.json"
    raw = text.replace("REPOSITORY", str(tmp_path)).encode("latin-1")
    file.write_bytes(raw)
    with pytest.raises(CcorchError) as caught:
        ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path), api_key="x" * 30)
    assert caught.value.code is ErrorCode.AGENT_FAILED
    assert str(file) in caught.value.message
    assert caught.value.hint
    assert file.read_bytes() == raw


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = tmp_path / "dotfiles/claude.json"
    target.write_text("{}")
    file = tmp_path / ".claude.json"
    file.symlink_to(target)
    assert ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path))
    assert file.is_symlink()
    assert json.loads(target.read_text())["hasCompletedOnboarding"] is True


def test_users_own_key_is_approved_unless_it_was_refused(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    key = "sk-made-up-0123456789-abcdefghij"
    home = ClaudeHome(tmp_path, file)
    home.make_ready(repository=str(tmp_path), api_key=key)
    assert json.loads(file.read_text())["customApiKeyResponses"]["approved"] == [key[-20:]]
    document = json.loads(file.read_text())
    document["customApiKeyResponses"] = {"approved": [], "rejected": [key[-20:]]}
    file.write_text(json.dumps(document))
    assert home.make_ready(repository=str(tmp_path), api_key=key) is False


def test_starts_at_once_do_not_lose_each_others_trust(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    homes = [ClaudeHome(tmp_path, file) for _ in range(8)]
    gate = threading.Barrier(len(homes))

    def ready(home: ClaudeHome, number: int) -> None:
        gate.wait(10)
        home.make_ready(repository=str(tmp_path / str(number)))

    threads = [threading.Thread(target=ready, args=(home, number)) for number, home in enumerate(homes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(json.loads(file.read_text())["projects"]) == len(homes)
    assert not (tmp_path / ".claude.json.lock").exists()


def test_lock_of_claude_code_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    lock = tmp_path / ".claude.json.lock"
    lock.mkdir()
    thread = threading.Thread(target=ClaudeHome(tmp_path, file).make_ready, kwargs={"repository": str(tmp_path)})
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    assert not file.exists()
    lock.rmdir()
    thread.join(10)
    assert file.exists()


def test_lock_that_was_left_behind_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / ".claude.json.lock"
    lock.mkdir()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    assert ClaudeHome(tmp_path, tmp_path / ".claude.json").make_ready(repository=str(tmp_path))
    assert not lock.exists()


def test_lock_that_is_never_given_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchd.agents.claude_home._LOCK_TIMEOUT", 0.05)
    lock = tmp_path / ".claude.json.lock"
    lock.mkdir()
    with pytest.raises(CcorchError, match="has been locked for") as caught:
        ClaudeHome(tmp_path, tmp_path / ".claude.json").make_ready(repository=str(tmp_path))
    assert caught.value.code is ErrorCode.AGENT_FAILED
    assert str(lock) in caught.value.hint
    assert lock.is_dir()
    assert not (tmp_path / ".claude.json").exists()


def test_what_another_start_has_done_is_not_done_again(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"

    class Late(ClaudeHome):
        @contextlib.contextmanager
        def _lock(self) -> Iterator[None]:
            assert ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path))
            with super()._lock():
                yield

    assert not Late(tmp_path, file).make_ready(repository=str(tmp_path))
    assert json.loads(file.read_text())["hasCompletedOnboarding"] is True
    assert not (tmp_path / ".claude.json.lock").exists()


def test_empty_file_is_filled(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    file.write_text(" \n")
    assert ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path))
    assert json.loads(file.read_text())["projects"][str(tmp_path)] == {"hasTrustDialogAccepted": True}


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = ClaudeHome(tmp_path / "file", tmp_path / "file" / ".claude.json")
    with pytest.raises(CcorchError, match="cannot be prepared: Not a directory") as caught:
        home.make_ready(repository=str(tmp_path))
    assert caught.value.code is ErrorCode.AGENT_FAILED


def test_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / ".claude.json"
    file.write_text('{"mine": true}')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        with pytest.raises(CcorchError, match="cannot be prepared: File too large"):
            ClaudeHome(tmp_path, file).make_ready(repository=str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == '{"mine": true}'
    assert list(tmp_path.iterdir()) == [file]


def test_where_the_file_lies(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert ClaudeHome.find({"HOME": home}).file == tmp_path / ".claude.json"
    assert ClaudeHome.find({"HOME": home}).folder == tmp_path / ".claude"
    variable = {"HOME": home, "CLAUDE_CONFIG_DIR": "/elsewhere"}
    assert ClaudeHome.find(variable).file == Path("/elsewhere/.claude.json")
    assert ClaudeHome.find(variable, "~/work").file == tmp_path / "work/.claude.json"


def test_configured_folder_is_told_to_claude_code(instance: InstanceRecord, paths: Paths, tmp_path: Path) -> None:
    launch = ClaudeAgent(config_dir="~/work").prepare(instance, paths, resume=False, prompt="")
    assert launch.environment["CLAUDE_CONFIG_DIR"] == str(tmp_path / "home/work")
    assert (tmp_path / "home/work/.claude.json").exists()


# -- what hooks mean ---------------------------------------------------------------------------------------------------


def meaning(instance: InstanceRecord, event: str, **payload: object) -> Change:
    full = {"session_id": SESSION, "cwd": instance.worktree, "hook_event_name": event, **payload}
    return ClaudeAgent(text_limit=1000).interpret(instance, Report("u" * 32, 7, event, full, 0.0))


def test_session_starts(instance: InstanceRecord) -> None:
    change = meaning(instance, "SessionStart", source="startup", model="claude-opus-4-8")
    assert (change.state, change.session_id) == (State.IDLE, None)
    assert change.message == "session started, model claude-opus-4-8"
    # With a prompt on its command line it is never idle in between.
    instance.prompt = "go"
    assert meaning(instance, "SessionStart", source="startup").state is State.WORKING
    assert meaning(instance, "SessionStart", source="resume").state is State.IDLE
    assert meaning(instance, "SessionStart", source="compact").state is None


def test_clear_brings_a_new_session(instance: InstanceRecord) -> None:
    assert meaning(instance, "SessionEnd", reason="clear") == Change()
    change = meaning(instance, "SessionStart", source="clear", session_id=OTHER)
    assert (change.session_id, change.state) == (OTHER, State.IDLE)
    assert meaning(instance, "SessionStart", source="clear", session_id="--bad").session_id is None


def test_prompt(instance: InstanceRecord) -> None:
    change = meaning(instance, "UserPromptSubmit", prompt="first\nsecond\x1b[31m" + "x" * 5000)
    assert change.state is State.WORKING
    assert change.prompt_confirmed
    assert change.message.startswith("prompt: first second [31mxxx")
    assert len(change.message) < 320
    assert "4017 bytes left out" in str(change.data["prompt"])


def test_tool(instance: InstanceRecord) -> None:
    given = {"tool_name": "Bash", "tool_input": {"command": "pytest -q", "description": "Run the tests"}}
    begins = meaning(instance, "PreToolUse", **given)
    assert (begins.state, begins.doing, begins.kind) == (State.WORKING, "Bash: pytest -q", "")
    ended = meaning(
        instance, "PostToolUse", **given, duration_ms=2140, tool_response={"stdout": "3 passed", "stderr": "warned"}
    )
    assert ended.message == "tool Bash: pytest -q (2.1 s, ok)"
    assert ended.data["result"] == "3 passed\nwarned"
    failed = meaning(
        instance, "PostToolUseFailure", **given, duration_ms=17, error="Exit code 1\nlong", is_interrupt=False
    )
    assert failed.message == "tool Bash: pytest -q (0.0 s, failed: Exit code 1)"
    assert failed.priority == 5
    interrupted = meaning(instance, "PostToolUseFailure", **given, error="x", is_interrupt=True)
    assert interrupted.message == "tool Bash: pytest -q (interrupted)"


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("Write", {"file_path": "WORKTREE/src/a.py", "content": "x"}, "Write: src/a.py"),
        ("Read", {"file_path": "/etc/hosts"}, "Read: /etc/hosts"),
        ("Grep", {"pattern": "x+", "path": "src"}, "Grep: x+"),
        ("WebFetch", {"url": "https://example.org", "prompt": "sum up"}, "WebFetch: https://example.org"),
        ("TodoWrite", {"todos": []}, "TodoWrite"),
        ("mcp__x__y", "odd", "mcp__x__y"),
    ],
)
def test_tools_say_what_they_are_about(instance: InstanceRecord, tool: str, given: object, words: str) -> None:
    if isinstance(given, dict):
        given = {key: str(value).replace("WORKTREE", instance.worktree) for key, value in given.items() if value}
    assert meaning(instance, "PreToolUse", tool_name=tool, tool_input=given).doing == words


def test_permission(instance: InstanceRecord) -> None:
    change = meaning(instance, "PermissionRequest", tool_name="Bash", tool_input={"command": "rm -rf build"})
    assert (change.state, change.reason, change.reason_text) == (State.WAITING, Reason.PERMISSION, "Bash rm -rf build")
    assert change.message == "waiting for permission: Bash rm -rf build"
    plan = meaning(instance, "PermissionRequest", tool_name="ExitPlanMode", tool_input={"plan": "1."})
    assert plan.reason is Reason.PERMISSION
    questions = {"questions": [{"question": "What colour?", "options": []}]}
    asked = meaning(instance, "PermissionRequest", tool_name="AskUserQuestion", tool_input=questions)
    assert (asked.state, asked.reason) == (State.WAITING, Reason.ANSWER)
    assert asked.message == "waiting for an answer: What colour?"


@pytest.mark.parametrize("kind", ["idle_prompt", "permission_prompt", "auth_success", ""])
def test_notifications_that_are_no_news(instance: InstanceRecord, kind: str) -> None:
    assert meaning(instance, "Notification", notification_type=kind, message="x") == Change()


def test_question_of_a_server_waits_for_an_answer(instance: InstanceRecord) -> None:
    change = meaning(instance, "Notification", notification_type="elicitation_dialog", message="Which\naccount?")
    assert (change.state, change.reason, change.reason_text) == (State.WAITING, Reason.ANSWER, "Which account?")
    assert change.message == "waiting for an answer: Which account?"


def test_stop(instance: InstanceRecord) -> None:
    change = meaning(instance, "Stop", last_assistant_message="All\ndone.", background_tasks=[])
    assert (change.state, change.doing, change.message) == (State.IDLE, "", "answer: All done.")
    busy = meaning(instance, "Stop", last_assistant_message="", background_tasks=[{"command": "make"}, {}])
    assert (busy.state, busy.doing) == (State.WORKING, "background: make and 1 more")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        ("rate_limit", State.WAITING, Reason.QUOTA),
        ("authentication_failed", State.WAITING, Reason.ANSWER),
        ("billing_error", State.WAITING, Reason.ANSWER),
        ("server_error", State.IDLE, Reason.NONE),
        ("model_not_found", State.IDLE, Reason.NONE),
        ("unknown", State.IDLE, Reason.NONE),
    ],
)
def test_failed_turns(instance: InstanceRecord, error: str, state: State, reason: Reason) -> None:
    change = meaning(instance, "StopFailure", error=error, error_details="429 slow down")
    assert (change.state, change.reason) == (state, reason)
    assert change.priority <= 4
    assert f"{error}: 429 slow down" in change.message
    assert bool(change.reason_text) == (state is State.WAITING)


def test_subagents_and_end(instance: InstanceRecord) -> None:
    assert meaning(instance, "SubagentStart", agent_type="Explore").doing == "subagent Explore"
    ended = meaning(instance, "SubagentStop", agent_type="Explore", last_assistant_message="Found it.")
    assert (ended.state, ended.message) == (None, "subagent Explore ended: Found it.")
    assert meaning(instance, "SessionEnd", reason="prompt_input_exit").state is None
    assert meaning(instance, "Anything") == Change()


@pytest.mark.parametrize("event", EVENTS)
def test_odd_payloads_hurt_nobody(instance: InstanceRecord, event: str) -> None:
    agent = ClaudeAgent()
    for value in (None, 1, [], {}, "x", [1], {"a": 1}, True):
        keys = (
            *("source", "session_id", "prompt", "tool_name", "tool_input", "duration_ms", "tool_response", "error"),
            *("background_tasks", "last_assistant_message", "agent_type", "reason", "notification_type", "model"),
        )
        report = Report("u" * 32, 7, event, dict.fromkeys(keys, value), 0.0)
        assert isinstance(agent.interpret(instance, report), Change)


# -- the live session file ---------------------------------------------------------------------------------------------


def status(instance: InstanceRecord, word: str, at: float, **more: object) -> Change:
    text = json.dumps({"pid": 1, "status": word, "statusUpdatedAt": round(at * 1000), **more})
    return ClaudeAgent().interpret_status(instance, text)


def test_status_file_is_named_by_the_process(instance: InstanceRecord, tmp_path: Path) -> None:
    assert ClaudeAgent().status_file(instance) is None
    running = dataclasses.replace(instance, pid=21666)
    assert ClaudeAgent().status_file(running) == tmp_path / "home/.claude/sessions/21666.json"


def test_what_only_the_status_tells(instance: InstanceRecord) -> None:
    instance.since, instance.state = 100.0, State.WORKING
    assert status(instance, "idle", 101).state is State.IDLE  # Esc
    assert status(instance, "waiting", 101, waitingFor="permission prompt").reason is Reason.PERMISSION
    assert status(instance, "busy", 101) == Change()
    instance.doing = "background: make"
    assert status(instance, "idle", 101) == Change()
    instance.state, instance.reason, instance.reason_text = State.WAITING, Reason.PERMISSION, "Bash make"
    answered = status(instance, "busy", 101)
    assert (answered.state, answered.doing) == (State.WORKING, "Bash make")
    assert status(instance, "idle", 101).state is State.IDLE  # refused
    instance.reason = Reason.QUOTA
    assert status(instance, "idle", 101) == Change()


def test_older_or_unreadable_status_is_no_news(instance: InstanceRecord) -> None:
    instance.since, instance.state = 100.0, State.WORKING
    assert status(instance, "idle", 99) == Change()
    for text in ("", "{", "[]", "{}", '{"status": "idle", "statusUpdatedAt": "x"}'):
        assert ClaudeAgent().interpret_status(instance, text) == Change()
