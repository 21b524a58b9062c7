# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notice the death of any process at once, also of one that is no child of ours (pidfd_open(2))."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError


class PidWatch:
    """Call *callback* once, from the event loop, when process *pid* has died; soon if it is dead already.

    A process is dead when it has exited, reaped or not. Whoever has *pid* from a record must check after the watch is
    made that it is still the process meant (its cgroup, its start time): from then on the number can't be taken by
    another without this watch knowing.
    """

    def __init__(self, pid: int, callback: Callable[[], None]) -> None:
        """Raise ``HostFailed`` when the kernel gives no descriptor, ValueError if *pid* is not positive."""
        if pid <= 0:
            raise ValueError(f"{pid} is no process id")
        self.pid = pid
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._soon: asyncio.Handle | None = None
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._soon = self._loop.call_soon(self._died)
        except OSError as error:
            raise CcorchError(
                ErrorCode.HOST_FAILED,
                f"process {pid} cannot be watched: {error.strerror}",
                "ccorch needs Linux 5.3 or later, and free file descriptors (ulimit -n).",
            ) from error
        else:
            self._loop.add_reader(self._fd, self._died)

    @property
    def alive(self) -> bool:
        """False once the death was noticed or the watch was closed."""
        return self._fd >= 0

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; False if it is dead. A reused pid is never hit."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def _died(self) -> None:
        self.close()
        self._callback()

    def close(self) -> None:
        """Stop watching; the callback will not be called any more. Calling it again does nothing."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


async def wait_for_death(pid: int, timeout: float) -> bool:
    """Wait at most *timeout* seconds for *pid* to die; False if it lives on."""
    dead = asyncio.Event()
    watch = PidWatch(pid, dead.set)
    try:
        async with asyncio.timeout(timeout):
            await dead.wait()
    except TimeoutError:
        return False
    finally:
        watch.close()
    return True
