# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every command against the small service, standard input being no terminal: right uses, wrong uses, exit statuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import EVENT_FIELDS, INSTANCE_FIELDS, PROJECT_FIELDS, WORKTREE_FIELDS

pytestmark = pytest.mark.usefixtures("server")
Ctl = Callable[..., Any]


def failed(result: Any, status: int, *words: str) -> None:
    """Check an error: its status, one sentence with all *words*, at most one hint, nothing on standard output."""
    assert result.status == status, result
    lines = result.err.splitlines()
    assert 1 <= len(lines) <= 2, result.err
    assert lines[0].startswith("ccorchctl: ")
    assert len(lines) == 1 or lines[1].startswith("Hint: ")
    for word in words:
        assert word in result.err
    assert result.out == ""


# ---------------------------------------------------------------- overview, list, show


def test_overview_puts_first_what_needs_somebody(ctl: Ctl) -> None:
    result = ctl()
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0] == "Needs you (1)"
    words = ("shop/api", "waiting: permission", "3 min ago", "Bash rm -rf build", "ccorchctl attach shop/api")
    assert re.search(r"\s+".join(words), lines[2])
    assert lines[-1] == "Next: ccorchctl attach shop/api"
    assert "2 running of at most 10 (1 waiting, 1 working), 1 stopped" in result.out
    assert "600M memory, 14 tasks" in result.out


def test_overview_of_nothing_says_how_to_begin(ctl: Ctl, world: Any) -> None:
    world.instances.clear()
    world.projects.clear()
    assert ctl().out.splitlines()[-1].startswith("Next: ccorchctl init")


def test_overview_in_a_project_without_instances_offers_try(ctl: Ctl, world: Any, project_folder: Path) -> None:
    world.instances.clear()
    assert 'ccorchctl try "' in ctl().out
    os.chdir(project_folder)
    assert ctl().out.splitlines()[-1] == 'Next: ccorchctl try "what should be done"'


def test_overview_stays_one_screen(ctl: Ctl, world: Any, server: Any) -> None:
    for number in range(100):
        world.instance("shop", f"a{number}", "waiting" if number % 2 else "idle")
    lines = ctl().out.splitlines()
    assert len(lines) < 40
    assert any("39 more: ccorchctl list --state waiting,failed" in line for line in lines)
    assert len(ctl("--full").out.splitlines()) > 100


def test_overview_as_json(ctl: Ctl) -> None:
    data = ctl("-o", "json").data
    assert set(data) == {"status", "instances", "projects"}
    assert set(data["projects"][0]) >= set(PROJECT_FIELDS)


@pytest.mark.parametrize("words", [("instance", "list"), ("list",), ("ls",), ("instances",), ("instance",)])
def test_list(ctl: Ctl, words: tuple[str, ...]) -> None:
    result = ctl(*words)
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ["INSTANCE", "STATE", "SINCE"]
    assert [line.split()[0] for line in lines[1:]] == ["shop/api", "shop/web", "blog/api"]
    assert "300M 29%" in lines[1]


def test_list_as_json_has_every_key_and_null_for_unknown(ctl: Ctl) -> None:
    data = ctl("list", "-o", "json").data
    assert set(data[0]) == set(INSTANCE_FIELDS)
    stopped = next(record for record in data if record["address"] == "blog/api")
    assert stopped["pid"] is None
    assert stopped["memory_current"] is None
    assert stopped["oom_kills"] is None
    assert datetime.fromisoformat(stopped["since"]).tzinfo is not None


def test_list_as_jsonl_is_one_object_a_line(ctl: Ctl) -> None:
    assert len(ctl("-o", "jsonl", "list").out.splitlines()) == 3


def test_list_chooses(ctl: Ctl, project_folder: Path) -> None:
    assert len(ctl("list", "--state", "waiting,stopped").out.splitlines()) == 3
    assert len(ctl("list", "--project", "blog").out.splitlines()) == 2
    os.chdir(project_folder)
    assert len(ctl("list", "--project", ".").out.splitlines()) == 3
    failed(ctl("list", "--state", "asleep"), 2, "asleep", "working")


