# SPDX-License-Identifier: LGPL-2.1-or-later
"""A ccorchd of a test's own: its own suffix, unit, bus name, slice and directories, run by the real user manager."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ccorchd.contract import Naming

INSTALLED_UNIT = Path("/usr/lib/systemd/user/ccorchd.service")
WAIT = 30.0


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, output captured."""
    options.setdefault("timeout", 120)
    return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)


def eventually(what: str, predicate: Callable[[], Any], timeout: float = WAIT) -> Any:
    """Return the first true value of *predicate*; fail with *what* after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)


class Daemon:
    """One installation of ccorch under the suffix *suffix*."""

    def __init__(self, suffix: str, home: Path) -> None:
        self.naming = Naming(suffix)
        self.home = home
        self.variables: dict[str, str] = {}
        self._unit_file = Path(os.environ["XDG_RUNTIME_DIR"]) / "systemd/user" / self.naming.daemon_unit

    # -- the unit --------------------------------------------------------------------------------------------------

    def start(self, *, program: str = "/usr/bin/ccorchd", **variables: str) -> None:
        """Write the unit (the installed one under our names) and start it; returns when it is ready."""
        self.variables.update(variables)
        text = INSTALLED_UNIT.read_text(encoding="utf-8")
        text = text.replace("RuntimeDirectory=ccorch\n", f"RuntimeDirectory={self.naming.stem}\n")
        text = text.replace("org.ccorch1 ", f"{self.naming.bus_name} ")
        text = text.replace("ExecStart=/usr/bin/ccorchd\n", f"ExecStart={program}\n")
        assigned = {"CCORCH_SUFFIX": self.naming.suffix, **self.variables}
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_FILE", "PYTHONPATH"):
            if name in os.environ:
                assigned.setdefault(name, os.environ[name])
        lines = "".join(f'Environment="{name}={value}"\n' for name, value in assigned.items())
        self._unit_file.parent.mkdir(parents=True, exist_ok=True)
        self._unit_file.write_text(text.replace("[Service]\n", f"[Service]\n{lines}"), encoding="utf-8")
        run("systemctl", "--user", "daemon-reload")
        started = run("systemctl", "--user", "start", self.naming.daemon_unit)
        assert started.returncode == 0, started.stderr + self.journal()

    def systemctl(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run("systemctl", "--user", verb, *words, self.naming.daemon_unit)

    @property
    def pid(self) -> int:
        """The daemon's PID; waits for one while systemd restarts it (kill(2) takes 0 for the whole process group)."""
        found: int = eventually("the daemon has a process", self._main_pid)
        return found

    def _main_pid(self) -> int:
        return int(self.systemctl("show", "--value", "-p", "MainPID").stdout or 0)

    def kill(self) -> None:
        """SIGKILL the daemon and wait until systemd has it running again."""
        before = self.pid
        os.kill(before, 9)
        eventually("the daemon is back", lambda: self._main_pid() not in (0, before) and self.active)

    @property
    def active(self) -> bool:
        return self.systemctl("is-active").stdout.strip() == "active"

    def journal(self) -> str:
        return run("journalctl", "--user", "-u", self.naming.daemon_unit, "--no-pager", "-n", "60").stdout

    def close(self) -> None:
        """Stop everything and leave nothing."""
        if self.active:
            self.systemctl("stop")
        self.systemctl("stop")
        for unit in self.scopes():
            run("systemctl", "--user", "stop", unit)
        run("systemctl", "--user", "stop", self.naming.slice)
        self._unit_file.unlink(missing_ok=True)
        run("systemctl", "--user", "daemon-reload")
        run("systemctl", "--user", "reset-failed")
        for folder in (
            self.naming.state_dir,
            self.naming.data_dir,
            self.naming.config_dir,
            self.naming.runtime_dir,
        ):
            shutil.rmtree(folder, ignore_errors=True)

    # -- the command line ------------------------------------------------------------------------------------------

    def ctl(self, *words: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ccorchctl against this daemon."""
        environment = {**os.environ, "CCORCH_SUFFIX": self.naming.suffix, "NO_COLOR": "1", **variables}
        return run("ccorchctl", *words, cwd=cwd or self.home, env=environment)

    def ok(self, *words: str, cwd: Path | None = None, **variables: str) -> str:
        """Run ccorchctl, expect success, return what it printed."""
        ended = self.ctl(*words, cwd=cwd, **variables)
        assert ended.returncode == 0, f"ccorchctl {' '.join(words)}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def refused(self, status: int, *words: str, cwd: Path | None = None) -> str:
        """Run ccorchctl, expect exit status *status* and one clear sentence, return what it said."""
        ended = self.ctl(*words, cwd=cwd)
        assert ended.returncode == status, f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr
        assert ended.stderr.startswith("ccorchctl: "), ended.stderr
        return ended.stderr

    def instances(self) -> dict[str, dict[str, Any]]:
        """Return all instances by address."""
        rows = json.loads(self.ok("instance", "list", "-o", "json"))
        return {row["address"]: row for row in rows}

    def instance(self, address: str) -> dict[str, Any]:
        return self.instances()[address]

    def wait_state(self, address: str, *states: str, timeout: float = WAIT) -> dict[str, Any]:
        """Wait until the instance is in one of *states*; return its record."""

        def reached() -> dict[str, Any] | None:
            record = self.instances().get(address)
            return record if record and record["state"] in states else None

        try:
            found: dict[str, Any] = eventually(f"{address} is {' or '.join(states)}", reached, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.instances().get(address)}\n{self.journal()}") from None
        return found

    def events(self, address: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.ok("events", "--instance", address, "-o", "json"))
        return rows

    # -- what systemd and the kernel say ---------------------------------------------------------------------------

    def scopes(self) -> list[str]:
        """Return our scopes that systemd has loaded and active."""
        listed = run(
            "systemctl", "--user", "list-units", "--plain", "--no-legend", f"{self.naming.stem}-*.scope"
        ).stdout
        return [line.split()[0] for line in listed.splitlines() if line.split()]

    def cgroup(self, address: str) -> Path:
        """Return the cgroup folder of an instance's scope."""
        unit = self.naming.scope(*address.split("/"))
        group = run("systemctl", "--user", "show", "--value", "-p", "ControlGroup", unit).stdout.strip()
        return Path("/sys/fs/cgroup") / group.lstrip("/")

    def processes(self, address: str) -> list[int]:
        """Return the PIDs in the instance's scope."""
        folder = self.cgroup(address)
        listing = [folder, *folder.rglob("*")] if folder.is_dir() else []
        return [int(pid) for place in listing if place.is_dir() for pid in (place / "cgroup.procs").read_text().split()]


def git(repository: Path, *words: str) -> str:
    """Run git and return its output without the last newline."""
    ended = run("git", "-C", str(repository), *words)
    assert ended.returncode == 0, f"git {' '.join(words)}: {ended.stderr}"
    return ended.stdout.rstrip("\n")


def make_repository(path: Path, files: Mapping[str, str] | None = None) -> Path:
    """Make a git repository with one commit."""
    path.mkdir(parents=True)
    run("git", "init", "-q", "-b", "main", str(path))
    git(path, "config", "user.name", "Test")
    git(path, "config", "user.email", "test@example.com")
    content = files or {
        "README.md": "# sample\n\nA sample.\n",
        "app.py": "def add(a, b):\n    return a + b\n",
        "lib/text.py": "def shout(text):\n    return text.upper()\n",
    }
    for name, text in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    git(path, "add", "-A")
    git(path, "commit", "-q", "-m", "Start")
    return path


def suffix_for(name: str) -> str:
    """Make a suffix from a test's name."""
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("test_"))[:9] + secrets.token_hex(3)
