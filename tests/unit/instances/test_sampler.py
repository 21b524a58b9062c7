# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from pathlib import Path

from ccorchd.host.usage import UsageReader
from ccorchd.instances.sampler import Kill, Sampler

MIB = 1024**2


def group(path: Path, memory: int, kills: int, pids: str = "") -> Path:
    path.mkdir(exist_ok=True)
    (path / "cgroup.controllers").write_text("cpu memory pids\n")
    (path / "cgroup.procs").write_text(pids)
    (path / "memory.current").write_text(f"{memory}\n")
    (path / "memory.peak").write_text(f"{memory}\n")
    (path / "memory.events").write_text(f"low 0\nhigh 0\nmax 0\noom {kills}\noom_kill {kills}\n")
    (path / "pids.current").write_text("1\n")
    (path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n")
    return path


def test_kills_are_counted_once(tmp_path: Path) -> None:
    sampler = Sampler(UsageReader())
    cgroup = group(tmp_path / "scope", 10 * MIB, 0)
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    group(cgroup, 20 * MIB, 2)
    kill = sampler.sample(1, cgroup, 100 * MIB)
    assert kill is not None
    assert kill.count == 2
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    usage = sampler.last(1)
    assert usage is not None
    assert usage.memory == 20 * MIB
    assert usage.cpu_seconds == 1.5
    sampler.forget(1)
    assert sampler.last(1) is None


def test_sentences_name_what_is_known() -> None:
    assert "its limit of 60 MiB" in Kill(1, 0, "", 0).sentence(60 * MIB)
    named = Kill(1, 4711, "python3", 50 * MIB).sentence(60 * MIB)
    assert "python3 (PID 4711" in named
    assert "50 MiB" in named
    assert "limit" not in Kill(1, 0, "", 0).sentence(None)
