# SPDX-License-Identifier: LGPL-2.1-or-later
"""Usage figures from cgroup files as the kernel writes them, and from processes where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ccorchd.host import usage
from ccorchd.host.cgroup import cgroup_path, members, populated
from ccorchd.host.usage import UsageReader

FILES = {
    "memory.current": "104857600\n",
    "memory.peak": "209715200\n",
    "memory.events": "low 0\nhigh 12\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
    "memory.pressure": "some avg10=1.25 avg60=0.50 avg300=0.10 total=9\nfull avg10=0.75 avg60=0.2 avg300=0 total=5\n",
    "cpu.pressure": "some avg10=33.00 avg60=0.50 avg300=0.10 total=1000\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
    "pids.current": "17\n",
    "cgroup.procs": "",
}


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    folder = tmp_path / "ccorch-shop.one.scope"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process with 50 MiB and three tasks, that says when it has them."""
    code = (
        "import sys, threading; hold = bytearray(b'x') * (50 << 20); stop = threading.Event()\n"
        "for _ in range(2): threading.Thread(target=stop.wait, daemon=True).start()\n"
        "sum(range(3_000_000)); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_every_figure_comes_from_the_cgroup(cgroup: Path) -> None:
    sample = UsageReader().sample(cgroup)
    assert sample.memory == 100 << 20
    assert sample.memory_peak == 200 << 20
    assert sample.cpu_seconds == 2.5
    assert sample.tasks == 17
    assert sample.oom_kills == 1
    assert (sample.memory_pressure, sample.cpu_pressure) == (1.25, 33.0)
    assert sample.source == "cgroup"


def test_the_peak_is_tracked_where_the_kernel_has_none(cgroup: Path) -> None:
    (cgroup / "memory.peak").unlink()
    reader = UsageReader()
    reader.sample(cgroup)
    (cgroup / "memory.current").write_text("1000\n")
    sample = reader.sample(cgroup)
    assert (sample.memory, sample.memory_peak) == (1000, 100 << 20)


def test_a_new_scope_of_the_same_name_starts_from_nothing(cgroup: Path) -> None:
    (cgroup / "memory.peak").unlink()
    reader = UsageReader()
    reader.sample(cgroup)
    kept = cgroup.rename(cgroup.with_suffix(".old"))  # keeps the inode number from being used again
    shutil.copytree(kept, cgroup)
    (cgroup / "memory.current").write_text("1000\n")
    assert reader.sample(cgroup).memory_peak == 1000


def test_processes_are_added_up_without_controllers(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "below/cgroup.procs").write_text(f"{worker.pid}\n{2**22 - 1}\n")
    reader = UsageReader()
    sample = reader.sample(tmp_path)
    assert sample.source == "processes"
    assert sample.memory is not None
    assert 50 << 20 <= sample.memory <= 80 << 20
    assert sample.tasks == 3
    assert sample.cpu_seconds is not None
    assert sample.cpu_seconds > 0
    assert (sample.oom_kills, sample.memory_pressure) == (None, None)

    (tmp_path / "below/cgroup.procs").write_text("")
    later = reader.sample(tmp_path)
    assert (later.memory, later.tasks) == (0, 0)
    assert later.cpu_seconds == sample.cpu_seconds  # what the dead have used stays used
    assert later.memory_peak == sample.memory


def test_cpu_and_pressure_are_the_kernels_own_where_only_memory_is_missing(cgroup: Path) -> None:
    for name in ("memory.current", "memory.peak", "memory.events", "pids.current"):
        (cgroup / name).unlink()
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n")
    sample = UsageReader().sample(cgroup)
    assert (sample.cpu_seconds, sample.cpu_pressure, sample.source) == (2.5, 33.0, "processes")
    assert sample.memory


def test_rss_where_pss_is_not_ours_to_read(
    tmp_path: Path, worker: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    (tmp_path / "cgroup.procs").write_text(f"{worker.pid}\n")
    memory = UsageReader().sample(tmp_path).memory
    assert memory is not None
    assert memory >= 50 << 20


def test_a_cgroup_that_is_gone(tmp_path: Path) -> None:
    sample = UsageReader().sample(tmp_path / "gone")
    assert (sample.memory, sample.tasks, sample.cpu_seconds) == (None, None, None)
    assert sample.time > 0
    assert members(tmp_path / "gone") == []
    assert not populated(tmp_path / "gone")


def test_controllers_of_a_cgroup_and_of_one_to_come(cgroup: Path) -> None:
    (cgroup / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    assert usage.controllers(cgroup) == {"cpu", "memory", "pids"}
    assert usage.controllers(cgroup / "slice/to-come.scope") == {"cpu", "memory", "pids"}
    (cgroup / "cgroup.controllers").write_text("\n")
    assert usage.controllers(cgroup) == set()


def test_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert 0 < usage.host_memory() <= total
    status = usage.host_status()
    assert status["cpus"] >= 1
    assert 0 <= status["memory_available"] <= total
    assert status["memory_total"] == usage.host_memory()

    (tmp_path / "memory.max").write_text("104857600\n")
    (tmp_path / "memory.current").write_text("4857600\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "memory.max").write_text("max\n")
    both = [(folder, "memory.max", "memory.current") for folder in (inner, tmp_path)]
    monkeypatch.setattr(usage, "_memory_cgroups", lambda: both)
    assert usage.host_memory() == 100 << 20
    assert usage.host_status()["memory_available"] == 100_000_000


def test_our_own_cgroup_is_found() -> None:
    assert cgroup_path("/a/b.scope").name == "b.scope"
    assert cgroup_path("").is_dir()
    assert all(folder.is_absolute() for folder, _, _ in usage._memory_cgroups())


def test_only_tasks_are_counted_where_memory_has_its_own_account(cgroup: Path, worker: subprocess.Popen[bytes]) -> None:
    (cgroup / "pids.current").unlink()
    (cgroup / "cgroup.procs").write_text(f"{worker.pid}\n")
    sample = UsageReader().sample(cgroup)
    assert (sample.tasks, sample.memory, sample.cpu_seconds) == (3, 100 << 20, 2.5)
    assert sample.source == "processes"


def test_files_without_the_figure_give_none(cgroup: Path) -> None:
    (cgroup / "memory.events").write_text("low 0\nhigh 12\n")  # before Linux 4.13 it has no oom_kill
    (cgroup / "memory.pressure").write_text("")
    (cgroup / "cpu.pressure").write_text("some\n")
    sample = UsageReader().sample(cgroup)
    assert (sample.oom_kills, sample.memory_pressure, sample.cpu_pressure) == (None, None, None)
    assert sample.memory == 100 << 20


def test_no_controllers_where_no_cgroups_are(tmp_path: Path) -> None:
    assert usage.controllers(tmp_path / "slice/some.scope") == set()
