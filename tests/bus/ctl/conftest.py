# SPDX-License-Identifier: LGPL-2.1-or-later
"""A service on a private bus, and ccorchctl run against it in this process or on a terminal of its own."""

from __future__ import annotations

import codecs
import importlib.util
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ccorchctl.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


def _service() -> Any:
    # Under --import-mode=importlib a test folder is no package: load the neighbour by its path.
    specification = importlib.util.spec_from_file_location("ccorch_test_service", Path(__file__).parent / "service.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


service = _service()


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def project_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    return folder


@pytest.fixture
def world(project_folder: Path) -> Any:
    """Two projects, three instances."""
    world = service.World()
    world.project("shop", str(project_folder))
    world.project("blog", "/srv/blog")
    world.instance("shop", "api", "waiting", reason="permission", reason_text="Bash rm -rf build", doing="Bash")
    world.instance("shop", "web", "working", doing="Edit src/app.py")
    world.instance("blog", "api", "stopped", reason="requested")
    return world


@pytest.fixture
def server(dbus_session: str, world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.delenv("CCORCH_SUFFIX", raising=False)
    with service.Server(dbus_session, world) as running:
        yield running


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run ccorchctl in this process, standard input being no terminal, in a folder outside all projects."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, stdin: str = "") -> Result:
        import io

        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            status = main(words)
        except SystemExit as end:  # --help
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


class Terminal:
    """ccorchctl on a pseudo-terminal: read until something shows, type, wait for the end."""

    def __init__(self, *words: str, cwd: Path, columns: int = 80, **environment: str) -> None:
        self._master, slave = pty.openpty()
        variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "TMUX")}
        variables |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "LANG": "C.UTF-8"} | environment
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ccorchctl", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=variables,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.raw).replace("\r\n", "\n")

    def until(self, pattern: str, timeout: float = 30) -> str:
        """Read until *pattern* shows."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            if not self._read(deadline):
                raise AssertionError(f"{pattern!r} did not show; there was:\n{self.text}")
        return self.text

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side has been closed
            return False
        self.raw += self._decoder.decode(data)
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self, timeout: float = 30) -> int:
        """Read to the end and return the exit status."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def run(*words: str, cwd: Path = tmp_path, columns: int = 80, **environment: str) -> Terminal:
        opened.append(Terminal(*words, cwd=cwd, columns=columns, **environment))
        return opened[-1]

    yield run
    for one in opened:
        one.close()
