# SPDX-License-Identifier: LGPL-2.1-or-later
"""What instances use, sampled once an interval without a fork, and the naming of what the kernel killed for memory.

With ``OOMPolicy=continue`` a scope's Result stays ``success`` after an out-of-memory kill, so the truth is the count in
``memory.events``. Whom it hit is told by comparing the processes of two samples: best effort, since the kernel's own
message needs rights that a user may not have.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from ccorchd.host.systemd import members
from ccorchd.host.usage import UsageReader
from ccorchd.model import Usage

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CROWDED = 0.3
"""Share of MemoryMax above which the processes are looked at one by one."""
_LARGE = 0.1
"""Share of MemoryMax that a victim must have had: a small process that is missing has ended by itself."""
_RECENT = 10.0
"""Seconds in which a kill that a sample has seen may still be why the agent ended."""


@dataclass(slots=True)
class Seen:
    """What is remembered of an instance between two samples."""

    usage: Usage
    processes: dict[int, tuple[str, int]] = field(default_factory=dict)
    """PID to name and resident bytes."""
    told: int = 0
    """How many of its kills have been returned."""
    postponed: bool = False
    """A kill is counted, but nobody was missing yet."""


@dataclass(frozen=True, slots=True)
class Kill:
    """An out-of-memory kill: how many, and the likely victim's PID, name and last known resident bytes."""

    count: int
    pid: int
    name: str
    resident: int
    total: int = 0
    """All kills of this scope so far."""

    def sentence(self, limit: int | None) -> str:
        """Say it for people."""
        at = f" at its limit of {limit / 1024**2:.0f} MiB" if limit else ""
        if not self.pid:
            return f"out of memory{at}: the kernel killed a process of this instance"
        seen = f", last seen with {self.resident / 1024**2:.0f} MiB" if self.resident else ""
        return f"out of memory{at}: the kernel killed {self.name} (PID {self.pid}{seen})"


class Sampler:
    """Keeps the last sample of each scope."""

    def __init__(self, reader: UsageReader) -> None:
        self._reader = reader
        self._seen: dict[int, Seen] = {}
        self._kills: dict[int, tuple[float, Kill]] = {}

    def last(self, instance_id: int) -> Usage | None:
        """Return the newest sample, of the last run when there is no process now."""
        seen = self._seen.get(instance_id)
        return seen.usage if seen else None

    def forget(self, instance_id: int) -> None:
        """Drop what was seen of an instance, or of its earlier run."""
        self._seen.pop(instance_id, None)
        self._kills.pop(instance_id, None)

    def recent_kill(self, instance_id: int) -> Kill | None:
        """Return a kill that was returned in the last seconds: a sample may come between it and the agent's end."""
        when, kill = self._kills.get(instance_id, (0.0, None))
        return kill if time.monotonic() - when < _RECENT else None

    def sample(self, instance_id: int, cgroup: Path, memory_max: int | None, *, final: bool = False) -> Kill | None:
        """Read *cgroup* once (a dozen small files, no fork); return what the kernel killed since the last sample.

        The kernel counts a kill before the victim has gone. Unless this sample is the *final* one, a kill of which
        nobody is missing yet is therefore returned by the next.
        """
        usage = self._reader.sample(cgroup)
        if not cgroup.exists():
            return None  # gone while it was read: what was seen before stays the last word
        before = self._seen.get(instance_id) or Seen(usage)
        processes: dict[int, tuple[str, int]] = {}
        if memory_max and usage.memory and usage.source == "cgroup" and usage.memory > memory_max * _CROWDED:
            processes = _processes(cgroup)
        total = usage.oom_kills or 0
        if total <= before.told:
            self._seen[instance_id] = Seen(usage, processes, before.told)
            return None
        large = {pid: found for pid, found in before.processes.items() if found[1] > (memory_max or 0) * _LARGE}
        victim = _victim(large, set(members(cgroup)))
        if not victim[0] and large and not before.postponed and not final:
            self._seen[instance_id] = Seen(usage, before.processes | processes, before.told, postponed=True)
            return None
        kill = Kill(total - before.told, *victim, total)
        self._seen[instance_id] = Seen(usage, processes, total)
        self._kills[instance_id] = time.monotonic(), kill
        return kill


def _processes(cgroup: Path) -> dict[int, tuple[str, int]]:
    found: dict[int, tuple[str, int]] = {}
    for pid in members(cgroup):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            continue
        found[pid] = (name, resident)
    return found


def _victim(before: dict[int, tuple[str, int]], alive: set[int]) -> tuple[int, str, int]:
    """Return the largest process that is missing: the kernel kills the one with the highest badness, mostly memory."""
    gone = [(resident, pid, name) for pid, (name, resident) in before.items() if pid not in alive]
    if not gone:
        return 0, "", 0
    resident, pid, name = max(gone)
    return pid, name, resident