def test_list_of_nothing(ctl: Ctl, world: Any) -> None:
    world.instances.clear()
    assert "No instances." in ctl("list").out
    assert ctl("list", "-q").out == ""
    assert ctl("list", "-o", "json").data == []


def test_show(ctl: Ctl) -> None:
    result = ctl("show", "shop/api")
    assert result.status == 0
    assert "● shop/api" in result.out
    assert "State: waiting: permission since" in result.out
    assert "Memory: 300M of 1G, 29%, peak 400M" in result.out
    assert "Tasks: 7 of 1024" in result.out
    assert "Unit: ccorch-shop.api.scope" in result.out
    assert set(ctl("show", "shop/api", "-o", "json").data) == set(INSTANCE_FIELDS)


def test_what_agents_say_cannot_steer_the_terminal(ctl: Ctl, world: Any) -> None:
    world.by_address("shop/web")["doing"] = "\x1b]0;owned\x07\x1b[2J\u202eevil\nline"
    for words in (("list",), ("show", "shop/web"), ()):
        out = ctl(*words).out
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "\u202e" not in out
    assert "\x1b" not in ctl("screen", "shop/api").out


# ---------------------------------------------------------------- addresses


def test_bare_name_in_a_checkout(ctl: Ctl, project_folder: Path) -> None:
    os.chdir(project_folder)
    assert "shop/api" in ctl("show", "api").out
    failed(ctl("show", "nope"), 4, "shop/nope", "Did you mean")


def test_bare_name_elsewhere(ctl: Ctl) -> None:
    assert "shop/web" in ctl("show", "web").out
    failed(ctl("show", "api"), 2, "2 projects", "blog/api, shop/api")
    failed(ctl("show", "wep"), 4, "no instance 'wep'", "Did you mean shop/web?")


def test_no_name_in_an_instances_worktree(ctl: Ctl, world: Any, tmp_path: Path) -> None:
    failed(ctl("show"), 2, "which instance")
    world.by_address("shop/web")["worktree"] = str(tmp_path)
    assert "shop/web" in ctl("show").out


