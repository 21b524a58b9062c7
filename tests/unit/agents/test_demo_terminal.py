# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys, pastes and ends of input of the demo agent's terminal, on a real pseudo-terminal and a real pipe."""

from __future__ import annotations

import os
import pty
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ccorchd.agents.demo_terminal import Interrupted, Terminal, Terminated

pytestmark = pytest.mark.timeout(30)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def standard_input(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal whose standard input is *descriptor*; afterwards everything is as it was."""
    before, handlers = os.dup(0), {number: signal.getsignal(number) for number in SIGNALS}
    os.dup2(descriptor, 0)
    try:
        with open(0, closefd=False) as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", file)
            terminal = Terminal()
            with terminal:
                yield terminal
            os.close(terminal._wake_read)
            os.close(terminal._wake_write)
    finally:
        os.dup2(before, 0)
        os.close(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Keyboard:
    """The user's side of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def type(self, data: bytes) -> None:
        os.write(self.descriptor, data)

    def hang_up(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1


@pytest.fixture
def keyboard() -> Iterator[tuple[Keyboard, int]]:
    outside, inside = pty.openpty()
    board = Keyboard(outside)
    yield board, inside
    os.close(inside)
    if board.descriptor >= 0:
        board.hang_up()


@pytest.fixture
def tty(keyboard: tuple[Keyboard, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Terminal, Keyboard]]:
    with standard_input(keyboard[1], monkeypatch) as terminal:
        yield terminal, keyboard[0]


Pair = tuple[Terminal, Keyboard]


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        (b"teh\x7f\x7fhe\r", "the"),
        (b"a\xc3\xa4\x08b\r", "ab"),
        (b"wrong\x15right\r", "right"),
        (b"a\x01\x02b\r", "ab"),
        (b"a\x04b\r", "ab"),
        (b"\r \r\nx\r", "x"),
        (b"a\x1b[Ab\x1bOPc\x1b[15~d\r", "abcd"),
        (b"a\x1bxb\r", "axb"),
        (b"a\tb\r", "a\tb"),
        (b"\x1b[200~one\rtwo\r\nthree\x1b[201~ four\r", "one\ntwo\nthree four"),
        (b"\x1b[200~a\x1b[2b\x1b[201~\r", "a\x1b[2b"),
    ],
)
def test_keys(tty: Pair, typed: bytes, prompt: str) -> None:
    terminal, keyboard = tty
    keyboard.type(typed)
    assert terminal.next_prompt() == prompt


@pytest.mark.parametrize("at", range(1, 16))
def test_paste_may_come_in_pieces(tty: Pair, at: int) -> None:
    terminal, keyboard = tty
    whole = b"\x1b[200~\xc3\xa4\r.\x1b[201~\r"
    keyboard.type(b"first\r" + whole[:at])
    assert terminal.next_prompt() == "first"
    keyboard.type(whole[at:])
    assert terminal.next_prompt() == "ä\n."


def test_cut_off_key_is_forgotten(tty: Pair) -> None:
    terminal, keyboard = tty
    keyboard.type(b"first\r\x1b[15")
    assert terminal.next_prompt() == "first"
    keyboard.type(b"~next\r")
    assert terminal.next_prompt().endswith("next")


def test_log_leaves_the_typed_line_in_sight(tty: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    terminal, keyboard = tty
    keyboard.type(b"first\rhalf")
    assert terminal.next_prompt() == "first"
    capsys.readouterr()
    terminal.say("one\ntwo")
    assert capsys.readouterr().out == "\r\x1b[Kone\r\ntwo\n> half"
    terminal.forget_line()
    terminal.say("three")
    assert capsys.readouterr().out == "\r\x1b[Kthree\n"


@pytest.mark.parametrize(
    ("typed", "key"), [(b"y", "y"), (b"N", "n"), (b"yes\r", "y"), (b"what\rn", "n"), (b"no\rq\r", "n")]
)
def test_key_is_one_of_those_asked_for(tty: Pair, typed: bytes, key: str) -> None:
    terminal, keyboard = tty
    keyboard.type(typed)
    assert terminal.key("yn") == key


def test_questions_leave_earlier_prompts_for_later(tty: Pair) -> None:
    terminal, keyboard = tty
    terminal.submitted.append("yesterday")
    keyboard.type(b"n\r")
    assert terminal.key("yn") == "n"
    keyboard.type(b"in blue\r")
    assert terminal.answer().endswith("in blue")
    assert terminal.next_prompt() == "yesterday"


def test_control_d_is_the_end_of_all_waits(tty: Pair) -> None:
    terminal, keyboard = tty
    keyboard.type(b"last\r\x04")
    assert terminal.next_prompt() == "last"
    for wait in (terminal.next_prompt, terminal.answer, lambda: terminal.key("yn")):
        with pytest.raises(Terminated, match="end of input"):
            wait()


def test_terminal_that_is_gone_is_the_end_of_input(tty: Pair) -> None:
    terminal, keyboard = tty
    keyboard.hang_up()
    with pytest.raises(Terminated, match="end of input"):
        terminal.next_prompt()


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_end_waits(tty: Pair, number: signal.Signals) -> None:
    terminal, _ = tty
    os.kill(os.getpid(), number)
    with pytest.raises(Interrupted if number == signal.SIGINT else Terminated):
        terminal.pump(3600)
    if number == signal.SIGINT:
        terminal.checkpoint()  # it is told once


def test_pipe_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    with standard_input(reader, monkeypatch) as terminal:
        os.close(reader)
        os.write(writer, b"one\ntw\x01\x04o\nthree without an end")
        os.close(writer)
        assert [terminal.next_prompt() for _ in range(3)] == ["one", "tw\x01\x04o", "three without an end"]
        with pytest.raises(Terminated, match="end of input"):
            terminal.next_prompt()
        terminal.title("unseen")
        terminal.ready()
        terminal.say("a\nb")
    assert capsys.readouterr().out == "a\nb\n"
