# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tiers share: a private session bus, and the promises that no test skips in CI or leaves a process behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
TIERS = ("unit", "bus", "machine", "system", "vm", "claude")
BUS_START_TIMEOUT = 10.0
CHILD_GRACE = 5.0

BUS_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, which is the folder it lies in."""
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        if tier in TIERS:
            item.add_marker(tier)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped under CI=true: {reason}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(trylast=True)
def pytest_fixture_post_finalizer(fixturedef: Any) -> None:
    """Close the spare loop that pytest-asyncio before 0.23 leaves behind after each test.

    A later ``asyncio.run`` would drop it unclosed, and the warning would hit whichever test runs then.
    """
    if fixturedef.argname != "event_loop":
        return
    policy = asyncio.get_event_loop_policy()
    with contextlib.suppress(RuntimeError):
        spare = policy.get_event_loop()
        if not spare.is_running():
            spare.close()
            policy.set_event_loop(None)


def _children() -> dict[int, str]:
    """Return PID and command line of this process' children (proc_pid_task(5): children)."""
    found = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            pids = listing.read_text().split()
        except OSError:
            continue
        for pid in map(int, pids):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process running. What existed before the test is not its business."""
    before = _children()
    yield
    left: dict[int, str] = {}
    deadline = time.monotonic() + CHILD_GRACE
    while True:
        left = {pid: command for pid, command in _children().items() if pid not in before and command}
        if not left or time.monotonic() > deadline:
            break
        for pid in left:
            _wait_for_end(pid, deadline - time.monotonic())
    assert not left, f"left running: {left}"


def _wait_for_end(pid: int, timeout: float) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], max(timeout, 0.0))
    finally:
        os.close(descriptor)


@pytest.fixture
def dbus_session(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a private D-Bus daemon and return its address, which DBUS_SESSION_BUS_ADDRESS names for the test's time.

    Nothing is activatable on it: what a test wants on the bus it starts itself.
    """
    folder = tmp_path_factory.mktemp("bus")
    address = f"unix:path={folder / 'bus'}"
    configuration = folder / "bus.conf"
    configuration.write_text(BUS_CONFIGURATION.format(socket=folder / "bus"))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--nopidfile", "--nosyslog", "--print-address"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )
    try:
        assert daemon.stdout is not None
        # The daemon prints its address once it listens.
        ready, _, _ = select.select([daemon.stdout], [], [], BUS_START_TIMEOUT)
        assert ready, f"dbus-daemon did not listen within {BUS_START_TIMEOUT} s"
        assert daemon.stdout.readline(), "dbus-daemon ended before it listened"
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
        yield address
    finally:
        daemon.terminate()
        try:
            daemon.wait(BUS_START_TIMEOUT)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
