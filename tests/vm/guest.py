# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtual machine with ccorch installed, seen from the host: commands, records, cgroups, kernel messages."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ccorchd.contract import INSTANCE_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH, Naming
from machine.vm import Machine

WAIT = 180.0
"""Seconds: an emulated processor runs Python ten times slower, and the host may be busy too."""
MANAGER = (Naming().bus_name, MANAGER_PATH, MANAGER_INTERFACE)
REPOSITORY = "/home/dev/sample"
DATABASE = "/home/dev/.local/state/ccorch/ccorch.db"
WORKTREES = "/home/dev/.local/share/ccorch/worktrees"

_REMOVE = "Remove 'a{sv}' 1 force b true"
_SOUND = f"""
import sqlite3
database = sqlite3.connect("file:{DATABASE}?mode=ro", uri=True)
print(*[row[0] for check in ("integrity_check", "foreign_key_check") for row in database.execute("PRAGMA " + check)])
"""

Record = dict[str, Any]


def eventually(what: str, predicate: Callable[[], Any], timeout: float = WAIT) -> Any:
    """Return the first true value of *predicate*; fail with *what* after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.2)


def _side_by_side(commands: Iterable[str]) -> str:
    """Return a script that runs all commands at once and fails if one does."""
    lines = [f'{command} & waited="$waited $!"' for command in commands]
    return "\n".join([*lines, "for one in $waited; do wait $one || exit 1; done"])


def plain(value: Any) -> Any:
    """Take away the type notes of ``busctl --json``."""
    if isinstance(value, dict):
        if value.keys() == {"type", "data"}:
            return plain(value["data"])
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


class Guest:
    """ccorch in the machine, used as its ordinary user does. What polls uses busctl: it starts ten times faster."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # -- commands --------------------------------------------------------------------------------------------------

    def shell(self, script: str, *, root: bool = False, check: bool = True, timeout: float = WAIT) -> str:
        """Run a script of sh and return what it printed."""
        ended = self.machine.run(["sh", "-c", script], user="root" if root else "", timeout=timeout)
        assert not check or ended.returncode == 0, f"{script}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.machine.run(["ccorchctl", *words], env={"NO_COLOR": "1"}, cwd=REPOSITORY, timeout=WAIT)

    def ok(self, *words: str) -> str:
        """Run ccorchctl, expect success, return what it printed."""
        ended = self.ctl(*words)
        assert ended.returncode == 0, f"ccorchctl {shlex.join(words)}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def refused(self, status: int, *words: str) -> str:
        """Run ccorchctl, expect exit status *status* and one clear sentence (a hint may follow); return both."""
        ended = self.ctl(*words)
        assert ended.returncode == status, f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr
        assert ended.stderr.startswith("ccorchctl: "), ended.stderr
        assert len(ended.stderr.strip().splitlines()) <= 2, ended.stderr
        return ended.stderr

    def create(self, **instances: Iterable[str]) -> None:
        """Create instances side by side, each with the options given for its name."""
        scripts = [
            f"ccorchctl instance create sample/{name} {shlex.join(options)}" for name, options in instances.items()
        ]
        self.shell(_side_by_side(scripts), timeout=2 * WAIT)

    def clear(self) -> None:
        """Remove every instance with its branch; afterwards no scope of ours and no worktree may be left."""
        removals = [
            f"busctl --user --timeout={WAIT} call {MANAGER[0]} {record['object']} {INSTANCE_INTERFACE} {_REMOVE}"
            for record in self.instances().values()
        ]
        self.shell(_side_by_side(removals))
        assert not self.instances()
        assert not self.scopes()
        branches = self.shell(f"git -C {REPOSITORY} for-each-ref --format='%(refname:short)' refs/heads/ccorch").split()
        if branches:
            self.shell(f"git -C {REPOSITORY} branch -q -D {shlex.join(branches)}")
        assert self.worktrees() == 0

    # -- the daemon ------------------------------------------------------------------------------------------------

    def call(self, member: str, *arguments: str) -> Any:
        """Call a method of the manager; None when it cannot be reached."""
        ended = self.machine.run(["busctl", "--user", "--json=short", "call", *MANAGER, member, *arguments])
        return plain(json.loads(ended.stdout))[0] if ended.returncode == 0 else None

    def instances(self) -> dict[str, Record]:
        """Return all instances by address, none while the daemon cannot be reached."""
        return {record["address"]: record for record in self.call("ListInstances", "a{sv}", "0") or []}

    def instance(self, address: str) -> Record:
        return self.instances()[address]

    def wait_state(self, address: str, *states: str, timeout: float = WAIT) -> Record:
        """Wait until the instance is in one of *states*; return its record."""
        return self.wait_states({address: states}, timeout)[address]

    def wait_states(self, wanted: Mapping[str, Iterable[str]], timeout: float = WAIT) -> dict[str, Record]:
        """Wait until each instance is in one of its states at the same time; return all records."""
        seen: dict[str, Record] = {}

        def reached() -> bool:
            seen.clear()
            seen.update(self.instances())
            return all(address in seen and seen[address]["state"] in states for address, states in wanted.items())

        try:
            eventually(f"{wanted}", reached, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}\n{self.journal()}") from None
        return seen

    def events(self, address: str, *kinds: str) -> list[Record]:
        """Return the instance's events of *kinds* (all without any), oldest first."""
        found = self.call("ListEvents", "a{sv}", "2", "instance", "s", address, "limit", "u", "5000")
        return [event for event in found if not kinds or event["kind"] in kinds]

    def journal(self) -> str:
        return self.shell("journalctl --user -u ccorchd --no-pager -b -n 40 -o cat", check=False)

    def sound(self) -> str:
        """Return what SQLite thinks of the database: ``ok``, or what is wrong with it."""
        return self.machine.run(["python3", "-c", _SOUND], check=True).stdout.strip()

    # -- systemd, git and the kernel -------------------------------------------------------------------------------

    def scopes(self) -> dict[str, str]:
        """Return our scopes that are active, with the invocation id of each."""
        script = "systemctl --user show -p Id,InvocationID,ActiveState 'ccorch-*.scope'"
        found = {}
        for block in self.shell(script).split("\n\n"):
            fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if fields.get("ActiveState") == "active":
                found[fields["Id"]] = fields["InvocationID"]
        return found

    def cgroup(self, address: str, *files: str) -> dict[str, str]:
        """Return the content of files of the cgroup of an instance's scope."""
        unit = Naming().scope(*address.split("/"))
        group = f'/sys/fs/cgroup"$(systemctl --user show --value -p ControlGroup {unit})"'
        script = f'cd {group} && for file in {shlex.join(files)}; do echo "== $file"; cat $file; done'
        parts = self.shell(script).split("== ")[1:]
        return {name: text.strip() for name, _, text in (part.partition("\n") for part in parts)}

    def counter(self, address: str, file: str, key: str) -> int:
        """Return one figure of a keyed file of the cgroup."""
        return int(dict(line.split() for line in self.cgroup(address, file)[file].splitlines())[key])

    def kernel(self, pattern: str) -> list[str]:
        """Return the kernel's messages of this boot with *pattern* in them."""
        return [line for line in self.shell("dmesg", root=True).splitlines() if pattern in line]

    def worktrees(self) -> int:
        """Return how many worktrees git knows beside the main checkout."""
        listed = self.shell(f"git -C {REPOSITORY} worktree list --porcelain")
        return listed.count("worktree ") - 1

    def commits(self, branch: str) -> int:
        return int(self.shell(f"git -C {REPOSITORY} rev-list --count main..{branch}"))
