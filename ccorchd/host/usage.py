# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a scope uses and what the host has. The owner of psutil.

The kernel's own accounts come first (cgroup v2, each file that exists). Where the host gives the user no controller,
memory and tasks are added up from the processes, and the figures say so.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from ccorchd.host.cgroup import members, mount_point
from ccorchd.model import Usage

_CONTROLLERS: Final = frozenset({"cpu", "memory", "pids", "io"})
_V1_MEMORY: Final = Path("/sys/fs/cgroup/memory")


@dataclass(slots=True)
class _History:
    """What has to be remembered about one cgroup because the kernel does not tell it."""

    inode: int
    memory_peak: int = 0
    cpu_of: dict[tuple[int, float], float] = field(default_factory=dict)
    cpu_of_the_dead: float = 0.0


class UsageReader:
    """Reads what scopes use: a few small files each, no process started (0.2 ms; more where processes are added up)."""

    def __init__(self) -> None:
        self._histories: dict[Path, _History] = {}

    def sample(self, cgroup: Path) -> Usage:
        """Return what *cgroup* uses now. All figures are None when it is gone."""
        now = time.time()
        try:
            inode = cgroup.stat().st_ino
        except OSError:
            self._histories.pop(cgroup, None)
            return Usage(time=now)
        history = self._histories.get(cgroup)
        if history is None or history.inode != inode:  # a new scope of the same name starts from nothing
            history = self._histories[cgroup] = _History(inode)

        memory, tasks, cpu = _number(cgroup / "memory.current"), _number(cgroup / "pids.current"), _cpu_seconds(cgroup)
        source = "cgroup"
        if memory is None or tasks is None or cpu is None:
            source = "processes"
            summed_memory, summed_tasks, summed_cpu = _add_up(members(cgroup), history, memory is None, cpu is None)
            memory = summed_memory if memory is None else memory
            tasks = summed_tasks if tasks is None else tasks
            cpu = summed_cpu if cpu is None else cpu
        history.memory_peak = max(history.memory_peak, memory)
        peak = _number(cgroup / "memory.peak")  # kernel 5.19
        return Usage(
            time=now,
            memory=memory,
            memory_peak=history.memory_peak if peak is None else peak,
            cpu_seconds=cpu,
            tasks=tasks,
            oom_kills=_keyed(cgroup / "memory.events", "oom_kill"),
            memory_pressure=_pressure(cgroup / "memory.pressure"),
            cpu_pressure=_pressure(cgroup / "cpu.pressure"),
            source=source,
        )


def _add_up(pids: list[int], history: _History, with_memory: bool, with_cpu: bool) -> tuple[int, int, float]:
    """Return bytes, tasks and CPU seconds of *pids*. CPU time of processes that have ended since is kept."""
    memory = tasks = 0
    alive: dict[tuple[int, float], float] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                tasks += process.num_threads()
                if with_cpu:
                    times = process.cpu_times()
                    alive[pid, process.create_time()] = times.user + times.system
            if with_memory:
                memory += _memory_of(process)
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile, or it is not ours to read
    if with_cpu:
        history.cpu_of_the_dead += sum(spent for key, spent in history.cpu_of.items() if key not in alive)
        history.cpu_of = alive
    return memory, tasks, history.cpu_of_the_dead + sum(alive.values())


def _memory_of(process: psutil.Process) -> int:
    """Return the process' share of memory in bytes: PSS, which counts shared pages once, else RSS."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no number


def _keyed(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return None


def _cpu_seconds(cgroup: Path) -> float | None:
    micros = _keyed(cgroup / "cpu.stat", "usage_usec")
    return None if micros is None else micros / 1_000_000


def _pressure(path: Path) -> float | None:
    """Return the per cent of the last ten seconds in which something waited (PSI, ``some avg10``)."""
    try:
        words = path.read_text().split()
    except OSError:  # no such file, or EOPNOTSUPP on a kernel with psi=0
        return None
    if words[:1] != ["some"]:
        return None
    return next((float(word[6:]) for word in words if word.startswith("avg10=")), None)


def controllers(cgroup: Path) -> set[str]:
    """Return which of ``cpu``, ``memory``, ``pids`` and ``io`` the kernel enforces in *cgroup*.

    Of a cgroup that does not exist yet the nearest one above it answers, with what it can pass on.
    """
    mount = mount_point()
    for folder in (cgroup, *cgroup.parents):
        try:
            return set((folder / "cgroup.controllers").read_text().split()) & _CONTROLLERS
        except OSError:
            if folder == mount:
                break
    return set()


def host_memory() -> int:
    """Return bytes: the host's memory, or the least limit of the control groups that ccorchd itself runs in."""
    total = int(psutil.virtual_memory().total)
    limits = [_number(folder / name) for folder, name, _ in _memory_cgroups()]
    return min([total, *(limit for limit in limits if limit)])


def host_status() -> dict[str, float | int]:
    """Return what the host has and how busy it is; a figure that this kernel does not give is left out.

    ``cpus``; ``memory_total`` and ``memory_available`` in bytes; ``load``, the one-minute average; ``memory_pressure``,
    ``cpu_pressure`` and ``io_pressure`` in per cent of the last ten seconds.
    """
    available = int(psutil.virtual_memory().available)
    for folder, limit_name, usage_name in _memory_cgroups():
        limit, used = _number(folder / limit_name), _number(folder / usage_name)
        if limit and used is not None:
            available = min(available, max(limit - used, 0))
    status: dict[str, float | int] = {
        "cpus": len(os.sched_getaffinity(0)),
        "memory_total": host_memory(),
        "memory_available": available,
        "load": os.getloadavg()[0],
    }
    for kind in ("memory", "cpu", "io"):
        if (pressure := _pressure(Path("/proc/pressure") / kind)) is not None:
            status[f"{kind}_pressure"] = pressure
    return status


def _memory_cgroups() -> list[tuple[Path, str, str]]:
    """Return each cgroup around us that may limit memory, with its file names for limit and usage (cgroups(7))."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:
            root, names = mount_point(), ("memory.max", "memory.current")
        elif "memory" in kinds.split(","):
            root, names = _V1_MEMORY, ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        here = root / path.lstrip("/")
        # A container may show the path as its host sees it; then the mount itself is the container's own cgroup.
        while here != root and root in here.parents:
            found.append((here, *names))
            here = here.parent
        found.append((root, *names))
    return found
