# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agents of a trial run: their jobs, how they are followed, and what they have done in the end."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from run import daemon
from run import repository as repositories
from run.places import Place
from run.problem import Problem

JOBS = {
    "docs": "Write documentation about how this project works and where to look first.",
    "tests": "Write a small module that turns titles into file names, with a test.",
    "tidy": "Tidy up the files: trailing blanks, final line feeds, tabs.",
    "report": "Count files, lines and open to-dos in a report.",
    "headers": "Add docstrings to the files that have none.",
    "changelog": "Add an entry to the changelog about this week's work.",
    "module": "Implement a small module that converts units, with a test.",
    "guide": "Write a guide for people who come to this project for the first time.",
    "review": "Report the longest files and what could be split.",
}
MOST = len(JOBS)

_SETTLED = ("idle", "waiting", "stopped", "failed")


def launch(place: Place, project: str, number: int, agent: str, say: Callable[[str], None]) -> list[str]:
    """Create *number* instances with different jobs and return their names, which no instance or branch had before."""
    assert place.host_repository is not None
    taken = {row["name"] for row in daemon.instances(place, project)}
    taken |= {name.removeprefix("ccorch/") for name in repositories.branches(place.host_repository)}
    names = []
    for job, prompt in list(JOBS.items())[:number]:
        name, count = job, 1
        while name in taken:
            count += 1
            name = f"{job}-{count}"
        create(place, project, name, agent, prompt)
        names.append(name)
        say(f"  {name:<12} {prompt}")
    return names


def create(place: Place, project: str, name: str, agent: str, prompt: str, *options: str) -> None:
    address = f"{project}/{name}"
    command = ["instance", "create", address, "--agent", agent, "--prompt", prompt, *options]
    done = daemon.ctl(place, *command, timeout=90, cwd=place.repository)
    if done.returncode:
        raise Problem(f"{address} could not be created: {done.stderr.strip()}")


def chosen(place: Place, project: str, names: list[str]) -> list[dict[str, Any]]:
    rows = {row["name"]: row for row in daemon.instances(place, project)}
    return [rows[name] for name in names if name in rows]


def _state(row: dict[str, Any]) -> str:
    reason = row.get("reason_text") or row.get("reason") or ""
    state = str(row["state"])
    return f"{state}: {reason}" if reason and state in ("waiting", "failed", "stopped") else state


def _size(value: Any) -> str:
    return "-" if value is None else f"{int(value) / (1 << 20):.0f} MB"


def _seconds(value: Any) -> str:
    return "-" if value is None else f"{float(value):.1f} s"


