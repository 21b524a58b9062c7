# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured, and how. Each measure has its rival in the same run, taken in turns with it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from figures import Row, interleaved

from ccorchd.agents.base import hook_argv
from ccorchd.contract import INSTANCE_INTERFACE, MANAGER_INTERFACE, MANAGER_PATH
from ccorchd.host.dbus import Bus, Variant
from daemons import Daemon, eventually, git, make_repository, run

TEAM: Final = 10
"""How many instances the figures about a full house are for; the default of ``instances.max``."""
FILES: Final = 200
"""Files in the sample repository: a small project. More only add to what both sides spend in git."""
_MILLION: Final = 1e6


def _call_time(argv: Sequence[str], **options: Any) -> float:
    """Run a program to its end; return the milliseconds from before its fork to after its wait."""
    began = time.perf_counter_ns()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    return (time.perf_counter_ns() - began) / _MILLION


def _written_time(path: Path) -> int:
    """Wait for the start time that a launched program writes: nanoseconds since the epoch."""

    def whole() -> str:
        text = path.read_text() if path.exists() else ""
        return text if text.endswith("\n") else ""

    return int(eventually("the launched program runs", whole))


def _unit_times(unit: str, *names: str) -> list[float]:
    """Return properties of *unit* that are monotonic microseconds, as milliseconds."""
    shown = run("systemctl", "--user", "show", "--value", *(f"--property={name}" for name in names), unit).stdout
    return [int(line) / 1000 for line in shown.split()]


