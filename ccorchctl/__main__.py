# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry point of ccorchctl: parse, run, and turn whatever went wrong into text and an exit status. Only this exits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ccorchctl import failures
from ccorchctl.failures import Failure
from ccorchd.contract import ErrorCode, Exit

if TYPE_CHECKING:
    import argparse

    from ccorchctl.context import Exec

DEBUG_VARIABLE = "CCORCH_DEBUG"


def main(words: Sequence[str] | None = None) -> int:
    """Run ccorchctl with *words* (default: the process' own) and return the exit status.

    Does not return when the command hands the terminal to another program (``attach``).
    """
    words = list(sys.argv[1:] if words is None else words)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A missing character is no reason to fail; whoever follows through a pipe wants each line now.
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        from ccorchctl import parser

        outcome = _run(parser.parse(words))
        sys.stdout.flush()
        if not isinstance(outcome, int):
            return _become(outcome)
        return outcome
    except Failure as failure:
        return _fail(failure, words)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # what comes next must not stand behind the terminal's ^C
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, a pager) has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(Exit.OK)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sentence = f"unexpected {type(error).__name__}: {error}"
        return _fail(Failure(failures.UNEXPECTED, sentence, f"This is a bug; {DEBUG_VARIABLE}=1 shows where."), words)


def _run(options: argparse.Namespace) -> int | Exec:
    import asyncio

    from ccorchctl.context import Context
    from ccorchctl.output import Output

    async def run() -> int | Exec:
        out = Output(options.output, color=False if options.no_color else None, full=options.full, quiet=options.quiet)
        context = Context(options, out)
        try:
            outcome: int | Exec | None = await options.run(context)
            return 0 if outcome is None else outcome
        finally:
            await context.close()

    return asyncio.run(run())


def _become(program: Exec) -> int:
    sys.stderr.flush()
    try:
        os.execvpe(program.argv[0], program.argv, program.environment)
    except OSError as error:
        raise Failure(
            ErrorCode.MISSING_PROGRAM, f"{program.argv[0]} cannot be run: {error.strerror}", "Is tmux installed?"
        ) from None


def _fail(failure: Failure, words: Sequence[str]) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.write(failures.render(failure, as_json=_wants_json(words)))
    return int(failure.status)


def _wants_json(words: Sequence[str]) -> bool:
    """Tell the form from the bare words: the command line may be what is wrong."""
    form = "table"
    for position, word in enumerate(words):
        if word == "--":
            break
        if word in ("-o", "--output") and position + 1 < len(words):
            form = words[position + 1]
        elif word.startswith("--output="):
            form = word.partition("=")[2]
        elif word.startswith("-o") and len(word) > 2:
            form = word[2:]
    return form in ("json", "jsonl")


if __name__ == "__main__":
    sys.exit(main())
