# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside a virtual machine: executes what the host asks for over a virtio port, one request at a time.

One message is one line of JSON; bytes travel as base64. A line survives what a length prefix does not: a host process
that ends in the middle of a message; the next one starts with a line feed and the rest is skipped.

    host:  {"id", "run": [argv], "tty": bool, "size": [rows, columns]}   {"id", "in": data}   {"id", "eof": true}
           {"id", "size": [...]}   {"id", "kill": true}   {"id", "ping": true}
    guest: {"id", "out": data}   {"id", "err": data}   {"id", "exit": status}   {"id", "boot": id}
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import selectors
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

_CHUNK = 32768


class Port:
    """The virtio port: lines in, lines out."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._partial = b""
        self._pause = 0.0

    def lines(self) -> list[dict[str, Any]]:
        """Return the messages that have come. An empty read means that no host process is connected just now."""
        try:
            data = os.read(self.descriptor, _CHUNK * 4)
        except BlockingIOError:
            return []
        if not data:
            # The port knows no event for "somebody connected": it reads as ended until then.
            self._pause = min(self._pause + 0.01, 0.25)
            time.sleep(self._pause)
            self._partial = b""
            return []
        self._pause = 0.0
        *complete, self._partial = (self._partial + data).split(b"\n")
        messages = []
        for line in complete:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    messages.append(message)
        return messages

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        poll = selectors.DefaultSelector()
        poll.register(self.descriptor, selectors.EVENT_WRITE)
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:
                poll.select(1)
            except OSError:
                return
        poll.close()


class Run:
    """One command with its pipes, or with a terminal."""

    def __init__(self, number: int, message: dict[str, Any]) -> None:
        self.number = number
        self.input = b""
        self.ended = False
        self.outputs: dict[int, str] = {}
        self.group = _group(number)
        # What is run must not inherit the agent's protection from the OOM killer, nor be counted as the agent.
        script = 'echo 0 >/proc/self/oom_score_adj; [ -z "$0" ] || echo $$ >"$0/cgroup.procs"; exec "$@"'
        argv = ["sh", "-c", script, str(self.group or ""), *message["run"]]
        if message.get("tty"):
            parent, child = os.openpty()
            resize(parent, message.get("size") or [24, 80])
            self.process = subprocess.Popen(
                argv, stdin=child, stdout=child, stderr=child, start_new_session=True, preexec_fn=_take_terminal
            )
            os.close(child)
            self.stdin, self.terminal = parent, True
            self.outputs = {parent: "out"}
        else:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            self.stdin, self.terminal = self.process.stdin.fileno(), False
            self.outputs = {self.process.stdout.fileno(): "out", self.process.stderr.fileno(): "err"}
        for descriptor in {self.stdin, *self.outputs}:
            os.set_blocking(descriptor, False)

    def feed(self) -> None:
        """Write what the command takes; forget the input of one that does not read any more."""
        try:
            self.input = self.input[os.write(self.stdin, self.input[:_CHUNK]) :] if self.input else b""
        except BlockingIOError:
            return
        except OSError:
            self.input, self.ended = b"", True
        if self.ended and not self.input and not self.terminal and self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    @property
    def wants_input(self) -> bool:
        return bool(self.input)

    def kill(self) -> None:
        if self.group is not None:
            with contextlib.suppress(OSError):
                (self.group / "cgroup.kill").write_text("1")
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, 9)

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self.terminal:
            os.close(self.stdin)
        if self.group is not None:
            with contextlib.suppress(OSError):  # a daemon that the command left behind keeps its cgroup
                self.group.rmdir()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def resize(descriptor: int, size: list[int]) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


def _group(number: int) -> Path | None:
    """Make a cgroup below this service's (which is delegated) for one command."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            group = Path("/sys/fs/cgroup") / line[3:].lstrip("/") / f"run-{os.getpid()}-{number}"
            with contextlib.suppress(OSError):
                group.mkdir()
                return group
    return None


def serve(path: str) -> None:
    port = Port(path)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    run: Run | None = None
    counter = 0
    while True:
        with selectors.DefaultSelector() as waiting:
            waiting.register(port.descriptor, selectors.EVENT_READ)
            if run is not None:
                for descriptor in run.outputs:
                    both = selectors.EVENT_READ | (selectors.EVENT_WRITE if run.terminal and run.wants_input else 0)
                    waiting.register(descriptor, both)
                if not run.terminal and run.wants_input:
                    waiting.register(run.stdin, selectors.EVENT_WRITE)
            ready = waiting.select(None if run is None or run.outputs else 0.02)
        for key, _ in ready:
            if key.fd != port.descriptor and run is not None and key.fd in run.outputs:
                try:
                    data = os.read(key.fd, _CHUNK)
                except BlockingIOError:
                    continue
                except OSError:  # EIO: the last process on the terminal has gone
                    data = b""
                if data:
                    port.send(id=run.number, **{run.outputs[key.fd]: base64.b64encode(data).decode()})
                else:
                    del run.outputs[key.fd]
        for message in port.lines():
            number = message.get("id")
            if "ping" in message:
                port.send(id=number, boot=boot)
            elif "run" in message:
                if run is not None:  # the host process that wanted it has gone
                    run.kill()
                    run.process.wait()
                    run.close()
                counter += 1
                try:
                    run = Run(counter, message)
                    run.number = int(message["id"])
                except (OSError, ValueError) as error:
                    port.send(id=number, err=base64.b64encode(str(error).encode()).decode())
                    port.send(id=number, exit=127)
                    run = None
            elif run is None or number != run.number:
                continue
            elif "in" in message:
                run.input += base64.b64decode(message["in"])
            elif "eof" in message:
                run.ended = True
            elif "size" in message:
                resize(run.stdin, message["size"])
            elif "kill" in message:
                run.kill()
        if run is not None:
            run.feed()
            status = run.process.poll()
            # A daemon that inherited the pipes must not hold up the answer: what has come by now is all.
            if status is not None:
                for descriptor, name in list(run.outputs.items()):
                    with contextlib.suppress(OSError):
                        while data := os.read(descriptor, _CHUNK):
                            port.send(id=run.number, **{name: base64.b64encode(data).decode()})
                port.send(id=run.number, exit=status if status >= 0 else 128 - status)
                run.close()
                run = None


if __name__ == "__main__":
    serve(sys.argv[1])
