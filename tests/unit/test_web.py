# SPDX-License-Identifier: LGPL-2.1-or-later
"""ccorch-web, run as the program it is."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the server on a free port; the value is the process and its URL."""
    command = [sys.executable, "-m", "web", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+/", process.stderr.readline())
        assert found
        yield process, found.group()
    finally:
        process.kill()
        process.communicate()


def test_healthz_answers(server: tuple[subprocess.Popen[str], str]) -> None:
    with urllib.request.urlopen(server[1] + "healthz", timeout=10) as answer:
        assert answer.status == 200
        assert json.load(answer) == {"status": "ok"}


def test_other_paths_are_not_found(server: tuple[subprocess.Popen[str], str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(server[1], timeout=10)
    failure.value.close()
    assert failure.value.code == 404


def test_sigterm_ends_it_cleanly(server: tuple[subprocess.Popen[str], str]) -> None:
    server[0].send_signal(signal.SIGTERM)
    assert server[0].wait(10) == 0


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "web", "--port", str(port)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"ccorch-web: cannot listen on 127.0.0.1:{port}: ")
    assert "Traceback" not in ended.stderr
