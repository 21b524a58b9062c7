# SPDX-License-Identifier: LGPL-2.1-or-later
"""The end of all processes in a cgroup where the kernel has no cgroup.kill (before 5.14), with processes to die."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.cgroup import empty_cgroup, members, populated, unfreeze
from ccorchd.host.pidfd import PidWatch


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A folder in which nobody can write to cgroup.kill: the kernel refuses to make files, a folder to be one."""
    (tmp_path / "cgroup.kill").mkdir()
    (tmp_path / "below").mkdir()
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_processes_are_killed_one_by_one(cgroup: Path, sleeper: subprocess.Popen[bytes]) -> None:
    procs = cgroup / "below/cgroup.procs"
    procs.write_text(f"{2**22 - 1}\n{sleeper.pid}\n")  # the first has ended meanwhile
    watch = PidWatch(sleeper.pid, lambda: procs.write_text("") and None)
    assert populated(cgroup)
    await asyncio.wait_for(empty_cgroup(cgroup), 10)
    assert sleeper.wait() == -signal.SIGKILL
    assert members(cgroup) == []
    watch.close()


async def test_what_survives_sigkill_is_told(cgroup: Path, sleeper: subprocess.Popen[bytes]) -> None:
    (cgroup / "below/cgroup.procs").write_text(f"{sleeper.pid}\n")  # for ever, as a process that hangs in the kernel
    with pytest.raises(CcorchError) as caught:
        await empty_cgroup(cgroup, timeout=0)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert str([sleeper.pid]) in caught.value.message
    assert sleeper.wait() == -signal.SIGKILL


def test_unfreeze_goes_down_and_changes_nothing_else(cgroup: Path) -> None:
    (cgroup / "cgroup.freeze").write_text("0\n")
    (cgroup / "below/cgroup.freeze").write_text("1\n")
    unfreeze(cgroup)
    assert (cgroup / "cgroup.freeze").read_text() == "0\n"
    assert (cgroup / "below/cgroup.freeze").read_text() == "0"
