# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
import pwd

import pytest

from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.instances.environment import check_variables, compose, from_caller
from ccorchd.model import InstanceRecord, Limits


def record(**changes: object) -> InstanceRecord:
    values: dict[str, object] = {
        "id": 7, "project_id": 1, "project": "p", "name": "n", "agent": "demo", "session_id": "s", "branch": "ccorch/n",
        "base": "HEAD", "base_commit": "abc", "worktree": "/w", "repository": "/r", "port": 42007, "prompt": "",
        "limits": Limits(), "environment": {}, "wanted": True, "state": State.STOPPED, "reason": Reason.NONE,
        "reason_text": "", "since": 0.0, "created": 0.0, "restarts": 0,
    }  # fmt: skip
    return InstanceRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_caller_hands_over_only_what_is_listed() -> None:
    given = {
        "PATH": "/opt/bin",
        "LC_TIME": "de_DE.UTF-8",
        "https_proxy": "http://proxy:1",
        "ANTHROPIC_API_KEY": "secret",
        "NOTIFY_SOCKET": "/run/x",
        "CCORCH_SUFFIX": "x",
        "MINE": "1",
    }
    assert from_caller(given, []) == {
        "PATH": "/opt/bin",
        "LC_TIME": "de_DE.UTF-8",
        "https_proxy": "http://proxy:1",
    }
    assert from_caller(given, ["MINE", "NOTIFY_SOCKET"])["MINE"] == "1"
    assert "NOTIFY_SOCKET" not in from_caller(given, ["MINE", "NOTIFY_SOCKET"])


def test_composed_environment_is_laid_over_in_order() -> None:
    manager = {"FROM_MANAGER": "1", "PATH": "/manager", "INVOCATION_ID": "x", "DBUS_SESSION_BUS_ADDRESS": "unix:x"}
    found = compose(
        record(environment={"PATH": "/caller"}), manager, {"PROJECT": "2"}, port_variable="WEB_PORT", suffix="run"
    )
    assert found["FROM_MANAGER"] == "1"
    assert found["PATH"].endswith(":/caller")
    assert found["PATH"].split(":")[0].endswith("/.local/bin")
    assert found["PROJECT"] == "2"
    assert found["WEB_PORT"] == found["CCORCH_PORT"] == "42007"
    assert found["CCORCH_INSTANCE"] == "p/n"
    assert found["CCORCH_SUFFIX"] == "run"
    assert "INVOCATION_ID" not in found
    assert "DBUS_SESSION_BUS_ADDRESS" not in found


def test_users_own_programs_are_not_named_twice() -> None:
    local = f"{pwd.getpwuid(os.getuid()).pw_dir}/.local/bin"
    path = f"/opt/bin:{local}:/usr/bin"
    assert compose(record(), {"PATH": path}, {}, port_variable="PORT", suffix="")["PATH"] == path


def test_another_instance_never_shows_through() -> None:
    """A ccorchctl that is called from inside an instance carries that instance's variables."""
    caller = {"CCORCH_INSTANCE": "p/other", "CCORCH_SOCKET": "/other", "TMUX": "x", "PATH": "/bin"}
    found = compose(record(environment=from_caller(caller, [])), {}, {}, port_variable="PORT", suffix="")
    assert found["CCORCH_INSTANCE"] == "p/n"
    assert "CCORCH_SOCKET" not in found
    assert "TMUX" not in found


@pytest.mark.parametrize("name", ["NOTIFY_SOCKET", "CCORCH_SOCKET", "LISTEN_FDS", "TMUX", "a b", ""])
def test_project_cannot_set_what_is_not_its_own(name: str) -> None:
    with pytest.raises(CcorchError) as caught:
        check_variables({name: "x"}, "--env")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert name in caught.value.message
    check_variables({"DATABASE_URL": "x", "PYTHONPATH": "src"}, "--env")
