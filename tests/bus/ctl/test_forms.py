# SPDX-License-Identifier: LGPL-2.1-or-later
"""What commands say at the edges: nothing to do, machines' forms, figures that are missing, a daemon that refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ccorch_test_service import refuse  # type: ignore[import-not-found]

from ccorchd.contract import EVENT_FIELDS, INSTANCE_FIELDS, SETTING_FIELDS, ErrorCode

pytestmark = pytest.mark.usefixtures("server")
Ctl = Callable[..., Any]


def failed(result: Any, status: int, *words: str) -> None:
    assert (result.status, result.out) == (status, ""), result
    for word in words:
        assert word in result.err


# ---------------------------------------------------------------- nothing to do


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "remove", "wait"])
def test_all_of_no_instances_is_no_error_and_asks_nothing(ctl: Ctl, world: Any, verb: str) -> None:
    world.instances.clear()
    result = ctl(verb, "--all")
    assert (result.status, result.out, result.err) == (0, "No instances.\n", "")


def test_stop_all_where_none_runs_asks_nothing(ctl: Ctl, world: Any) -> None:
    for record in world.instances.values():
        record["state"] = "stopped"
    assert ctl("stop", "--all").status == 0
    assert not world.called("Stop")


def test_no_worktrees(ctl: Ctl, world: Any) -> None:
    world.instances.clear()
    assert ctl("tree").out == "No worktrees. An instance makes one: ccorchctl create NAME\n"
    assert ctl("tree", "-o", "json").data == []


def test_shutdown_with_nothing_running(ctl: Ctl, world: Any) -> None:
    world.instances.clear()
    assert ctl("shutdown", "--yes").out.startswith("The daemon has stopped; the next command")
    assert world.called("Shutdown")


def test_detach_where_nobody_is_attached(ctl: Ctl, world: Any) -> None:
    world.terminals = 0
    assert ctl("detach", "shop/api").out == "No terminal is attached to shop/api.\n"


def test_what_comes_next_follows_from_the_states(ctl: Ctl, world: Any) -> None:
    def following() -> str:
        return str(ctl().out.splitlines()[-1])

    world.by_address("shop/api")["state"] = "idle"
    assert following().startswith("Next: ccorchctl diff shop/api ")
    assert "Needs you" not in ctl().out
    world.by_address("shop/api")["state"] = "stopped"
    assert following().startswith("Next: ccorchctl attach shop/web ")
    world.by_address("shop/web")["state"] = "stopped"
    assert following().startswith("Next: ccorchctl start blog/api ")


# ---------------------------------------------------------------- machines' forms


def test_forms_for_machines(ctl: Ctl, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    world.diff = "+a\n"
    assert ctl("diff", "shop/api", "-o", "json").data == {"address": "shop/api", "diff": "+a\n"}
    assert ctl("detach", "shop/api", "-o", "json").data == {"address": "shop/api", "detached": 2}
    assert ctl("send", "shop/web", "x", "-o", "json").data == {"address": "shop/web", "taken": False}
    assert set(ctl("config", "-o", "json").data[0]) == set(SETTING_FIELDS)
    assert ctl("config", "get", "instances.max", "-o", "json").data["value"] == "12"
    path = tmp_path / "ccorch" / "ccorchd.toml"
    assert ctl("config", "path", "-o", "json").data == {"path": str(path), "exists": False}
    world.secrets = {"b": "hush", "a": "hush"}
    assert ctl("secrets", "-o", "json").data == [{"name": "a"}, {"name": "b"}]


def test_wait_as_json_is_one_record_or_a_list(ctl: Ctl) -> None:
    one = ctl("wait", "shop/api", "-o", "json").data
    assert one["state"] == "waiting"
    assert set(one) == set(INSTANCE_FIELDS)
    both = ctl("wait", "blog/api", "shop/api", "-o", "json").data
    assert [record["address"] for record in both] == ["blog/api", "shop/api"]


def test_wait_for_all_as_json_is_a_list_even_of_one(ctl: Ctl, world: Any) -> None:
    world.instances = {1: world.by_address("shop/api")}
    assert [record["address"] for record in ctl("wait", "--all", "-o", "json").data] == ["shop/api"]


def test_events_as_json_are_one_list(ctl: Ctl, world: Any) -> None:
    assert ctl("events", "-o", "json").data == []
    world.event("one", instance="shop/api")
    assert set(ctl("events", "-o", "json").data[0]) == set(EVENT_FIELDS)


def test_a_diff_in_a_pipe_is_as_it_is(ctl: Ctl, world: Any) -> None:
    """So that git apply can read it: not even control characters are taken out, and the last line has an end."""
    world.diff = "diff --git a/x b/x\n+\ttab\x1b[2J"
    assert ctl("diff", "shop/api").out == world.diff + "\n"


# ---------------------------------------------------------------- figures that are missing


def test_show_leaves_out_what_is_not_known(ctl: Ctl) -> None:
    out = ctl("show", "blog/api").out
    assert "Memory:" not in out
    assert "Tasks:" not in out
    assert "CPU:" in out


def test_show_of_no_limits(ctl: Ctl, world: Any) -> None:
    world.by_address("shop/api")["limits"] = {"MemoryMax": "infinity", "TasksMax": "infinity"}
    world.by_address("shop/api")["memory_peak"] = None
    lines = [line.strip() for line in ctl("show", "shop/api").out.splitlines()]
    assert "Memory: 300M" in lines
    assert "Tasks: 7" in lines


def test_status_of_a_host_that_tells_little(ctl: Ctl, world: Any) -> None:
    for key in ("max_instances", "host_memory", "load", "memory_pressure"):
        del world.status[key]
    out = ctl("status").out
    assert "Host" not in out
    assert "at most" not in out
    assert "2 running (1 waiting, 1 working), 1 stopped" in out
    world.status["memory_pressure"] = ("d", 12.34)
    assert "Host: memory pressure 12.3%" in ctl("status").out


def test_status_of_a_host_where_instances_come_back(ctl: Ctl, world: Any) -> None:
    world.status["enabled"] = ("b", True)
    assert "instances come back (lingering on, unit enabled)" in ctl("status").out
    del world.status["enabled"], world.status["linger"]
    assert "Reboot" not in ctl("status").out


# ---------------------------------------------------------------- hints and refusals


def test_half_an_address(ctl: Ctl) -> None:
    failed(ctl("show", "shop/"), 2, "'shop/' is half an address")
    failed(ctl("show", "/api"), 2, "'/api' is half an address")


def test_a_missing_agent_points_at_the_demo(ctl: Ctl, world: Any) -> None:
    world.fail["CreateInstance"] = refuse(ErrorCode.MISSING_PROGRAM, "claude is not installed", "Install it.")
    failed(ctl("create", "shop/x"), 1, "claude is not installed", "without it: --agent demo.")
    chosen = ctl("create", "shop/x", "--agent", "claude")
    assert "--agent demo" not in chosen.err


def test_project_with_steps_says_what_comes_next(ctl: Ctl, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    assert ctl("project", "add", str(project_folder)).out.endswith("Next: ccorchctl project agree shop\n")
    world.projects[1]["setup_agreed"] = True
    assert "Next:" not in ctl("project", "add", str(project_folder)).out
    shown = ctl("project", "show", "shop").out
    assert "1. make deps" in shown
    assert "Agree" not in shown


def test_nobody_can_agree_to_a_broken_file_when_creating(ctl: Ctl, world: Any) -> None:
    world.projects[1] |= {"setup": ["/x/.ccorch.toml:2: bad"], "setup_hash": "", "setup_agreed": False}
    failed(ctl("create", "shop/x", "--yes"), 2, "/x/.ccorch.toml:2: bad")
    assert not world.called("AgreeSetup")


def test_a_daemon_that_cannot_say_whose_folder_this_is(ctl: Ctl, world: Any) -> None:
    world.fail["FindProject"] = refuse(ErrorCode.GIT_FAILED, "git said: fatal")
    failed(ctl("show", "api"), 1, "git said: fatal")
    world.fail["FindProject"] = refuse(ErrorCode.NOT_A_REPOSITORY, "no repository")
    assert "shop/web" in ctl("show", "web").out


def test_logs_and_why_tell_why_they_cannot(ctl: Ctl, world: Any) -> None:
    world.fail["ListEvents"] = refuse(ErrorCode.STORAGE_FAILED, "the store is gone")
    failed(ctl("why", "shop/nope"), 4, "there is no instance shop/nope")
    failed(ctl("logs", "shop/api"), 1, "the store is gone")
    world.fail["GetInstance"] = refuse(ErrorCode.INVALID_NAME, "that is no name")
    failed(ctl("why", "shop/api"), 2, "that is no name")


def test_doctor_does_not_call_a_refusal_a_finding(ctl: Ctl, world: Any) -> None:
    world.fail["Doctor"] = refuse(ErrorCode.INTERNAL, "it broke")
    result = ctl("doctor")
    assert result.status == 1
    assert result.out == ""
    assert "it broke" in result.err
    world.fail["Doctor"] = refuse(ErrorCode.TIMEOUT, "too slow")
    assert "FAIL  daemon  too slow" in ctl("doctor").out


def test_wait_tells_a_failing_daemon_from_a_removal(ctl: Ctl, world: Any) -> None:
    world.fail["Describe"] = refuse(ErrorCode.INTERNAL, "it broke")
    failed(ctl("wait", "shop/api"), 1, "it broke")


def test_wait_where_the_daemon_knows_nothing_any_more(ctl: Ctl, world: Any) -> None:
    world.fail["Describe"] = refuse(ErrorCode.INTERNAL, "it broke")
    world.fail["GetInstance"] = refuse(ErrorCode.STORAGE_FAILED, "the store is gone")
    failed(ctl("wait", "--all"), 1, "the store is gone")


def test_words_behind_two_dashes_are_no_options(ctl: Ctl, world: Any) -> None:
    assert ctl("send", "shop/nope", "--", "-o", "json").err.startswith("ccorchctl: there is no instance shop/nope")
    assert ctl("send", "shop/api", "--", "-o", "json").status == 0
    assert world.called("Send") == [("shop/api", "-o json")]


def test_version_without_a_bus(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    assert ctl("version").out.splitlines()[1] == "ccorchd (not running)"
    assert ctl("version", "-o", "json").data["ccorchd"] is None


def test_version_of_another_daemon(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchctl.commands.host.API_VERSION", 99)
    result = ctl("version")
    assert result.status == 0
    assert "ccorchctl version 99: systemctl --user restart ccorchd.service" in result.err
    assert "systemctl" not in ctl("version", "--quiet").err


def test_removing_several_says_how_the_first_failed(ctl: Ctl, world: Any) -> None:
    world.fail["Remove shop/api"] = refuse(ErrorCode.STORAGE_FAILED, "the disk is gone")
    result = ctl("remove", "shop/api", "shop/web", "--yes", "-o", "json")
    assert result.status == 1
    assert [row["address"] for row in result.data] == ["shop/web"]
    assert json.loads(result.err)["error"]["message"] == "shop/api: the disk is gone"


# ---------------------------------------------------------------- try and init


def test_try_shows_some_commits_and_counts_the_others(ctl: Ctl, world: Any, project_folder: Path) -> None:
    os.chdir(project_folder)
    world.commits = [[f"{number:016x}", f"Step {number}"] for number in range(100)]
    out = ctl("try", "x").out
    shown = sum("  Step " in line for line in out.splitlines())
    assert 0 < shown < 100
    assert f"{100 - shown} more" in out
    assert "100 commits on ccorch/brisk-otter" in out


def test_init_agrees_when_told_to(ctl: Ctl, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    assert "Agreed." in ctl("init", str(project_folder), "--yes").out
    assert world.called("AgreeSetup") == [("h1",)]


def test_init_where_the_folder_takes_no_file(ctl: Ctl, world: Any) -> None:
    world.project("kernel", "/proc")
    result = ctl("init", "/proc")
    assert result.status == 0
    assert "/proc/.ccorch.toml was not written (" in result.err
    assert "Wrote" not in result.out
    assert ctl("init", "/proc", "-q").err == ""