class Bench:
    """A daemon of its own, a sample repository, and the measures on them."""

    def __init__(self, scratch: Path, factor: float) -> None:
        self._scratch = scratch
        self._factor = factor
        self._daemon = Daemon("bench", scratch)
        self._repository = scratch / "sample"
        self._number = 0
        self._team: list[str] = []

    def rounds(self, usual: int) -> int:
        return max(1, round(usual * self._factor))

    async def run(self, names: Sequence[str]) -> list[Row]:
        files = {f"src/part{n % 20}/module{n}.py": f"# module {n}\n" + "value = 1\n" * 200 for n in range(FILES)}
        make_repository(self._repository, files)
        self._daemon.start(CCORCH_INSTANCES_MAX=str(TEAM + 2))
        self._daemon.ok("init", str(self._repository), "--name", "sample", "--yes")
        rows = []
        for name in names:
            print(f"measuring {name} ...", flush=True)
            rows += await MEASURES[name](self)
        return rows

    def close(self) -> None:
        self._daemon.close()

    def _next(self) -> str:
        self._number += 1
        return f"n{self._number}"

    # -- launching -------------------------------------------------------------------------------------------------

    def _program(self, stamp: Path) -> str:
        return f"date +%s%N >{shlex.quote(str(stamp))}; exec sleep 600"

    async def launch(self) -> list[Row]:
        """From the call on the bus to the start of the agent's program, against doing the same by hand."""
        bus = await Bus.connect()
        ours, rival = [], []
        for round_ in range(1 + self.rounds(40)):
            own, other = await self._launch_ours(bus), self._launch_bare()
            if round_:
                ours.append(own)
                rival.append(other)
        await bus.close()
        whole, bare = interleaved(self.rounds(10), self._launch_command_line, self._launch_bare)
        by_hand = "git worktree add + systemd-run --scope + tmux"
        return [
            Row("launch: CreateInstance to the agent's start", "ms", ours, by_hand, rival, "ratio", 1.5),
            Row("launch: whole `ccorchctl instance create`", "ms", whole, by_hand, bare),
        ]

    async def _launch_ours(self, bus: Bus) -> float:
        name = self._next()
        stamp = self._scratch / f"{name}.stamp"
        command = shlex.join(["/bin/sh", "-c", self._program(stamp)])
        options = {"agent": Variant("s", "command"), "options": Variant("a{ss}", {"command": command})}
        options["environment"] = Variant("a{ss}", {"PATH": os.environ["PATH"]})
        where = (self._daemon.naming.bus_name, MANAGER_PATH, MANAGER_INTERFACE)
        began = time.time_ns()
        [path] = await bus.call(*where, "CreateInstance", "ssa{sv}", "sample", name, options)
        took = (_written_time(stamp) - began) / _MILLION
        force = {"force": Variant("b", True)}
        await bus.call(self._daemon.naming.bus_name, path, INSTANCE_INTERFACE, "Remove", "a{sv}", force, timeout=30)
        return took

    def _launch_command_line(self) -> float:
        name = self._next()
        stamp = self._scratch / f"{name}.stamp"
        command = shlex.join(["/bin/sh", "-c", self._program(stamp)])
        words = ["instance", "create", f"sample/{name}", "--agent", "command", "--option", f"command={command}"]
        began = time.time_ns()
        self._daemon.ok(*words)
        ended = time.time_ns()
        _written_time(stamp)
        self._daemon.ok("instance", "remove", f"sample/{name}", "--force", "--yes")
        return (ended - began) / _MILLION

    def _launch_bare(self) -> float:
        name = self._next()
        stamp, tree, socket = (self._scratch / f"{name}.{kind}" for kind in ("stamp", "tree", "sock"))
        unit = f"bench-{name}"
        quoted = {key: shlex.quote(str(value)) for key, value in {"tree": tree, "sock": socket}.items()}
        script = (
            f"cd {shlex.quote(str(self._repository))} && "
            f"git worktree add --quiet -b bare/{name} {quoted['tree']} HEAD && "
            f"exec systemd-run --user --quiet --scope --unit={unit} "
            f"tmux -S {quoted['sock']} -f /dev/null new-session -d -c {quoted['tree']} "
            f"/bin/sh -c {shlex.quote(self._program(stamp))}"
        )
        began = time.time_ns()
        ended = run("/bin/sh", "-c", script)
        assert ended.returncode == 0, ended.stderr
        took = (_written_time(stamp) - began) / _MILLION
        run("systemctl", "--user", "stop", f"{unit}.scope")
        git(self._repository, "worktree", "remove", "--force", str(tree))
        git(self._repository, "branch", "--quiet", "-D", f"bare/{name}")
        return took

    # -- the daemon ------------------------------------------------------------------------------------------------

    def _ready(self) -> float:
        restarted = self._daemon.systemctl("restart")
        assert restarted.returncode == 0, restarted.stderr
        began, ready = _unit_times(
            self._daemon.naming.daemon_unit, "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic"
        )
        return ready - began

    def _python_unit(self) -> float:
        unit = f"bench-{self._next()}.service"
        options = ["--quiet", f"--unit={unit}", "--property=Type=oneshot", "--property=RemainAfterExit=yes"]
        run("systemd-run", "--user", *options, sys.executable, "-c", "pass")
        began, ended = _unit_times(unit, "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        run("systemctl", "--user", "stop", unit)
        return ended - began

    async def ready(self) -> list[Row]:
        """From the start of the daemon's process to ready, as the user manager saw it."""
        ours, rival = interleaved(self.rounds(10), self._ready, self._python_unit)
        floor = "python3 -c pass as a unit"
        rows = [Row("daemon: start to ready, no instances", "ms", ours, floor, rival, "median", 1000)]
        await self._full_house()
        ours, rival = interleaved(self.rounds(5), self._ready, self._python_unit)
        assert sum(record["state"] == "idle" for record in self._daemon.instances().values()) == TEAM
        return [*rows, Row(f"daemon: restart to ready, {TEAM} instances", "ms", ours, floor, rival)]

    async def _full_house(self) -> None:
        """Have idle demo agents, once for all measures that want them."""
        for number in range(len(self._team), TEAM):
            address = f"sample/demo{number}"
            self._daemon.ok("instance", "create", address, "--agent", "demo", "--option", "pace=0")
            self._team.append(address)
        for address in self._team:
            self._daemon.wait_state(address, "idle", timeout=60)

    async def memory(self) -> list[Row]:
        """The daemon's proportional set size: right after a restart, and with ten instances after some use."""
        self._daemon.systemctl("restart")
        fresh = self._pss()
        await self._full_house()
        ours = []
        for _ in range(self.rounds(10)):
            self._daemon.instances()
            await asyncio.sleep(0.5)  # memory is sampled over some time on purpose
            ours.append(self._pss())
        eventually("no child of the daemon is left", lambda: not self._children())
        return [
            Row(f"daemon: PSS with {TEAM} idle instances", "MB", ours, "right after a restart", [fresh], "maximum", 60),
        ]

    def _pss(self) -> float:
        """Return the main process's PSS in MB (10^6 bytes); proc(5) gives kB, which are KiB."""
        lines = Path(f"/proc/{self._daemon.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))

    def _children(self) -> list[str]:
        tasks = Path(f"/proc/{self._daemon.pid}/task")
        return [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    # -- hooks and clients -----------------------------------------------------------------------------------------

    async def hook(self) -> list[Row]:
        """The helper that an agent waits for at each tool call, with a payload of 2 KB."""
        await self._full_house()
        [record] = [row for row in self._daemon.instances().values() if row["address"] == self._team[0]]
        folder = self._daemon.naming.runtime_dir / "i" / str(record["object"]).rpartition("/i")[2]
        assert (folder / "events.sock").is_socket()
        spool = self._scratch / "spool"
        spool.mkdir()
        fields = {"session_id": record["session_id"], "cwd": record["worktree"], "tool_name": "Bash"}
        text = {"hook_event_name": "PostToolUse", **fields, "tool_input": {"command": "make test"}}
        payload = json.dumps({**text, "tool_response": {"stdout": "x" * 1800}}).encode()
        argv = hook_argv("PostToolUse")

        def helper(socket: Path) -> Callable[[], float]:
            environment = {"PATH": os.environ["PATH"], "CCORCH_SOCKET": str(socket), "CCORCH_SPOOL": str(spool)}
            return lambda: _call_time(argv, input=payload, env=environment)

        def floor() -> float:
            return _call_time(["/bin/true"], input=payload)

        before = self._count_events()
        answered, true = interleaved(self.rounds(60), helper(folder / "events.sock"), floor)
        assert not list(spool.iterdir()), "the daemon did not answer"
        assert self._count_events() - before >= len(answered)
        spooled, again = interleaved(self.rounds(60), helper(self._scratch / "nobody"), floor)
        assert len(list(spool.iterdir())) > len(spooled)
        shutil.rmtree(spool)
        environment = {"CCORCH_SOCKET": str(folder / "events.sock"), "PATH": os.environ["PATH"]}
        _call_time(hook_argv("Stop"), input=payload, env=environment)  # back to idle, for the next measure
        return [
            Row("hook helper: 2 KB, committed by the daemon", "ms", answered, "/bin/true", true, "difference", 25),
            Row("hook helper: 2 KB, nobody answers, spooled", "ms", spooled, "/bin/true", again, "difference", 25),
        ]

    def _count_events(self) -> int:
        return len(json.loads(self._daemon.ok("events", "--instance", self._team[0], "-n", "all", "-o", "json")))

    async def listing(self) -> list[Row]:
        """What a person waits for who looks."""
        await self._full_house()
        naming = self._daemon.naming
        environment = {**os.environ, "CCORCH_SUFFIX": naming.suffix}

        def ours() -> float:
            return _call_time(["ccorchctl", "instance", "list"], cwd=self._scratch, env=environment)

        call = ["busctl", "--user", "call", naming.bus_name, MANAGER_PATH, MANAGER_INTERFACE, "ListInstances", "a{sv}"]

        def rival() -> float:
            return _call_time([*call, "0"])

        listed, called = interleaved(self.rounds(15), ours, rival)
        return [Row(f"ccorchctl instance list, {TEAM} instances", "ms", listed, "the same call by busctl", called)]


MEASURES: Final[dict[str, Callable[[Bench], Awaitable[list[Row]]]]] = {
    "launch": Bench.launch,
    "ready": Bench.ready,
    "memory": Bench.memory,
    "hook": Bench.hook,
    "listing": Bench.listing,
}
