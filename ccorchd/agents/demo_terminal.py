# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo agent's terminal: prompts typed or pasted, waits that a signal ends at once. Standard library only."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import termios
import time
from collections import deque
from types import FrameType
from typing import Final

_PASTE_BEGINS: Final = b"\x1b[200~"
_PASTE_ENDS: Final = b"\x1b[201~"


class Interrupted(Exception):
    """SIGINT came: the turn ends, the agent lives on."""


class Terminated(Exception):
    """SIGTERM or SIGHUP came, or the end of the input: the agent ends. *reason* says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Terminal:
    """Standard input and output, a terminal or not.

    Every wait of the agent is one of the methods here: that is where signals are seen, so they never tear a report or
    a commit apart.
    """

    def __init__(self) -> None:
        self.submitted: deque[str] = deque()
        """Prompts that were entered, oldest first, exactly as they were typed or pasted."""
        self._line = ""
        self._pasting = False
        self._bytes = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end_of_input = False
        self._interrupted = False
        self._terminated = ""
        self._tty = sys.stdin.isatty()
        self._before: list[int | list[bytes | int]] | None = None
        self._wake_read, self._wake_write = os.pipe()

    def __enter__(self) -> Terminal:
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._signalled)
        if self._tty:
            self._before = termios.tcgetattr(0)
            raw = termios.tcgetattr(0)
            raw[0] &= ~termios.ICRNL
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(0, termios.TCSANOW, raw)
            self._out("\x1b[?2004h")
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        if self._before is not None:
            self._out("\x1b[?2004l")
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSANOW, self._before)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupted = True
        else:
            self._terminated = signal.Signals(number).name

    # -- output ------------------------------------------------------------------------------------------------------

    def _out(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone already: then nobody reads
            sys.stdout.write(text)
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print *text* as a line of the log, above the line that is being typed."""
        if self._tty:
            self._out("\r\x1b[K")
        self._out(text.replace("\n", "\r\n" if self._tty else "\n") + "\n")
        if self._tty and self._line:
            self._out(self._shown())

    def title(self, text: str) -> None:
        if self._tty:
            self._out(f"\x1b]2;{text}\x07")

    def ready(self) -> None:
        """Show that a prompt is waited for."""
        if self._tty:
            self._out("\r\x1b[K" + (self._shown() or "> "))

    def _shown(self) -> str:
        return f"> {self._line.splitlines()[-1]}" if self._line else ""

    # -- waiting -----------------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """Raise :class:`Terminated` or :class:`Interrupted` if such a signal has come."""
        if self._terminated:
            raise Terminated(self._terminated)
        if self._interrupted:
            self._interrupted = False
            raise Interrupted

    def pump(self, seconds: float) -> None:
        """Wait *seconds* while taking input; raise as :meth:`checkpoint` does, as soon as a signal comes."""
        deadline = time.monotonic() + seconds
        self.checkpoint()
        while (left := deadline - time.monotonic()) > 0:
            self._step(left)
            self.checkpoint()

    def next_prompt(self) -> str:
        """Wait for a prompt; raise :class:`Terminated` also at the end of the input, ``Interrupted`` at SIGINT."""
        while not self.submitted:
            self.checkpoint()
            if self._end_of_input:
                raise Terminated("end of input")
            self._step(3600)
        return self.submitted.popleft()

    def key(self, keys: str) -> str:
        """Wait until one of *keys* is typed, or a line that begins with one is entered, and return it.

        Raises as :meth:`next_prompt` does. Prompts that were entered before stay for later.
        """
        entered = len(self.submitted)
        while True:
            self.checkpoint()
            typed, self._line = self._line, ""
            if not typed and len(self.submitted) > entered:
                typed = self.submitted.pop()
            if typed and typed[0].lower() in keys:
                return typed[0].lower()
            if not typed:
                if self._end_of_input:
                    raise Terminated("end of input")
                self._step(3600)

    def answer(self) -> str:
        """Wait for a line that answers a question; like :meth:`key` otherwise."""
        entered = len(self.submitted)
        while len(self.submitted) == entered:
            self.checkpoint()
            if self._end_of_input:
                raise Terminated("end of input")
            self._step(3600)
        return self.submitted.pop()

    def forget_line(self) -> None:
        """Throw away what is typed but not entered."""
        self._line = ""

    def _step(self, seconds: float) -> bool:
        """Wait for input or a signal, at most *seconds*; return whether there was any."""
        sources = [self._wake_read] if self._end_of_input else [0, self._wake_read]
        readable, _, _ = select.select(sources, [], [], seconds)
        if self._wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 512)
        if 0 in readable:
            try:
                data = os.read(0, 65536)
            except OSError:
                data = b""
            if not data:
                self._end_of_input = True
                if not self._tty:
                    self._submit()
            self._feed(data)
        return bool(readable)

    # -- input -------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        self._bytes += data
        while self._bytes:
            if self._pasting:
                text, found, rest = self._bytes.partition(_PASTE_ENDS)
                if not found:
                    # The end mark may have come in part.
                    keep = next((n for n in range(len(_PASTE_ENDS) - 1, 0, -1) if text.endswith(_PASTE_ENDS[:n])), 0)
                    self._type(text[: len(text) - keep])
                    self._bytes = text[len(text) - keep :]
                    return
                self._type(text)
                self._pasting, self._bytes = False, rest
            elif self._bytes[0] == 0x1B:
                if _PASTE_BEGINS.startswith(self._bytes[: len(_PASTE_BEGINS)]):
                    if len(self._bytes) < len(_PASTE_BEGINS):
                        return
                    self._pasting, self._bytes = True, self._bytes[len(_PASTE_BEGINS) :]
                else:
                    self._bytes = self._bytes[self._escape_length() :]
            else:
                self._press(self._bytes[:1])
                self._bytes = self._bytes[1:]

    def _escape_length(self) -> int:
        """Return the length of the escape sequence of a cursor or function key at the start of the input."""
        if self._bytes[1:2] not in (b"[", b"O"):
            return 1
        for index in range(2, len(self._bytes)):
            if 0x40 <= self._bytes[index] <= 0x7E:
                return index + 1
        return len(self._bytes)

    def _press(self, byte: bytes) -> None:
        if byte in (b"\r", b"\n"):
            self._submit()
        elif byte in (b"\x7f", b"\b"):
            self._line = self._line[:-1]
            self.ready()
        elif byte == b"\x15":
            self._line = ""
            self.ready()
        elif byte == b"\x04" and self._tty:
            if not self._line:
                self._end_of_input = True
        elif byte >= b" " or byte == b"\t" or not self._tty:
            self._type(byte)

    def _type(self, data: bytes) -> None:
        # tmux pastes each line feed as a carriage return.
        text = self._decoder.decode(data).replace("\r\n", "\n").replace("\r", "\n")
        self._line += text
        if self._tty:
            self._out(text.replace("\n", "\r\n"))

    def _submit(self) -> None:
        text, self._line = self._line, ""
        if self._tty:
            self._out("\r\n")
        if text.strip():
            self.submitted.append(text)
