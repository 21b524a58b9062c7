# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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


def test_victim_that_still_dies_is_named_by_the_next_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = {10: ("small", MIB), 20: ("large", 80 * MIB), 30: ("agent", 12 * MIB)}
    monkeypatch.setattr("ccorchd.instances.sampler.members", lambda cgroup: sorted(alive))
    monkeypatch.setattr("ccorchd.instances.sampler._processes", lambda cgroup: dict(alive))
    sampler = Sampler(UsageReader())
    cgroup = group(tmp_path / "scope", 90 * MIB, 0)
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    group(cgroup, 90 * MIB, 1)
    del alive[10]  # it ends by itself
    assert sampler.sample(1, cgroup, 100 * MIB) is None  # counted, but nobody is missing who could be the one
    del alive[20]
    kill = sampler.sample(1, cgroup, 100 * MIB)
    assert kill == Kill(1, 20, "large", 80 * MIB, 1)
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    assert sampler.recent_kill(1) == kill


def test_final_sample_does_not_wait_for_the_victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccorchd.instances.sampler.members", lambda cgroup: [os.getpid()])
    sampler = Sampler(UsageReader())
    cgroup = group(tmp_path / "scope", 90 * MIB, 0)
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    assert sampler.recent_kill(1) is None
    group(cgroup, 90 * MIB, 1)
    kill = sampler.sample(1, cgroup, 100 * MIB, final=True)
    assert kill is not None
    assert kill.pid == 0
    sampler.forget(1)
    assert sampler.recent_kill(1) is None


def test_sentences_name_what_is_known() -> None:
    assert "its limit of 60 MiB" in Kill(1, 0, "", 0).sentence(60 * MIB)
    named = Kill(1, 4711, "python3", 50 * MIB).sentence(60 * MIB)
    assert "python3 (PID 4711" in named
    assert "50 MiB" in named
    assert "limit" not in Kill(1, 0, "", 0).sentence(None)
    assert Kill(1, 4711, "its agent", 0).sentence(None).endswith("killed its agent (PID 4711)")


def test_scope_that_is_gone_leaves_its_last_sample(tmp_path: Path) -> None:
    sampler = Sampler(UsageReader())
    cgroup = group(tmp_path / "scope", 20 * MIB, 0)
    sampler.sample(1, cgroup, 100 * MIB)
    shutil.rmtree(cgroup)
    assert sampler.sample(1, cgroup, 100 * MIB) is None
    usage = sampler.last(1)
    assert usage is not None
    assert usage.memory == 20 * MIB
