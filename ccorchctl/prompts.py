# SPDX-License-Identifier: LGPL-2.1-or-later
"""Questions to the person at the terminal. What is asked goes to standard error, so that pipes stay clean."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping

from ccorchctl.failures import Failure
from ccorchd.contract import ErrorCode


def interactive() -> bool:
    """True when somebody can be asked: standard input and error are a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    # asyncio.run() turns the first Ctrl-C into a cancelled task, which a blocking read would never notice.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ask(question: str) -> str | None:
    sys.stdout.flush()
    with _interruptible():
        print(question, end=" ", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        return None
    return line.strip()


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask for yes or no until there is an answer; end of input means *default* never applies: it is a no."""
    while True:
        answer = _ask(f"{question} {'[Y/n]' if default else '[y/N]'}")
        if answer is None:
            return False
        match answer.lower():
            case "":
                return default
            case "y" | "yes":
                return True
            case "n" | "no":
                return False
        print("Please answer y or n.", file=sys.stderr)


def choose(question: str, choices: Mapping[str, str], *, default: str) -> str:
    """Ask for one of *choices* (word → what it does); the first letter is enough. End of input takes *default*."""
    for word, meaning in choices.items():
        print(f"  [{word[0]}]{word[1:]:<8} {meaning}", file=sys.stderr)
    while True:
        answer = _ask(f"{question} [{default}]")
        if not answer:
            return default
        found = [word for word in choices if word.startswith(answer.lower())]
        if len(found) == 1:
            return found[0]
        print(f"Please answer one of: {', '.join(choices)}.", file=sys.stderr)


def require(question: str, *, yes: bool) -> None:
    """Let a destructive verb go on: with --yes, or after asking. Raises ``NotAllowed`` otherwise."""
    if yes:
        return
    if not interactive():
        raise Failure(
            ErrorCode.NOT_ALLOWED,
            "this needs a confirmation, and standard input is no terminal",
            "Add --yes to confirm.",
        )
    if not confirm(question):
        raise Failure(ErrorCode.NOT_ALLOWED, "nothing was done")


def secret(question: str) -> str:
    """Read a value without showing it. Raises ``NotAllowed`` when nothing is given."""
    import getpass

    with _interruptible():
        try:
            value = getpass.getpass(question + " ", stream=sys.stderr)
        except EOFError:
            value = ""
    if not value:
        raise Failure(ErrorCode.NOT_ALLOWED, "no value given; nothing was done")
    return value
