# SPDX-License-Identifier: LGPL-2.1-or-later
"""Deaths are noticed once, at once, and for the right process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ccorchd.host.pidfd import PidWatch, wait_for_death


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_death_is_told_once(sleeper: subprocess.Popen[bytes]) -> None:
    deaths: asyncio.Queue[str] = asyncio.Queue()
    watch = PidWatch(sleeper.pid, lambda: deaths.put_nowait("dead"))
    assert watch.alive
    assert deaths.empty()
    sleeper.kill()
    assert await asyncio.wait_for(deaths.get(), 10) == "dead"
    assert not watch.alive
    sleeper.wait()
    await asyncio.sleep(0)
    assert deaths.empty()
    watch.close()


async def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    assert await wait_for_death(sleeper.pid, 10)


async def test_dead_already_is_told_later_but_soon(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    dead = asyncio.Event()
    watch = PidWatch(sleeper.pid, dead.set)
    assert not dead.is_set(), "the callback must not run inside the constructor"
    await asyncio.wait_for(dead.wait(), 10)
    assert not watch.send_signal(signal.SIGTERM)


async def test_closed_watches_say_nothing(sleeper: subprocess.Popen[bytes]) -> None:
    told: list[str] = []
    watch = PidWatch(sleeper.pid, lambda: told.append("closed one"))
    watch.close()
    watch.close()
    assert not watch.alive
    sleeper.kill()
    sleeper.wait()
    gone = PidWatch(sleeper.pid, lambda: told.append("dead one"))
    gone.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == []


async def test_a_process_that_is_no_child() -> None:
    program = "import subprocess; p = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL); print(p.pid)"
    made = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)  # noqa: ASYNC221
    pid = int(made.stdout)
    dead = asyncio.Event()
    watch = PidWatch(pid, dead.set)
    assert watch.send_signal(signal.SIGTERM)
    await asyncio.wait_for(dead.wait(), 10)


async def test_waiting_has_an_end(sleeper: subprocess.Popen[bytes]) -> None:
    assert not await wait_for_death(sleeper.pid, 0.01)


@pytest.mark.parametrize("pid", [0, -1])
async def test_no_process_ids(pid: int) -> None:
    with pytest.raises(ValueError, match="no process id"):
        PidWatch(pid, lambda: None)
