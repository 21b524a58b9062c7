# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon does when its process has no file descriptor left, and comes back from."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.inotify import Inotify
from ccorchd.host.pidfd import PidWatch
from ccorchd.host.reports import ReportServer
from ccorchd.model import Report


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing: the limit is the lowest number that is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
        self.event.set()


async def handle(report: Report) -> dict[str, object]:
    return {"output": report.event}


@contextlib.contextmanager
def warned() -> Iterator[Warned]:
    handler, logger = Warned(), logging.getLogger("ccorchd.host.reports")
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def caller() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
        yield connection


async def test_inotify_says_why() -> None:
    with no_descriptors(), pytest.raises(OSError, match="inotify_init1") as caught:
        Inotify()
    assert caught.value.errno == errno.EMFILE


async def test_a_process_cannot_be_watched() -> None:
    with no_descriptors(), pytest.raises(CcorchError, match=f"process {os.getpid()} cannot be watched") as caught:
        PidWatch(os.getpid(), lambda: None)
    assert caught.value.code is ErrorCode.HOST_FAILED
    assert "ulimit -n" in caught.value.hint


async def test_who_reports_meanwhile_waits_and_is_answered(tmp_path: Path) -> None:
    server = ReportServer(1, tmp_path / "events.sock", tmp_path / "spool", handle)
    await server.start()
    report = {"id": uuid.uuid4().hex, "event": "Stop", "time": 1.0, "payload": {}}
    try:
        with caller() as connection, warned() as warning:
            with no_descriptors():
                connection.connect(str(server.socket))
                connection.send(json.dumps(report).encode())
                await asyncio.wait_for(warning.event.wait(), 10)
            assert "cannot accept" in warning.text
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 4096), 10)
            assert json.loads(answer) == {"ok": True, "output": "Stop"}
    finally:
        await server.close()


async def test_close_while_nobody_can_be_accepted(tmp_path: Path) -> None:
    server = ReportServer(1, tmp_path / "events.sock", tmp_path / "spool", handle)
    await server.start()
    with caller() as connection, warned() as warning:
        with no_descriptors():
            connection.connect(str(server.socket))
            await asyncio.wait_for(warning.event.wait(), 10)
            await asyncio.wait_for(server.close(), 10)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), 10)
    assert not server.socket.exists()
