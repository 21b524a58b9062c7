# SPDX-License-Identifier: LGPL-2.1-or-later
"""Control groups as the kernel shows them: where they lie, who is in them, and how to end all of it. Files only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

KILL_TIMEOUT: Final = 10.0
"""How many seconds processes may take to die of SIGKILL."""


def cgroup_path(control_group: str) -> Path:
    """Return where *control_group* (``/user.slice/…``) lies in the file system.

    That is the cgroup v2 mount, wherever it is (``/sys/fs/cgroup/unified`` on hybrid hosts); on a host without one the
    hierarchy of systemd itself, which tells processes but neither limits nor usage.
    """
    return mount_point() / control_group.lstrip("/")


def mount_point() -> Path:
    """Return the mount point of cgroup v2, or that of systemd's own hierarchy on a host without it."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:  # proc_pid_mountinfo(5): the type follows the separator
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return Path("/sys/fs/cgroup/systemd")


def members(path: Path) -> list[int]:
    """Return the PIDs in the cgroup at *path* and in all below it; empty when it is gone."""
    pids: list[int] = []
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):  # ENOENT, or ENODEV when it goes while we read
            pids += [int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split() if pid != "0"]
    return pids


def populated(path: Path) -> bool:
    """Tell whether the cgroup at *path* has a living process, in whatever depth; False when it is gone."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except OSError:
        return bool(members(path))  # cgroup v1 has no cgroup.events


async def empty_cgroup(path: Path, *, timeout: float = KILL_TIMEOUT) -> None:
    """Kill what is in the cgroup at *path* until nothing is, or it is gone.

    Raise ``Timeout`` when a process survives for *timeout* seconds (stuck in the kernel).
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while populated(path):
        _kill(path)
        if time.monotonic() > deadline:
            raise CcorchError(
                ErrorCode.TIMEOUT,
                f"Processes {members(path)} in {path.name} survived SIGKILL for {timeout:g} seconds",
                "They hang in the kernel, often on a network file system; see their state with ps.",
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)


def _kill(path: Path) -> None:
    try:
        (path / "cgroup.kill").write_text("1")  # atomic: no fork gets away (kernel 5.14)
    except OSError:
        for pid in members(path):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def unfreeze(path: Path) -> None:
    """Undo a freeze that was made behind systemd's back, by writing to the cgroup, also in a cgroup below."""
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            freeze = Path(folder) / "cgroup.freeze"
            if freeze.read_text().strip() == "1":
                freeze.write_text("0")