def test_a_working_directory_that_is_gone(ctl: Ctl, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert ctl("show", "shop/api").status == 0
    failed(ctl("create"), 4, "no project")


# ---------------------------------------------------------------- create


def test_create(ctl: Ctl, world: Any, project_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("MINE", "own")
    os.chdir(project_folder)
    result = ctl(
        *("create", "new", "--agent", "demo", "-p", "write it", "--base", "main", "--branch", "b"),
        *(
            "--memory-max",
            "2G",
            "--cpu-weight",
            "50",
            "-e",
            "A=1=2",
            "-e",
            "MINE",
            "--option",
            "model=opus",
            "--no-start",
        ),
    )
    assert result.status == 0
    assert "shop/new created: branch ccorch/new" in result.out
    ((project, name, given),) = world.called("CreateInstance")
    assert (project, name) == ("shop", "new")
    assert given["limits"] == {"MemoryMax": "2G", "CPUWeight": "50"}
    assert given["options"] == {"model": "opus"}
    assert given["start"] is False
    assert given["prompt"] == "write it"
    assert given["variables"]["A"] == "1=2"
    assert given["variables"]["MINE"] == "own"
    assert given["environment"]["LC_TIME"] == "C"
    assert given["environment"]["PATH"] == os.environ["PATH"]
    assert "AWS_SECRET_ACCESS_KEY" not in given["environment"]
    assert "DBUS_SESSION_BUS_ADDRESS" not in given["environment"]


def test_create_by_address_with_a_prompt_from_standard_input(ctl: Ctl, world: Any) -> None:
    result = ctl("create", "blog/post", "--prompt", "-", "-o", "json", stdin="first\nsecond\n")
    assert result.data["address"] == "blog/post"
    assert world.called("CreateInstance")[0][2]["prompt"] == "first\nsecond"


def test_create_makes_up_a_name(ctl: Ctl) -> None:
    assert "shop/brisk-otter started" in ctl("create", "--project", "shop").out


def test_create_wrongly(ctl: Ctl, world: Any) -> None:
    failed(ctl("create", "shop/api"), 5, "exists already")
    failed(ctl("create", "x"), 4, "belongs to no project", "ccorchctl init")
    failed(ctl("create", "shop/x", "--project", "blog"), 2, "different projects")
    failed(ctl("create", "shop/x", "-e", "1A=2"), 2, "'1A=2'")
    failed(ctl("create", "shop/x", "-e", "NOT_THERE"), 2, "NOT_THERE")
    failed(ctl("create", "shop/x", "--option", "model"), 2, "no value")
    failed(ctl("create", "shop/x", "--attach", "--no-start"), 2, "exclude")
    failed(ctl("create", "shop/x", "--attach"), 6, "terminal")
    failed(ctl("create", "shop/x", "--memory-max"), 2, "--memory-max")
    failed(ctl("create", "shop/x", "two", "words"), 2, "'two'", "too many")
    failed(ctl("create", "shop/x", "-p", "nul\0"), 2, "NUL")
    failed(ctl("create", "shop/x", "-p", "bad\udcff"), 2, "UTF-8")
    assert len(world.called("CreateInstance")) == 1


def test_create_needs_agreement_to_set_up_steps(ctl: Ctl, world: Any) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    failed(ctl("create", "shop/x"), 6, "not agreed")
    result = ctl("create", "shop/x", "--yes")
    assert result.status == 0
    assert "1. make deps" in result.out
    assert world.called("AgreeSetup") == [("h1",)]
    world.projects[1]["setup_agreed"] = False
    assert ctl("create", "shop/y", "--yes", "-o", "json").data["address"] == "shop/y"


# ---------------------------------------------------------------- start, stop, restart, remove, merge


def test_start_stop_restart(ctl: Ctl, world: Any) -> None:
    assert ctl("start", "blog/api", "-p", "go on").out == "blog/api started.\n"
    ((address, given),) = world.called("Start")
    assert address == "blog/api"
    assert given["prompt"] == "go on"
    assert "PATH" in given["environment"]
    failed(ctl("start", "blog/api"), 6, "running already")
    assert ctl("stop", "blog/api", "-q").out == ""
    failed(ctl("stop", "blog/api"), 6, "not running")
    assert ctl("restart", "shop/web").out == "shop/web restarted.\n"


def test_several_at_once_go_on_after_a_failure(ctl: Ctl, world: Any) -> None:
    result = ctl("stop", "shop/api", "blog/api", "shop/web", "shop/web")
    assert result.status == 6
    assert result.out == "shop/api stopped.\nshop/web stopped.\n"
    assert result.err == "ccorchctl: blog/api is not running\n"
    assert len(world.called("Stop")) == 3


def test_all(ctl: Ctl, world: Any) -> None:
    failed(ctl("stop", "--all"), 6, "--yes")
    failed(ctl("stop", "--all", "shop/api"), 2, "exclude")
    failed(ctl("stop"), 2, "which instance")
    failed(ctl("stop", "shop/api", "--project", "shop"), 2, "--all")
    assert ctl("stop", "--all", "--yes").out == "shop/api stopped.\nshop/web stopped.\n"
    assert ctl("start", "--all", "--project", "shop").status == 0
    assert [call[0] for call in world.called("Start")] == ["shop/api", "shop/web"]


def test_remove(ctl: Ctl, world: Any) -> None:
    failed(ctl("remove", "shop/api"), 6, "--yes")
    assert not world.called("Remove")
    result = ctl("rm", "shop/api", "--yes")
    assert result.out == "shop/api removed. Branch ccorch/api held nothing that is not merged, and went with it.\n"
    failed(ctl("rm", "shop/api", "--yes"), 4, "no instance")


def test_remove_with_uncommitted_changes(ctl: Ctl, world: Any) -> None:
    world.dirty.add("shop/api")
    failed(ctl("rm", "shop/api", "--yes"), 6, "uncommitted")
    result = ctl("rm", "shop/api", "--yes", "--force", "-o", "json")
    assert result.data[0]["kept_ref"] == "refs/ccorch/removed/x"


def test_merge(ctl: Ctl, world: Any) -> None:
    assert ctl("merge", "shop/api").out == "shop/api merged; the checkout is at fedcba987654.\n"
    assert ctl("merge", "shop/api", "-o", "json").data["commit"] == "fedcba9876543210"


# ---------------------------------------------------------------- wait


def test_wait_returns_at_once_for_what_is_settled(ctl: Ctl) -> None:
    result = ctl("wait", "shop/api", "blog/api")
    assert result.status == 0
    assert "shop/api is waiting: permission (Bash rm -rf build)" in result.out


def test_wait_times_out(ctl: Ctl) -> None:
    failed(ctl("wait", "shop/web", "--timeout", "200ms"), 7, "shop/web (working)")
    failed(ctl("wait", "shop/web", "--timeout", "soon"), 2, "soon")
    failed(ctl("wait", "shop/web", "--until", "never"), 2, "never")


def test_wait_for_the_wrong_end(ctl: Ctl) -> None:
    assert ctl("wait", "blog/api", "--until", "idle").status == 1


# ---------------------------------------------------------------- attach and talk


def test_attach_needs_a_terminal(ctl: Ctl, world: Any) -> None:
    failed(ctl("attach", "shop/api"), 6, "terminal", "ccorchctl screen")
    failed(ctl("attach", "shop/api", "--window", "kitchen"), 2, "kitchen", "agent, shell")
    assert not world.called("Attach")


def test_detach_interrupt(ctl: Ctl, world: Any) -> None:
    assert ctl("detach", "shop/api").out == "2 terminals detached from shop/api.\n"
    assert ctl("interrupt", "shop/web").status == 0
    assert world.called("Interrupt") == [("shop/web",)]


def test_send(ctl: Ctl, world: Any) -> None:
    assert ctl("send", "shop/api", "now", "test", "it").out == "shop/api has taken the prompt.\n"
    assert "queued" in ctl("send", "shop/web", "-", stdin="two\nlines\n").out
    assert world.called("Send") == [("shop/api", "now test it"), ("shop/web", "two\nlines")]
    failed(ctl("send", "shop/api"), 2, "empty")
    failed(ctl("send"), 2, "NAME")
    failed(ctl("send", "shop/nope", "x"), 4)


# ---------------------------------------------------------------- diff, screen, logs, why, events, audit


def test_diff_and_screen(ctl: Ctl, world: Any) -> None:
    assert ctl("diff", "--stat", "shop/api").out == world.diff
    assert world.called("Diff") == [("shop/api", {"stat": True})]
    world.diff = ""
    assert "changed nothing" in ctl("diff", "shop/api").out
    assert ctl("screen", "shop/api").out == " [31m$ make\n\nok\n"
    assert ctl("screen", "shop/api", "-o", "json").data["screen"].startswith("\x1b[31m")


def test_logs(ctl: Ctl, world: Any) -> None:
    for number in range(60):
        world.event(f"tool Bash: make {number}", instance="shop/api")
    world.event("elsewhere", instance="shop/web")
    lines = ctl("logs", "shop/api").out.splitlines()
    assert lines[0].startswith("-- ")
    assert len(lines) == 51
    assert lines[-1].endswith("  tool Bash: make 59")
    assert len(ctl("logs", "shop/api", "-n", "3").out.splitlines()) == 4
    assert len(ctl("logs", "shop/api", "-n", "all").out.splitlines()) == 61
    since = datetime.fromtimestamp(world.events[50]["time"] / 1e6).isoformat()
    assert len(ctl("logs", "shop/api", "--since", since).out.splitlines()) == 11
    assert set(ctl("logs", "shop/api", "-o", "json").data[0]) == set(EVENT_FIELDS)
    assert ctl("logs", "shop/web", "--since", "1 min ago").out == "No events.\n"
    failed(ctl("logs", "shop/api", "-n", "few"), 2, "few")
    failed(ctl("logs", "shop/api", "--since", "whenever"), 2, "whenever")
    failed(ctl("logs", "shop/nope"), 4)


def test_logs_reads_page_by_page(ctl: Ctl, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchctl.commands.events.PAGE", 7)
    for number in range(40):
        world.event(f"line {number}", instance="shop/api")
    assert len(ctl("logs", "shop/api", "-n", "all").out.splitlines()) == 41


def test_why(ctl: Ctl, world: Any) -> None:
    world.event("created", instance="shop/api")
    world.event("too much detail", instance="shop/api", priority=7)
    world.event("waiting for permission: Bash rm -rf build", instance="shop/api", priority=5)
    lines = ctl("why", "shop/api").out.splitlines()
    assert lines[0] == "shop/api is waiting: permission (3 min ago): Bash rm -rf build"
    assert lines[-1] == "More: journalctl --user -u ccorch-shop.api.scope"
    assert len(lines) == 7
    data = ctl("why", "shop/api", "-o", "json").data
    assert data["journal"] == "journalctl --user -u ccorch-shop.api.scope"
    assert len(data["events"]) == 2


def test_why_shortens_a_long_story(ctl: Ctl, world: Any) -> None:
    for number in range(100):
        world.event(f"step {number}", instance="shop/api")
    lines = ctl("why", "shop/api").out.splitlines()
    assert any("55 more (--full shows all)" in line for line in lines)
    assert lines[3].endswith("step 0")
    assert len(ctl("why", "--full", "shop/api").out.splitlines()) > 100


def test_why_of_a_removed_instance(ctl: Ctl, world: Any) -> None:
    world.event("failed: out of memory, node (PID 7) was killed", instance="shop/gone", priority=3)
    result = ctl("why", "shop/gone")
    assert result.status == 0
    assert result.out.startswith("shop/gone has been removed.")
    assert "ccorch-shop.gone.scope" in result.out
    failed(ctl("why", "shop/never"), 4)


def test_events(ctl: Ctl, world: Any) -> None:
    world.event("one", instance="shop/api")
    world.event("two", instance="shop/web", kind="agent.waiting")
    world.event("three", kind="daemon.started")
    assert [line.split()[1] for line in ctl("events").out.splitlines()[1:]] == ["shop/api", "shop/web", "ccorchd"]
    assert len(ctl("events", "--kind", "agent.waiting").out.splitlines()) == 2
    assert len(ctl("events", "--project", "shop").out.splitlines()) == 3
    assert len(ctl("events", "--instance", "shop/api").out.splitlines()) == 2
    assert ctl("events", "--project", "blog").out == "No events.\n"


def test_audit(ctl: Ctl, world: Any) -> None:
    assert "Nothing has been changed" in ctl("audit").out
    world.event("Stop shop/api: done", instance="shop/api", kind="audit.call", actor="uid 1000, pid 9 (ccorchctl)")
    lines = ctl("audit").out.splitlines()
    assert lines[0].split() == ["WHEN", "WHO", "WHAT"]
    assert lines[1].endswith("uid 1000, pid 9 (ccorchctl)  Stop shop/api: done")
    assert ctl("audit", "-o", "json").data[0]["kind"] == "audit.call"


# ---------------------------------------------------------------- project, init, worktree


def test_project_list_and_show(ctl: Ctl, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make\x1b[2Jdeps"], "setup_hash": "h1", "setup_agreed": False}
    lines = ctl("projects").out.splitlines()
    assert [line.split()[0] for line in lines] == ["PROJECT", "blog", "shop"]
    assert "NOT AGREED" in lines[2]
    shown = ctl("project", "show", "shop").out
    assert r"1. make\x1b[2Jdeps" in shown
    assert "Agree to them: ccorchctl project agree shop" in shown
    os.chdir(project_folder)
    assert ctl("project", "show").status == 0
    assert set(ctl("project", "show", "-o", "json").data) >= set(PROJECT_FIELDS)
    failed(ctl("project", "show", "nope"), 4, "nope")


def test_project_agree(ctl: Ctl, world: Any) -> None:
    assert "no set-up steps" in ctl("project", "agree", "blog").out
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    refused = ctl("project", "agree", "shop")
    assert refused.status == 6
    assert "ccorchctl project agree shop --yes" in refused.err
    assert "1. make deps" in refused.out
    assert ctl("project", "agree", "shop", "--yes").out.endswith("Agreed.\n")
    assert world.called("AgreeSetup") == [("h1",)]
    assert "already" in ctl("project", "agree", "shop").out


def test_project_whose_file_is_broken(ctl: Ctl, world: Any, project_folder: Path) -> None:
    """The daemon hands out the error in place of the steps, and no hash: there is nothing to agree to."""
    error = "/srv/shop/.ccorch.toml:2: setup.stepz: unknown key"
    world.projects[1] |= {"setup": [error], "setup_hash": "", "setup_agreed": False}
    assert "ERROR" in ctl("projects").out.splitlines()[2]
    shown = ctl("project", "show", "shop").out
    assert f"Set-up: {error}" in shown
    assert "agree" not in shown
    failed(ctl("project", "agree", "shop", "--yes"), 2, "stepz")
    assert not world.called("AgreeSetup")
    assert error in ctl("project", "add", str(project_folder)).err


def test_project_add_does_nothing_else(ctl: Ctl, world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    assert ctl("project", "add", str(folder), "--name", "fresh-one").out == f"Project fresh-one: {folder}\n"
    assert world.called("RegisterProject") == [(str(folder), {"name": "fresh-one"})]
    assert not world.called("PrepareHost")
    assert not list(folder.iterdir())
    assert "registered already" in ctl("project", "add", str(folder)).out
    assert ctl("project", "add", str(folder), "-o", "json").data["name"] == "fresh-one"
    failed(ctl("project", "add", str(folder), "--name", "other"), 5, "never renamed")
    failed(ctl("project", "add", str(tmp_path / "nowhere")), 2, "no folder")
    failed(ctl("project", "add"), 2, "needs PATH")


def test_project_remove(ctl: Ctl, world: Any) -> None:
    failed(ctl("project", "remove", "shop"), 6, "--yes")
    failed(ctl("project", "remove", "shop", "--yes"), 6, "has instances")
    world.instances.clear()
    assert "Project shop removed" in ctl("project", "remove", "shop", "--yes").out
    failed(ctl("project", "remove"), 2, "PROJECT")


def test_init(ctl: Ctl, world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    world.checks.append({"name": "memory", "result": "warn", "message": "no memory controller", "hint": "boot with it"})
    result = ctl("init", str(folder), "--name", "fresh-one")
    assert result.status == 0
    assert world.called("RegisterProject") == [(str(folder), {"name": "fresh-one"})]
    assert "Project fresh-one:" in result.out
    assert "Turned on lingering" in result.out
    assert "warn  memory  no memory controller" in result.out
    assert result.out.splitlines()[-1] == 'Next: ccorchctl try "what should be done"'
    template = (folder / ".ccorch.toml").read_text()
    assert all(line.startswith("#") or not line for line in template.splitlines())
    (folder / ".ccorch.toml").write_text("mine")
    again = ctl("init", str(folder))
    assert "registered already" in again.out
    assert (folder / ".ccorch.toml").read_text() == "mine"
    failed(ctl("init", str(folder), "--name", "other"), 5, "never renamed")
    failed(ctl("init", str(tmp_path / "nowhere")), 2, "no folder")


def test_init_points_at_what_is_left_to_do(ctl: Ctl, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    assert ctl("init", str(project_folder)).out.splitlines()[-1] == "Next: ccorchctl project agree shop"
    assert ctl("init", str(project_folder), "--yes").out.splitlines()[-1].startswith("Next: ccorchctl try")
    world.checks.append({"name": "tmux", "result": "fail", "message": "no tmux", "hint": "apt install tmux"})
    assert "mend what failed above (1 check)" in ctl("init", str(project_folder)).out
    data = ctl("init", str(project_folder), "-o", "json").data
    assert data["changes"] == world.changes


def test_init_where_nothing_can_be_written(ctl: Ctl, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    (folder / ".ccorch.toml").symlink_to("/nonexistent/elsewhere")
    assert ctl("init", str(folder)).status == 0
    assert not os.path.exists("/nonexistent")


@pytest.mark.parametrize("words", [("worktree", "list"), ("worktrees",), ("worktree",)])
def test_worktree_list(ctl: Ctl, world: Any, words: tuple[str, ...]) -> None:
    world.dirty.add("shop/api")
    lines = ctl(*words).out.splitlines()
    assert lines[0].split() == ["INSTANCE", "STATE", "BRANCH", "AHEAD", "BEHIND", "CHANGES", "PATH"]
    assert lines[2].split()[:6] == ["shop/api", "waiting", "ccorch/api", "3", "1", "uncommitted"]
    assert set(ctl("worktree", "list", "blog", "-o", "json").data[0]) == set(WORKTREE_FIELDS)


def test_worktree_tree(ctl: Ctl) -> None:
    lines = ctl("tree").out.splitlines()
    assert lines[0] == "blog  /srv/blog"
    assert lines[1].startswith("└─ api  ccorch/api  +3 -1")
    assert lines[3].startswith("├─ api")
    assert ctl("tree", "-o", "json").data[0]["project"] == "blog"


# ---------------------------------------------------------------- host


def test_status(ctl: Ctl) -> None:
    out = ctl("status").out
    assert "● ccorchd.service: ccorchd 0.1.0" in out
    assert "9G of 16G memory free, load 0.42" in out
    assert "Not enforced: memory" in out
    assert "the unit is off" in out
    assert ctl("status", "-o", "json").data["pid"] == 4242


def test_doctor(ctl: Ctl, world: Any) -> None:
    assert ctl("doctor").out.splitlines()[-1] == "1 check: 1 ok, 0 warnings, 0 failed."
    world.checks.append({"name": "git", "result": "warn", "message": "old git", "hint": "apt upgrade git"})
    assert ctl("doctor").status == 0
    world.checks.append({"name": "bus", "result": "fail", "message": "broken", "hint": ""})
    result = ctl("doctor")
    assert result.status == 1
    assert "FAIL  bus" in result.out
    assert ctl("doctor", "-o", "json").status == 1


def test_reload_and_shutdown(ctl: Ctl, world: Any) -> None:
    assert ctl("reload").out == "Settings read again.\n"
    failed(ctl("shutdown"), 6, "--yes")
    assert not world.called("Shutdown")
    assert "2 instances stopped" in ctl("shutdown", "--yes").out
    assert world.called("Shutdown")


def test_version(ctl: Ctl) -> None:
    assert ctl("version").out == "ccorchctl 0.1.0\nccorchd 0.1.0\n"
    assert ctl("version", "-o", "json").data["ccorchd"] == "0.1.0"


def test_config(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert ctl("config").out.splitlines()[0].split() == ["KEY", "VALUE", "FROM", "MEANING"]
    assert ctl("config", "get", "instances.max").out == "12\n"
    failed(ctl("config", "get", "instance.max"), 4, "Did you mean instances.max?")
    failed(ctl("config", "get"), 2, "KEY")
    assert ctl("config", "path").out == f"{tmp_path}/ccorch/ccorchd.toml\n"
    import tomllib

    text = ctl("config", "default").out
    assert tomllib.loads(re.sub(r"^#(\w+ = )", r"\1", text, flags=re.M)) == {
        "instances": {"max": 10, "agent": "claude"},
        "claude": {"model": ""},
    }


def test_secret(ctl: Ctl, world: Any) -> None:
    assert ctl("secret", "set", "token", stdin="s3cret\n").out == "Secret token stored.\n"
    assert world.secrets == {"token": "s3cret"}
    failed(ctl("secret", "set", "token"), 2, "no value")
    failed(ctl("secret", "set", "token", "s3cret"), 2, "too many")
    assert ctl("secrets").out == "token\n"
    failed(ctl("secret", "remove", "token"), 6, "--yes")
    assert ctl("secret", "remove", "token", "--yes").status == 0
    assert "No secrets stored" in ctl("secret", "list").out


# ---------------------------------------------------------------- try


def test_try_without_a_terminal_keeps(ctl: Ctl, world: Any, project_folder: Path) -> None:
    os.chdir(project_folder)
    result = ctl("try", "add", "a", "test")
    assert result.status == 0
    assert world.called("CreateInstance")[0][2]["prompt"] == "add a test"
    assert "1 commit on ccorch/brisk-otter" in result.out
    assert "012345678  Add the parser" in result.out
    assert "1 file changed" in result.out
    assert "shop/brisk-otter is kept and goes on." in result.out
    assert not world.called("RegisterProject")


def test_try_registers_when_needed_and_merges(ctl: Ctl, world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    os.chdir(folder)
    result = ctl("try", "--merge", "x")
    assert result.status == 0
    assert world.called("RegisterProject") == [(str(folder), {})]
    assert "fresh/brisk-otter merged; your checkout is at fedcba987654." in result.out
    assert world.called("Remove") == [("fresh/brisk-otter", False)]


def test_try_and_discard(ctl: Ctl, world: Any, project_folder: Path) -> None:
    os.chdir(project_folder)
    failed(ctl("try", "--discard", "x"), 6, "--yes")
    assert not world.called("CreateInstance")
    result = ctl("try", "--discard", "--yes", "x", "-o", "json")
    assert result.data["decision"] == "discard"
    assert world.called("Remove") == [("shop/brisk-otter", True)]
    failed(ctl("try"), 2, "PROMPT")
    failed(ctl("try", "--keep", "--merge", "x"), 2, "--merge")
    failed(ctl("try", " "), 2, "what should")


def test_try_with_nothing_to_merge_keeps(ctl: Ctl, world: Any, project_folder: Path) -> None:
    os.chdir(project_folder)
    world.commits = []
    world.diff = ""
    result = ctl("try", "--merge", "x")
    assert "No changes." in result.out
    assert "no commits to merge; it is kept" in result.out


# ---------------------------------------------------------------- every command


def test_errors_as_json(ctl: Ctl) -> None:
    import json

    result = ctl("show", "shop/nope", "-o", "json")
    assert json.loads(result.err)["error"] == {
        "code": "NoSuchInstance",
        "message": "there is no instance shop/nope",
        "hint": "Did you mean shop/api?",
        "exit_status": 4,
    }
    assert json.loads(ctl("-ojson", "nonsense").err)["error"]["exit_status"] == 2


def test_a_slow_daemon(ctl: Ctl, world: Any) -> None:
    world.delay = 5.0
    failed(ctl("status", "--timeout", "100ms"), 7, "did not answer")


def test_system_is_refused_clearly(ctl: Ctl) -> None:
    failed(ctl("list", "--system"), 6, "shared-host", "--system")
