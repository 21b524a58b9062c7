# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo agent does wrong on request, in processes of their own. Standard library only.

python3 -I demo_agent.py --child balloon BYTES
python3 -I demo_agent.py --child orphan SECONDS
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Final

_CHUNK: Final = 4 * 1024 * 1024
_THREADS: Final = 32
"""Above MemoryHigh the kernel slows down each thread by itself, so one alone would take minutes to reach MemoryMax."""

_PR_SET_NAME: Final = 15


def memory_limit() -> int | None:
    """Return the smallest memory.max in bytes of the own cgroup and those above it; None where there is no limit."""
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    limits = []
    for root in roots:
        folder = root / own.lstrip("/")
        while folder != root and root in folder.parents:
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / "memory.max").read_text()))  # "max" is a ValueError: no limit
            folder = folder.parent
    return min(limits, default=None)


def _set_name(name: str) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def balloon(size: int) -> None:
    """Allocate and touch *size* bytes as the process that the kernel likes best to kill, then let go of them."""
    _set_name("demo-balloon")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    area = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    offsets = iter(range(0, size, _CHUNK))
    lock = threading.Lock()

    def fill() -> None:
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            ctypes.memset(address + offset, 1, min(_CHUNK, size - offset))  # lets go of the GIL

    threads = [threading.Thread(target=fill) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def orphan(seconds: float) -> None:
    """Leave behind a process in a session of its own whose parent is gone; print its PID."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        print(os.read(read, 32).decode(), flush=True)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    _set_name("demo-orphan")
    os.write(write, str(os.getpid()).encode())
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, 256)
    time.sleep(seconds)
    os._exit(0)
