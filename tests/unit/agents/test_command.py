# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command agent: what is run, with which prompt, and what its end means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccorchd.agents.base import Paths
from ccorchd.agents.command import CommandAgent
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Limits, Report

PROMPT = "do 'this' && $(that)\nand more"


def record(command: str, prompt: str = "") -> InstanceRecord:
    return InstanceRecord(
        id=1,
        project_id=1,
        project="shop",
        name="one",
        agent="command",
        session_id="",
        branch="ccorch/one",
        base="main",
        base_commit="",
        worktree="/nowhere",
        repository="/nowhere",
        port=0,
        prompt=prompt,
        limits=Limits(),
        environment={},
        wanted=True,
        state=State.WORKING,
        reason=Reason.NONE,
        reason_text="",
        since=0.0,
        created=0.0,
        restarts=0,
        options={"command": command},
    )


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "events.sock", tmp_path / "spool", tmp_path)


def test_prompt_arrives_exactly_by_variable_and_argument(paths: Paths) -> None:
    script = "import os, sys; print(repr((sys.argv[1:], os.environ['CCORCH_PROMPT'])))"
    command = f"{sys.executable} -c \"{script}\" -- 'x={{prompt}}' {{prompt}}"
    launch = CommandAgent().prepare(record(command), paths, resume=False, prompt=PROMPT)
    done = subprocess.run(launch.argv, env=launch.environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr((["--", f"x={PROMPT}", PROMPT], PROMPT))


def test_without_prompt_there_is_no_variable(paths: Paths) -> None:
    launch = CommandAgent().prepare(record("true"), paths, resume=False, prompt="")
    assert launch.argv == ["true"]
    assert "CCORCH_PROMPT" not in launch.environment


@pytest.mark.parametrize("prompt", ["x" * 130_000, "a\0b"])
def test_prompt_that_no_program_can_be_given(paths: Paths, prompt: str) -> None:
    with pytest.raises(CcorchError) as caught:
        CommandAgent().prepare(record("echo {prompt}"), paths, resume=False, prompt=prompt)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


def test_restart_has_the_prompt_again(paths: Paths) -> None:
    launch = CommandAgent().prepare(record("echo {prompt}", "first"), paths, resume=True, prompt="")
    assert launch.argv == ["echo", "first"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, ErrorCode.INVALID_ARGUMENT),
        ({"command": "  "}, ErrorCode.INVALID_ARGUMENT),
        ({"command": "''"}, ErrorCode.INVALID_ARGUMENT),
        ({"command": "echo 'open"}, ErrorCode.INVALID_ARGUMENT),
        ({"command": "no-such-program-anywhere"}, ErrorCode.MISSING_PROGRAM),
    ],
)
def test_check_refuses(options: dict[str, str], code: ErrorCode) -> None:
    with pytest.raises(CcorchError) as caught:
        CommandAgent().check({"PATH": os.defpath}, options)
    assert caught.value.code is code
    assert caught.value.hint


def test_program_is_looked_for_in_the_instance_s_path(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    CommandAgent().check({"PATH": str(tmp_path)}, {"command": "mine now"})


def test_its_end() -> None:
    agent = CommandAgent()
    assert agent.exit_change(0, None).state is State.STOPPED
    failed = agent.exit_change(3, None)
    assert (failed.state, failed.reason, failed.reason_text) == (State.FAILED, Reason.EXIT, "exit status 3")
    assert agent.exit_change(None, 9).reason is Reason.SIGNAL


@pytest.mark.parametrize(
    ("payload", "state"),
    [
        ({"state": "waiting", "message": "for a licence"}, State.WAITING),
        ({"state": "working", "message": "step 2"}, State.WORKING),
        ({"state": "idle"}, State.IDLE),
        ({"message": "just words"}, None),
        ({"state": "dancing"}, None),
    ],
)
def test_status_reports(payload: dict[str, object], state: State | None) -> None:
    change = CommandAgent().interpret(record("x"), Report("u", 1, "Status", payload, 0.0))
    assert change.state is state
    assert (change.reason is not Reason.NONE) == (state is State.WAITING)
    assert change.message == payload.get("message", "")


def test_other_reports_change_nothing() -> None:
    assert CommandAgent().interpret(record("x"), Report("u", 1, "Stop", {"state": "idle"}, 0.0)) == Change()


def test_end_that_nobody_saw() -> None:
    change = CommandAgent().exit_change(None, None)
    assert (change.state, change.reason) == (State.FAILED, Reason.LOST)
    assert change.message == "command ended, and how was not seen"
