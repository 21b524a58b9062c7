# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of instances: made, seen, spoken to, stopped, removed; and every way to ask for it wrongly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from daemons import Daemon, eventually, git, make_repository, run


def test_instance_does_real_work_and_is_told_truly(daemon: Daemon, project: str, repository: Path) -> None:
    daemon.ok("instance", "create", "sample/one", "--prompt", "Add a changelog entry about maple syrup")
    record = daemon.wait_state("sample/one", "idle")
    assert record["agent"] == "demo"
    assert record["branch"] == "ccorch/one"
    assert Path(record["worktree"]).is_dir()
    assert record["unit"] in daemon.scopes()
    assert record["pid"] in daemon.processes("sample/one")
    assert record["limits"]["TasksMax"] == "1024"
    assert git(repository, "log", "--oneline", "main..ccorch/one").count("\n") >= 0
    assert git(repository, "rev-list", "--count", "main..ccorch/one") != "0"
    # The main checkout is untouched.
    assert git(repository, "status", "--porcelain") == "?? .ccorch.toml"  # that one is init's
    kinds = {event["kind"] for event in daemon.events("sample/one")}
    assert {"instance.created", "instance.started", "agent.prompt"} <= kinds
    sampled = eventually("its use is sampled", lambda: daemon.instance("sample/one")["memory_current"])
    assert sampled > 1024**2


