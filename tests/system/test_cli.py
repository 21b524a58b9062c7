# SPDX-License-Identifier: LGPL-2.1-or-later
"""A newcomer's way through ccorchctl: what is printed on the way, and the mistakes that end in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchd.contract import Naming
from daemons import Daemon, eventually, git, make_repository, run, suffix_for

FIRST_COMMIT = 180.0
"""Seconds that a newcomer may wait for the first commit of an agent."""


class Terminal:
    """A terminal of 80 columns with a shell in it, and somebody who types and reads: in a tmux of the test's own."""

    def __init__(self, socket: Path, folder: Path, environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        shell = ["env", *(f"{name}={value}" for name, value in environment.items()), "PS1=$ ", "sh"]
        started = run(*self._tmux, "new-session", "-d", "-x", "80", "-y", "40", "-c", str(folder), *shell)
        assert started.returncode == 0, started.stderr
        run(*self._tmux, "set-option", "-g", "status", "off")

    def type(self, text: str, *, enter: bool = True) -> None:
        run(*self._tmux, "send-keys", "-l", text)
        if enter:
            self.key("Enter")

    def key(self, *keys: str) -> None:
        run(*self._tmux, "send-keys", *keys)

    def screen(self) -> str:
        return run(*self._tmux, "capture-pane", "-p", "-S", "-").stdout

    def reads(self, pattern: str) -> str:
        """Wait until *pattern* is on the screen, or above it; return all of that."""
        try:
            found: str = eventually(f"{pattern!r} on the terminal", lambda: self._match(pattern))
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows:\n{self.screen()}") from None
        return found

    def _match(self, pattern: str) -> str:
        text = self.screen()
        return text if re.search(pattern, text, re.MULTILINE) else ""

    def close(self) -> None:
        run(*self._tmux, "kill-server")


@pytest.fixture
def terminal(daemon: Daemon, repository: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal whose shell stands in the repository."""
    found = Terminal(tmp_path / "tmux", repository, {"CCORCH_SUFFIX": daemon.naming.suffix, "NO_COLOR": "1"})
    try:
        yield found
    finally:
        found.close()


def one_sentence(ended: subprocess.CompletedProcess[str], status: int) -> str:
    """Assert that *ended* failed with *status* and one clear sentence, with at most a hint below it; return it."""
    assert ended.returncode == status, ended.stdout + ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("ccorchctl: ")
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("Hint: ")), ended.stderr
    return ended.stderr


def branches(repository: Path) -> list[str]:
    return git(repository, "for-each-ref", "--format=%(refname:short)", "refs/heads/ccorch/").split()


# ---------------------------------------------------------------- the newcomer's path


def test_from_init_to_remove(daemon: Daemon, repository: Path) -> None:
    """Each step says what it did and what comes next; nobody is asked, and nothing is told that did not happen."""
    said = daemon.ok("init", cwd=repository)
    assert "Project sample: " in said
    assert "Wrote " in said
    assert said.splitlines()[-1].startswith("Next: ccorchctl try ")
    again = daemon.ok("init", cwd=repository / "lib")
    assert "(registered already)" in again
    assert "Wrote " not in again

    said = daemon.ok("try", "Add a changelog entry about maple syrup", cwd=repository)
    name = re.findall(r"^sample/(\S+) started: branch ccorch/\1 in ", said, re.MULTILINE)[0]
    assert f"sample/{name} is idle" in said
    assert f"1 commit on ccorch/{name}\n" in said
    assert "CHANGELOG.md" in said
    assert said.splitlines()[-1] == f"Next: ccorchctl attach sample/{name}, or ccorchctl merge sample/{name}"

    shown = daemon.ok("show", name, cwd=repository)
    assert "State: idle since " in shown
    assert "Prompt: Add a changelog entry about maple syrup" in shown
    assert f"Branch: ccorch/{name} (from HEAD)" in shown
    story = daemon.ok("why", name, cwd=repository)
    assert story.splitlines()[0].startswith(f"sample/{name} is idle (")
    assert "prompt: Add a changelog entry about maple syrup" in story
    assert story.splitlines()[-1] == f"More: journalctl --user -u {daemon.naming.scope('sample', name)}"
    # The audit trail has a verb of its own; a story that told each call once more would be twice as long.
    assert ": done" not in story
    assert ": done" not in daemon.ok("events")
    assert ": done" in daemon.ok("audit")

    assert "1 file changed" in daemon.ok("diff", "--stat", name, cwd=repository)
    patch = daemon.ok("diff", name, cwd=repository)
    checked = subprocess.run(["git", "apply", "--check"], input=patch, text=True, cwd=repository, check=False)
    assert checked.returncode == 0, "a diff in a pipe is one that git takes"

    (repository / ".ccorch.toml").unlink()
    merged = daemon.ok("merge", name, cwd=repository)
    assert merged == f"sample/{name} merged; the checkout is at {git(repository, 'rev-parse', 'HEAD')[:12]}.\n"
    assert "maple syrup" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")

    assert "Add --yes" in one_sentence(daemon.ctl("remove", name, cwd=repository), 6)
    removed = daemon.ok("remove", name, "--yes", cwd=repository)
    assert removed == (
        f"sample/{name} removed. Branch ccorch/{name} held nothing that is not merged, and went with it.\n"
    )
    assert branches(repository) == []
    assert f"sample/{name} has been removed." in daemon.ok("why", name, cwd=repository)
    assert "No instances yet, 1 project." in daemon.ok(cwd=repository)


def test_try_without_a_terminal_merges_and_discards(daemon: Daemon, project: str, repository: Path) -> None:
    (repository / ".ccorch.toml").unlink()
    said = daemon.ok("try", "--merge", "Add a changelog entry about rye", cwd=repository)
    assert "merged; your checkout is at" in said
    assert branches(repository) == []
    refusal = daemon.ctl("try", "--discard", "Add a changelog entry about rice", cwd=repository)
    assert "needs a confirmation" in one_sentence(refusal, 6)
    assert daemon.instances() == {}
    said = daemon.ok("try", "--discard", "--yes", "Add a changelog entry about rice", cwd=repository)
    assert daemon.instances() == {}
    # Work is never thrown away unasked: the branch is still there, and said to be.
    (left,) = branches(repository)
    assert f"Branch {left} stays" in said
    data = json.loads(daemon.ok("try", "-o", "json", "Add a changelog entry about oats", cwd=repository))
    assert data["decision"] == "keep"
    assert data["instance"]["state"] == "idle"
    assert len(data["commits"]) == 1
    assert data["instance"]["branch"] != left


def test_try_on_a_terminal(daemon: Daemon, project: str, repository: Path, terminal: Terminal) -> None:
    (repository / ".ccorch.toml").unlink()
    terminal.type("ccorchctl try 'Add a changelog entry about maple syrup'")
    terminal.reads(r"^answer: ")
    terminal.key("C-b", "d")
    asked = terminal.reads(r"What shall become of it\? \[keep\]")
    assert "1 commit on ccorch/" in asked
    assert "[m]erge" in asked
    terminal.type("x")
    terminal.reads("Please answer one of: keep, merge, discard.")
    terminal.type("d")
    terminal.reads(r"Discard sample/\w+ \(1 commit\)\? \[y/N\]")
    terminal.type("n")
    (address,) = daemon.instances()
    assert f"{address} is kept and goes on." in terminal.reads("^Next: ccorchctl attach")

    # From inside a tmux, as here, and with several there at once.
    terminal.type(f"clear; tmux clear-history; ccorchctl attach {address}")
    terminal.reads(r"^answer: ")
    terminal.key("C-b", "d")
    terminal.type("ccorchctl remove --all; echo asked, $?")
    terminal.reads(r"Remove sample/\w+ and its worktree\? \[y/N\]")
    terminal.key("C-c")
    terminal.reads("^asked, 130$")
    terminal.type("clear; tmux clear-history; ccorchctl events -f; echo followed, $?")
    terminal.reads(r"^\S+  sample/\w+  answer: ")
    terminal.key("C-c")
    terminal.reads("^followed, 130$")
    assert list(daemon.instances()) == [address]


def test_following_outlives_a_restart_of_the_daemon(daemon: Daemon, project: str, terminal: Terminal) -> None:
    daemon.ok("create", "sample/one")
    daemon.wait_state("sample/one", "idle")
    terminal.type("ccorchctl logs -f one")
    terminal.reads("session started")
    daemon.kill()
    daemon.wait_state("sample/one", "idle")
    daemon.ok("send", "sample/one", "Add a changelog entry about maple syrup")
    daemon.wait_state("sample/one", "idle")
    log = terminal.reads("answer: Added an entry")
    assert log.count("prompt: Add a changelog entry about maple syrup") == 1
    terminal.key("C-c")


# ---------------------------------------------------------------- the installed daemon


def forget(naming: Naming) -> None:
    """End the installed daemon and remove what it keeps, so that the next call meets a newcomer's machine."""
    run("systemctl", "--user", "stop", naming.daemon_unit)
    run("systemctl", "--user", "disable", naming.daemon_unit)
    run("systemctl", "--user", "reset-failed", naming.daemon_unit)
    for folder in (naming.state_dir, naming.data_dir, naming.config_dir, naming.runtime_dir):
        shutil.rmtree(folder, ignore_errors=True)


def installed(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CCORCH_SUFFIX"}
    return run("ccorchctl", *words, cwd=cwd, env=environment | {"NO_COLOR": "1"})


@pytest.fixture
def newcomer() -> Iterator[Naming]:
    """The names of the installed ccorch, which nobody has used yet; afterwards nobody has, again."""
    naming = Naming("")
    forget(naming)
    try:
        yield naming
    finally:
        forget(naming)


def active(naming: Naming) -> str:
    return run("systemctl", "--user", "is-active", naming.daemon_unit).stdout.strip()


def test_the_first_call_starts_the_daemon(newcomer: Naming, repository: Path) -> None:
    """D-Bus activation of the installed ccorchd.service; and from nothing to an agent's first commit in time."""
    assert active(newcomer) == "inactive"
    refused = installed("--no-autostart", "list", cwd=repository)
    assert "the daemon is not running (org.ccorch1)" in one_sentence(refused, 3)
    assert active(newcomer) == "inactive"

    began = time.monotonic()
    said = installed("init", cwd=repository)
    assert said.returncode == 0, said.stdout + said.stderr
    assert active(newcomer) == "active"
    # There is no Claude Code here, so the next step that is offered is one that works.
    assert said.stdout.splitlines()[-1] == 'Next: ccorchctl try --agent demo "what should be done"'
    lacking = one_sentence(installed("try", "Add a changelog entry", cwd=repository), 1)
    assert "'claude' is not installed" in lacking
    assert "--agent demo" in lacking
    tried = installed("try", "--agent", "demo", "Add a changelog entry about maple syrup", cwd=repository)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert len(branches(repository)) == 1
    assert git(repository, "rev-list", "--count", f"main..{branches(repository)[0]}") == "1"
    assert time.monotonic() - began < FIRST_COMMIT

    assert installed("shutdown", "--yes", cwd=repository).returncode == 0
    eventually("the daemon is gone", lambda: active(newcomer) == "inactive")
    listed = installed("list", "-o", "json", cwd=repository)
    assert [row["state"] for row in json.loads(listed.stdout)] == ["stopped"]
    assert active(newcomer) == "active"
    assert installed("start", "--all", cwd=repository).returncode == 0
    assert installed("remove", "--all", "--yes", "--force", cwd=repository).returncode == 0


def test_a_daemon_that_cannot_start_is_told_with_its_reason(newcomer: Naming, tmp_path: Path) -> None:
    """And without the bus's own time-out of minutes; once the file is right, the next call works."""
    newcomer.config_dir.mkdir(parents=True)
    file = newcomer.config_dir / "ccorchd.toml"
    file.write_text("[instances]\nmaxx = 3\n", encoding="utf-8")
    began = time.monotonic()
    said = one_sentence(installed("list", cwd=tmp_path), 3)
    assert time.monotonic() - began < 15
    assert f"the daemon cannot start: {file}:2: unknown setting instances.maxx" in said
    # The unit is stopped by hand while the bus still believes that it is being started.
    run("systemctl", "--user", "stop", newcomer.daemon_unit)
    file.unlink()
    listed = installed("list", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout == "No instances. In a project's checkout: ccorchctl create NAME\n"


# ---------------------------------------------------------------- one sentence each, nothing left


def test_no_session_bus_is_one_sentence(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    for address in ("bogus", "unix:path=/nonexistent"):
        environment["DBUS_SESSION_BUS_ADDRESS"] = address
        for words in (("list",), ("init", str(tmp_path)), ("try", "x"), ("shutdown", "--yes")):
            said = one_sentence(run("ccorchctl", *words, env=environment, cwd=tmp_path), 1)
            assert "no session bus: cannot connect to " + address in said
        asked = run("ccorchctl", "doctor", env=environment)
        assert asked.returncode == 1
        assert asked.stdout.startswith("FAIL  bus  no session bus")


def test_no_tmux_is_one_sentence_and_leaves_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, repository: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for program in Path(folder).iterdir():
            link = programs / program.name
            if program.name != "tmux" and not link.is_symlink():
                link.symlink_to(program)
    daemon = Daemon(suffix_for(request.node.name), tmp_path)
    daemon.start(CCORCH_INSTANCES_AGENT="demo", PATH=str(programs))
    try:
        said = daemon.ctl("init", str(repository), "--name", "sample")
        assert said.returncode == 0
        assert re.search(r"^FAIL  tmux +tmux is not installed", said.stdout, re.MULTILINE)
        assert said.stdout.splitlines()[-1].startswith("Next: mend what failed above")
        for words in (("create", "sample/one"), ("create",), ("try", "Add a changelog entry")):
            refused = daemon.ctl(*words, cwd=repository)
            assert "tmux is not installed, or not in PATH" in one_sentence(refused, 1)
        assert daemon.instances() == {}
        assert branches(repository) == []
        assert len(git(repository, "worktree", "list", "--porcelain").split("\n\n")) == 1
        assert not [path for path in (daemon.naming.data_dir / "worktrees").rglob("*") if path.is_file()]
        assert daemon.scopes() == []
        folder = daemon.naming.runtime_dir / "i"
        assert not folder.exists() or not list(folder.iterdir())
    finally:
        daemon.close()


def test_register_only_writes_nothing(daemon: Daemon, repository: Path, tmp_path: Path) -> None:
    assert daemon.ok("project", "add", str(repository / "lib"), "--name", "sample") == f"Project sample: {repository}\n"
    assert git(repository, "status", "--porcelain") == ""
    assert "registered already" in daemon.ok("project", "add", str(repository))
    said = one_sentence(daemon.ctl("project", "add", str(repository), "--name", "other"), 5)
    assert "never renamed" in said
    assert "is in no git repository" in one_sentence(daemon.ctl("project", "add", str(tmp_path)), 1)
    empty = make_repository(tmp_path / "second")
    git(empty, "update-ref", "-d", "HEAD")
    assert "has no commits yet" in one_sentence(daemon.ctl("project", "add", str(empty)), 1)
    assert [row["name"] for row in json.loads(daemon.ok("project", "list", "-o", "json"))] == ["sample"]
