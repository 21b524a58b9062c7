# SPDX-License-Identifier: LGPL-2.1-or-later
"""One door for the commands of tiers: output to a log, a time budget, and no process left when it is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 20.0
"""Seconds between SIGTERM and SIGKILL: a machine has to be shut down and unmounted."""

NOT_POSSIBLE = 77
"""Exit status of a command that says, in its last line, why it cannot run here (the custom of automake's tests)."""


class OverBudget(Exception):
    """The command was ended because its time was up."""


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(process.pid, number)
        except PermissionError:  # it runs under sudo
            subprocess.run(["sudo", "-n", "kill", f"-{number.value}", f"-{process.pid}"], check=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def run(command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str], timeout: float) -> int:
    """Run *command* with its output appended to *log* and return its exit status.

    Raise OverBudget after *timeout* seconds. Its process group is ended whatever happens, Ctrl-C included.
    """
    with log.open("ab") as stream:
        stream.write(f"\n$ {' '.join(command)}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            return process.wait(max(timeout, 0.1))
        except subprocess.TimeoutExpired as error:
            raise OverBudget from error
        finally:
            if process.poll() is None:
                _end(process)
            else:
                _signal_group(process, signal.SIGKILL)


def last_line(log: Path) -> str:
    """Return the last line of *log* that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