def test_windows_and_cgroup(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/two", "--prompt", "#sleep 30")
    record = daemon.wait_state("sample/two", "working", "idle")
    socket_path = daemon.naming.runtime_dir / "i" / record["object"].rpartition("i")[2] / "tmux.sock"

    def windows() -> list[str]:
        return run("tmux", "-S", str(socket_path), "list-windows", "-F", "#{window_name}").stdout.split()

    eventually("both windows are there", lambda: windows() == ["agent", "shell"])
    panes = run("tmux", "-S", str(socket_path), "list-panes", "-s", "-F", "#{pane_pid}").stdout.split()
    members = set(daemon.processes("sample/two"))
    assert {int(pid) for pid in panes} <= members
    assert not [unit for unit in daemon.scopes() if unit.startswith("tmux-spawn")]


def test_stop_leaves_an_empty_cgroup_double_forked_children_too(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/orphans", "--prompt", "#orphan\n#sleep 60")
    daemon.wait_state("sample/orphans", "working")

    def detached() -> bool:
        # A child in a session of its own whose parent is not in the scope any more.
        pids = daemon.processes("sample/orphans")
        return any(os.getsid(pid) == pid and _parent(pid) not in pids for pid in pids if _exists(pid))

    eventually("a double-forked child is in the scope", detached)
    members = daemon.processes("sample/orphans")
    cgroup = daemon.cgroup("sample/orphans")
    daemon.ok("instance", "stop", "sample/orphans")
    assert not [pid for pid in members if _exists(pid)]
    assert not cgroup.exists() or not (cgroup / "cgroup.procs").read_text()
    assert daemon.instance("sample/orphans")["state"] == "stopped"
    # Stopping what is stopped is no error.
    daemon.ok("instance", "stop", "sample/orphans")


def test_scope_ends_when_tmux_ends(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/three", "--prompt", "#orphan\n#sleep 60")
    record = daemon.wait_state("sample/three", "working")
    socket_path = daemon.naming.runtime_dir / "i" / record["object"].rpartition("i")[2] / "tmux.sock"
    run("tmux", "-S", str(socket_path), "kill-server")
    daemon.wait_state("sample/three", "failed", "stopped")
    assert record["unit"] not in daemon.scopes()
    assert not socket_path.exists()


def test_restart_resumes_the_session(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/again", "--prompt", "Add a docs page about walnut trees")
    first = daemon.wait_state("sample/again", "idle")
    daemon.ok("instance", "restart", "sample/again")
    second = daemon.wait_state("sample/again", "idle")
    assert second["session_id"] == first["session_id"]
    assert second["restarts"] == 1
    assert second["pid"] != first["pid"]
    daemon.ok("instance", "stop", "sample/again")
    daemon.ok("instance", "start", "sample/again")
    daemon.wait_state("sample/again", "idle")


def test_prompts_arrive_exactly(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/talk")
    daemon.wait_state("sample/talk", "idle")
    for text in ("Umlauts äöü and 🌲; with a tail;", "two\nlines\n\tand a tab", "-starts with a dash", "x" * 5000):
        daemon.ok("instance", "send", "sample/talk", "--", text)
        daemon.wait_state("sample/talk", "idle")
    prompts = [event for event in daemon.events("sample/talk") if event["kind"] == "agent.prompt"]
    assert len(prompts) == 4
    told = [_data(event).get("prompt", event["message"]) for event in prompts]
    assert "🌲; with a tail;" in told[0]
    assert told[3].count("x") >= 500


def test_interrupt_brings_it_back_to_idle(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/long", "--prompt", "#sleep 600")
    daemon.wait_state("sample/long", "working")
    daemon.ok("instance", "interrupt", "sample/long")
    daemon.wait_state("sample/long", "idle")


def test_permission_waits_for_a_person(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/asks", "--prompt", "#permission")
    record = daemon.wait_state("sample/asks", "waiting")
    assert record["reason"] == "permission"
    said = daemon.refused(6, "instance", "send", "sample/asks", "go on")
    assert "waits for permission" in said
    assert "asks" in daemon.ok()  # the overview names what needs a person


def test_crash_and_exit_are_told_apart(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/crash", "--prompt", "#crash")
    failed = daemon.wait_state("sample/crash", "failed", "stopped")
    assert failed["state"] == "failed"
    assert failed["reason"] in ("signal", "exit")
    daemon.ok("instance", "create", "sample/leaves", "--prompt", "#exit 0")
    assert daemon.wait_state("sample/leaves", "stopped", "failed")["state"] == "stopped"
    story = daemon.ok("instance", "why", "sample/crash")
    assert "journalctl --user" in story
    assert not daemon.scopes()


def test_kill_of_the_agent_is_named(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/victim", "--prompt", "#sleep 600")
    record = daemon.wait_state("sample/victim", "working")
    os.kill(record["pid"], signal.SIGKILL)
    failed = daemon.wait_state("sample/victim", "failed")
    assert failed["reason"] == "signal"
    assert "SIGKILL" in failed["reason_text"]
    daemon.ok("instance", "start", "sample/victim")
    daemon.wait_state("sample/victim", "idle", "working")


def test_remove_keeps_work_and_refuses_dirt(daemon: Daemon, project: str, repository: Path) -> None:
    daemon.ok("instance", "create", "sample/work", "--prompt", "Add a changelog entry about beech nuts")
    record = daemon.wait_state("sample/work", "idle")
    dirty = Path(record["worktree"]) / "README.md"
    dirty.write_text("changed by hand\n")
    said = daemon.refused(6, "instance", "remove", "sample/work", "--yes")
    assert "uncommitted" in said
    assert dirty.exists()
    daemon.ok("instance", "remove", "sample/work", "--force", "--yes")
    assert not Path(record["worktree"]).exists()
    assert git(repository, "rev-parse", "--verify", "ccorch/work")
    kept = git(repository, "for-each-ref", "--format=%(refname)", "refs/ccorch/removed").splitlines()
    assert len(kept) == 1
    assert git(repository, "show", f"{kept[0]}:README.md") == "changed by hand"
    # A second instance of that name meets the branch that stayed.
    said = daemon.refused(5, "instance", "create", "sample/work", "--prompt", "x")
    assert "ccorch/work" in said
    assert "sample/work" not in daemon.instances()


def test_remove_of_one_that_did_nothing_takes_its_branch(daemon: Daemon, project: str, repository: Path) -> None:
    daemon.ok("instance", "create", "sample/empty")
    daemon.wait_state("sample/empty", "idle")
    daemon.ok("instance", "remove", "sample/empty", "--yes")
    assert "ccorch/empty" not in git(repository, "branch", "--list")
    assert not daemon.instances()
    left = daemon.naming.runtime_dir / "i"
    assert not left.is_dir() or not list(left.iterdir())


def test_wrong_uses_leave_nothing(daemon: Daemon, project: str, repository: Path, tmp_path: Path) -> None:
    daemon.ok("instance", "create", "sample/x")
    before = git(repository, "worktree", "list"), git(repository, "branch", "--list"), sorted(daemon.instances())
    assert "already" in daemon.refused(5, "instance", "create", "sample/x")
    assert "lots" in daemon.refused(2, "instance", "create", "sample/y", "--memory-max", "lots")
    assert "Upper" in daemon.refused(2, "instance", "create", "sample/Upper")
    assert "nowhere" in daemon.refused(4, "instance", "create", "nowhere/y")
    assert "no-such-ref" in daemon.refused(2, "instance", "create", "sample/y", "--base", "no-such-ref")
    assert "banana" in daemon.refused(2, "instance", "create", "sample/y", "--agent", "banana")
    assert "ghost" in daemon.refused(4, "instance", "show", "sample/ghost")
    assert "empty" in daemon.refused(2, "instance", "send", "sample/x", "")
    empty = tmp_path / "empty"
    run("git", "init", "-q", str(empty))
    assert "commit" in daemon.refused(1, "init", str(empty), "--yes")
    assert daemon.refused(1, "init", str(tmp_path), "--yes")
    after = git(repository, "worktree", "list"), git(repository, "branch", "--list"), sorted(daemon.instances())
    assert before == after


def test_agent_command_runs_any_program(daemon: Daemon, project: str, tmp_path: Path) -> None:
    out = tmp_path / "seen"
    daemon.ok(
        "instance", "create", "sample/any", "--agent", "command", "--option", f"command=sh -c 'env > {out}; sleep 600'"
    )
    daemon.wait_state("sample/any", "working")
    eventually("the program ran", out.exists)
    seen = dict(line.partition("=")[::2] for line in out.read_text().splitlines())
    for name in ("INVOCATION_ID", "NOTIFY_SOCKET", "JOURNAL_STREAM", "WATCHDOG_USEC", "LISTEN_FDS", "COVERAGE_FILE"):
        assert name not in seen
    assert seen["DBUS_SESSION_BUS_ADDRESS"] == "unix:path=/nonexistent"
    assert f"{os.environ['HOME']}/.local/bin" in seen["PATH"].split(":")
    assert seen["CCORCH_INSTANCE"] == "sample/any"
    assert int(seen["PORT"]) >= 42000
    said = daemon.refused(6, "instance", "send", "sample/any", "hello")
    assert "takes no prompts" in said


def test_environment_comes_from_the_caller(daemon: Daemon, project: str, tmp_path: Path) -> None:
    out = tmp_path / "seen"
    daemon.ok(
        "instance", "create", "sample/env", "--agent", "command", "--option", f"command=sh -c 'env > {out}; sleep 600'",
        SSH_AUTH_SOCK="/tmp/agent.sock", MY_SECRET="no", LANG="de_DE.UTF-8",
    )  # fmt: skip
    eventually("the program ran", lambda: out.exists() and out.read_text())
    text = out.read_text()
    assert "SSH_AUTH_SOCK=/tmp/agent.sock" in text
    assert "LANG=de_DE.UTF-8" in text
    assert "MY_SECRET" not in text


def test_setup_steps_need_agreement_and_run_in_the_scope(daemon: Daemon, repository: Path) -> None:
    (repository / ".ccorch.toml").write_text(
        '[setup]\nsteps = ["echo prepared > .prepared", "cat /proc/self/cgroup > .cgroup"]\n'
    )
    (repository / ".gitignore").write_text(".prepared\n.cgroup\n.env\n")
    (repository / ".env").write_text("TOKEN=local\n")
    (repository / ".worktreeinclude").write_text(".env\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "Configure")
    daemon.ok("init", str(repository), "--name", "sample", "--yes")
    said = daemon.ctl("instance", "create", "sample/first")
    if said.returncode == 6:
        assert "agree" in said.stderr
        daemon.ok("project", "agree", "sample", "--yes")
        daemon.ok("instance", "create", "sample/first")
    record = daemon.wait_state("sample/first", "idle")
    worktree = Path(record["worktree"])
    assert (worktree / ".prepared").read_text() == "prepared\n"
    assert record["unit"] in (worktree / ".cgroup").read_text()
    assert (worktree / ".env").read_text() == "TOKEN=local\n"
    # Changed steps are asked for again.
    (repository / ".ccorch.toml").write_text('[setup]\nsteps = ["exit 3"]\n')
    assert "agree" in daemon.refused(6, "instance", "create", "sample/second")
    daemon.ok("project", "agree", "sample", "--yes")
    daemon.ok("instance", "create", "sample/second")
    failed = daemon.wait_state("sample/second", "failed")
    assert failed["reason"] == "setup"
    assert "3" in failed["reason_text"]


def test_max_instances_is_kept(daemon: Daemon, project: str) -> None:
    daemon.naming.config_dir.mkdir(parents=True, exist_ok=True)
    (daemon.naming.config_dir / "ccorchd.toml").write_text("[instances]\nmax = 2\n")
    assert daemon.systemctl("reload").returncode == 0
    daemon.ok("instance", "create", "sample/a")
    daemon.ok("instance", "create", "sample/b")
    assert "2 instances run already" in daemon.refused(6, "instance", "create", "sample/c")
    assert "sample/c" not in daemon.instances()


def test_reload_refuses_a_wrong_file_and_keeps_the_old(daemon: Daemon) -> None:
    daemon.naming.config_dir.mkdir(parents=True, exist_ok=True)
    (daemon.naming.config_dir / "ccorchd.toml").write_text("[instances]\nmaxx = 2\n")
    said = daemon.refused(2, "reload")
    assert "maxx" in said
    assert "instances.max" in said
    assert daemon.systemctl("reload").returncode != 0
    assert daemon.active
    assert '"10"' in daemon.ok("config", "get", "instances.max", "-o", "json") or "10" in daemon.ok(
        "config", "get", "instances.max"
    )


def test_five_at_once_meet_nobody(daemon: Daemon, project: str, repository: Path) -> None:
    names = [f"five{number}" for number in range(5)]
    for name in names:
        daemon.ok(
            "instance", "create", f"sample/{name}", "--prompt", f"#stash\n#gc\n#port\nAdd a docs page about {name}"
        )
    for name in names:
        assert daemon.wait_state(f"sample/{name}", "idle", "failed", timeout=120)["state"] == "idle"
    ports = {record["port"] for record in daemon.instances().values()}
    assert len(ports) == 5
    for name in names:
        assert git(repository, "rev-list", "--count", f"main..ccorch/{name}") != "0"
        assert git(Path(daemon.instance(f"sample/{name}")["worktree"]), "status", "--porcelain") == ""
    assert git(repository, "stash", "list") == ""
    git(repository, "fsck", "--no-dangling")


def test_names_are_short_inside_a_checkout(daemon: Daemon, project: str, repository: Path) -> None:
    daemon.ok("instance", "create", "short", cwd=repository)
    record = daemon.wait_state("sample/short", "idle")
    assert "short" in daemon.ok("instance", "show", "short", cwd=repository)
    assert "short" in daemon.ok("instance", "show", "short", cwd=Path(record["worktree"]))


def test_attach_several_at_once_and_detach(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/seen")
    daemon.wait_state("sample/seen", "idle")
    environment = {**os.environ, "CCORCH_SUFFIX": daemon.naming.suffix, "TERM": "xterm"}
    viewers = [
        subprocess.Popen(
            # script(1) gives each viewer a terminal of its own.
            ["script", "-qec", f"ccorchctl instance attach sample/seen {words}", "/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        for words in ("", "--read-only")
    ]
    try:
        socket_path = daemon.naming.runtime_dir / "i" / daemon.instance("sample/seen")["object"].rpartition("i")[2]

        def clients() -> list[str]:
            asked = run("tmux", "-S", str(socket_path / "tmux.sock"), "list-clients", "-F", "#{client_flags}")
            return asked.stdout.splitlines()

        eventually("both are attached", lambda: len(clients()) == 2)
        assert sum("read-only" in flags for flags in clients()) == 1
        assert "2" in daemon.ok("instance", "detach", "sample/seen")
        for viewer in viewers:
            viewer.wait(30)
    finally:
        for viewer in viewers:
            if viewer.poll() is None:
                viewer.kill()
            viewer.wait()
            assert viewer.stdin is not None
            viewer.stdin.close()
    assert daemon.instance("sample/seen")["state"] == "idle"
    assert "terminal" in daemon.refused(6, "instance", "attach", "sample/seen")


def test_merge_and_diff(daemon: Daemon, project: str, repository: Path) -> None:
    daemon.ok("instance", "create", "sample/merge", "--prompt", "Add a docs page about hazel")
    daemon.wait_state("sample/merge", "idle")
    assert "hazel" in daemon.ok("instance", "diff", "sample/merge")
    daemon.ok("instance", "merge", "sample/merge", "--yes")
    assert git(repository, "rev-list", "--count", "main..ccorch/merge") == "0"
    daemon.ok("instance", "remove", "sample/merge", "--yes")
    assert "ccorch/merge" not in git(repository, "branch", "--list")


def test_two_projects_and_the_worktree_tree(daemon: Daemon, project: str, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other")
    daemon.ok("init", str(other), "--name", "other", "--yes")
    daemon.ok("instance", "create", "sample/one")
    daemon.ok("instance", "create", "other/one")
    assert len(json.loads(daemon.ok("worktree", "list", "-o", "json"))) == 2
    tree = daemon.ok("worktree", "tree")
    assert "sample" in tree
    assert "other" in tree
    assert "has instances" in daemon.refused(6, "project", "remove", "other", "--yes")
    daemon.ok("instance", "remove", "other/one", "--yes")
    daemon.ok("project", "remove", "other", "--yes")
    assert other.is_dir()


def test_port_taken_by_another_program_is_not_leased(daemon: Daemon, project: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 42000))
        taken.listen()
        daemon.ok("instance", "create", "sample/p")
        assert daemon.instance("sample/p")["port"] == 42001


@pytest.mark.parametrize("kept", ["prompt", "tool"])
def test_journal_reads_well(daemon: Daemon, project: str, kept: str) -> None:
    daemon.ok("instance", "create", f"sample/{kept}", "--prompt", "Add a changelog entry about larch")
    record = daemon.wait_state(f"sample/{kept}", "idle")

    def lines() -> str:
        return run("journalctl", "--user", "-u", record["unit"], "--no-pager", "-o", "cat").stdout

    eventually(f"the journal has a line for the {kept}", lambda: kept in lines())
    assert "Traceback" not in lines()


def _data(event: dict[str, object]) -> dict[str, str]:
    data = event["data"]
    return dict(json.loads(data)) if isinstance(data, str) else dict(data)  # type: ignore[call-overload]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
