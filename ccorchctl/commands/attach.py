# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verbs that talk with an instance: ``attach``, ``detach``, ``send`` and ``interrupt``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ccorchctl.commands import Verbs
from ccorchctl.context import Context, Exec
from ccorchctl.failures import Failure, usage
from ccorchctl.output import count
from ccorchd.contract import ErrorCode

if TYPE_CHECKING:
    from ccorchctl.client import Client


def add(noun: Verbs) -> None:
    which = "instance (default: the one whose worktree this is)"
    parser = noun.verb(
        "attach",
        run_attach,
        "show an instance's terminal here; Ctrl-b d leaves it running",
        example="attach shop/api",
        description="Show an instance's terminal here. Leave with Ctrl-b d: it goes on without you. "
        "Several terminals can be attached at once.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=which)
    parser.add_argument("-r", "--read-only", action="store_true", help="look, don't touch: keys are ignored")
    parser.add_argument(
        "--window",
        choices=("agent", "shell"),
        default="agent",
        help="agent, or a shell in its worktree (default: agent)",
    )
    parser = noun.verb("detach", run_detach, "send every attached terminal away", example="detach shop/api")
    parser.add_argument("name", metavar="NAME", nargs="?", help=which)
    parser = noun.verb(
        "send",
        run_send,
        "give an instance a prompt, and wait until it has taken it",
        example='send shop/api "now write the tests"',
        description="Give an instance a prompt, and wait until it has taken it. Without TEXT, or with '-', it is read "
        "from standard input.",
    )
    parser.add_argument("name", metavar="NAME", help="instance")
    parser.add_argument("text", metavar="TEXT", nargs="*", help="the prompt; several words are joined with blanks")
    parser = noun.verb(
        "interrupt",
        run_interrupt,
        "have an instance break off what it does, as Escape would",
        example="interrupt shop/api",
    )
    parser.add_argument("name", metavar="NAME", help="instance")


def need_terminal() -> None:
    """Raise when this process has no terminal that tmux could take over."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Failure(
            ErrorCode.NOT_ALLOWED,
            "attaching needs a terminal, and standard input or output is none",
            "Over ssh use 'ssh -t'; to only look: ccorchctl screen NAME",
        )
    if not os.environ.get("TERM"):
        raise usage("TERM is not set, so tmux cannot know this terminal", "export TERM=xterm-256color")


async def takeover(client: Client, instance: str, *, read_only: bool = False, window: str = "agent") -> Exec:
    """Return the program that shows the instance's terminal, with the environment for it."""
    argv, extra = await client.attach(instance, read_only=read_only, window=window)
    environment = dict(os.environ) | extra
    # Inside another tmux the client would refuse to nest; it is a server of its own, so nesting is fine.
    if environment.get("TMUX"):
        await _tell_outer_tmux()
    environment.pop("TMUX", None)
    environment.pop("TMUX_PANE", None)
    return Exec(argv, environment)


async def _tell_outer_tmux() -> None:
    """Say in the status line of the tmux around us that Ctrl-b d would leave that one, when it has the same prefix."""
    import asyncio

    async def tmux(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        return said.decode(errors="replace").strip()

    try:
        async with asyncio.timeout(2):
            if await tmux("show-options", "-gv", "prefix") == "C-b":
                await tmux(
                    "display-message",
                    "-d",
                    "8000",
                    "This tmux is around ccorch's: leave the agent with Ctrl-b Ctrl-b d",
                )
    except (OSError, TimeoutError):
        return  # a courtesy; the terminal is what was asked for


async def run_attach(context: Context) -> Exec:
    options = context.options
    need_terminal()
    client = await context.client()
    target = await context.target(options.name)
    return await takeover(client, target.object, read_only=options.read_only, window=options.window)


async def run_detach(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    number = await client.detach(target.object)
    if context.out.human:
        what = f"{count(number, 'terminal')} detached from" if number else "No terminal is attached to"
        context.out.note(f"{what} {target.address}.")
    else:
        context.out.data({"address": target.address, "detached": number})
    return 0


async def run_send(context: Context) -> int:
    options = context.options
    text = " ".join(options.text)
    if text in ("", "-"):
        if not text and sys.stdin.isatty():
            raise usage("what should be sent?", f'Write: ccorchctl send {options.name} "TEXT", or pipe the text in.')
        text = sys.stdin.read().removesuffix("\n")
    if not text.strip():
        raise usage("an empty prompt cannot be sent")
    client = await context.client()
    target = await context.target(options.name)
    taken = await client.send(target.object, text)
    if context.out.human:
        fate = "has taken the prompt." if taken else "has it queued: it takes the prompt after its present turn."
        context.out.note(f"{target.address} {fate}")
    else:
        context.out.data({"address": target.address, "taken": taken})
    return 0


async def run_interrupt(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    await client.interrupt(target.object)
    context.out.note(f"{target.address} interrupted.")
    return 0