class Table:
    """The live table: redrawn on a terminal, otherwise a line for each change."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._lines = 0
        self._last: dict[str, str] = {}
        self._began = time.monotonic()

    def show(self, rows: list[dict[str, Any]]) -> None:
        if not self._live:
            for row in rows:
                what = f"{_state(row)}  {row.get('doing') or ''}".rstrip()
                if self._last.get(row["name"]) != what:
                    self._last[row["name"]] = what
                    print(f"  {time.monotonic() - self._began:5.1f} s  {row['name']:<12} {what}", flush=True)
            return
        width = shutil.get_terminal_size().columns
        lines = [f"{'NAME':<12} {'STATE':<9} {'CPU':>8} {'MEMORY':>8} {'TASKS':>5}  DOING"]
        for row in rows:
            usage = f"{_seconds(row.get('cpu_usage_seconds')):>8} {_size(row.get('memory_current')):>8}"
            tasks = row.get("tasks_current")
            doing = row.get("doing") or (row.get("reason_text") or "")
            lines.append(f"{row['name']:<12} {row['state']:<9} {usage} {'-' if tasks is None else tasks:>5}  {doing}")
        if self._lines:
            sys.stdout.write(f"\x1b[{self._lines}F")
        for line in lines:
            sys.stdout.write("\x1b[2K" + _plain(line)[: width - 1] + "\n")
        self._lines = len(lines)
        sys.stdout.flush()


def _plain(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def follow(place: Place, project: str, names: list[str], *, limit: float) -> list[dict[str, Any]]:
    """Show what the instances do until each is idle, waits for a person or has ended; at most *limit* seconds."""
    table = Table()
    deadline = time.monotonic() + limit
    while True:
        asked = time.monotonic()
        rows = chosen(place, project, names)
        table.show(rows)
        if len(rows) == len(names) and all(row["state"] in _SETTLED for row in rows):
            return rows
        if time.monotonic() > deadline:
            return rows
        # A question costs the machine something too: where that takes long it is asked less often.
        time.sleep(max(0.3, 2 * (time.monotonic() - asked)))


def report(place: Place, rows: list[dict[str, Any]], attach: str) -> None:
    """Print for each instance: branch, commits, size of the diff, CPU time, peak memory, how to attach."""
    print()
    estimated = False
    head = place.run(["git", "rev-parse", "HEAD"], cwd=place.repository).stdout.strip()
    for row in rows:
        tree = str(row.get("worktree") or place.repository)
        base = place.run(["git", "merge-base", "HEAD", head], cwd=tree).stdout.strip() or head
        commits = place.run(["git", "rev-list", "--count", f"{base}..HEAD", "--"], cwd=tree).stdout.strip() or "?"
        stat = place.run(["git", "diff", "--shortstat", base, "--"], cwd=tree).stdout.strip() or "no change"
        guessed = row.get("measured") == "processes"
        estimated = estimated or guessed
        about = "about " if guessed else ""
        print(f"{row['name']}: {_state(row)}")
        print(f"  branch {row['branch']}, {commits} commit{'' if commits == '1' else 's'}, {stat}")
        print(f"  CPU {_seconds(row.get('cpu_usage_seconds'))}, peak memory {about}{_size(row.get('memory_peak'))}")
        print(f"  {attach.format(name=row['name'])}")
    if estimated:
        print("\nMemory is estimated: there is no memory controller here, so the processes' own figures are added up.")


def has_memory_controller(place: Place) -> bool:
    """Tell whether MemoryMax= can bite: the controller has reached the user manager's cgroup."""
    script = (
        "group=$(systemctl --user show --property=ControlGroup --value); "
        'for root in /sys/fs/cgroup /sys/fs/cgroup/unified; do cat "$root$group/cgroup.controllers" 2>/dev/null; done'
    )
    return "memory" in place.run(["sh", "-c", script]).stdout.split()


def prove(place: Place, project: str, names: list[str], say: Callable[[str], None]) -> None:
    """Show that an instance that takes all memory, or the death of the daemon, does no harm to the others."""
    before = {
        row["name"]: row.get("pid")
        for row in chosen(place, project, names)
        if row["state"] in ("idle", "waiting", "working")
    }
    if has_memory_controller(place):
        _balloon(place, project, say)
    else:
        say("\nProof: limits cannot bite here (no memory controller in this cgroup), so the daemon is killed instead.")
        took = daemon.kill(place)
        say(f"  ccorchd was killed with SIGKILL and answered again after {took:.1f} s")
    rows = {row["name"]: row for row in chosen(place, project, names)}
    going = [name for name, pid in before.items() if name in rows and rows[name].get("pid") == pid]
    say(f"  {len(going)} of {len(before)} still running, the same processes as before")
    if len(going) != len(before):
        raise Problem(f"These are not: {', '.join(sorted(set(before) - set(going)))}. See: make ctl ARGS='why NAME'")


def _balloon(place: Place, project: str, say: Callable[[str], None]) -> None:
    taken = {row["name"] for row in daemon.instances(place, project)}
    name = next(name for name in ("balloon", *(f"balloon-{n}" for n in range(2, 100))) if name not in taken)
    say(f"\nProof: one more agent, {name}, takes memory without end; its limit is 256 MB.")
    create(place, project, name, "demo", "#balloon", "--memory-max", "256M", "--memory-high", "infinity")
    deadline = time.monotonic() + 60 * place.slow
    while time.monotonic() < deadline:
        row = chosen(place, project, [name])[0]
        if row.get("oom_kills") or row.get("reason") == "out-of-memory":
            break
        time.sleep(0.3)
    else:
        raise Problem(f"{name} was not killed. See: make ctl ARGS='why {name}'")
    say(f"  the kernel killed what it had started, {row.get('oom_kills') or 1} time(s), within its limit")
    why = daemon.ctl(place, "instance", "why", f"{project}/{name}")
    for line in why.stdout.splitlines():
        if re.search(r"memory|killed|oom", line, re.IGNORECASE):
            say(f"  why: {line.strip()}")
            break
    daemon.ctl(place, "--yes", "instance", "remove", "--force", f"{project}/{name}")
