# SPDX-License-Identifier: LGPL-2.1-or-later
"""``try``: one agent from prompt to decision. Afterwards its work is kept, merged or discarded."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from ccorchctl import prompts
from ccorchctl.commands import Verbs
from ccorchctl.commands.attach import need_terminal, takeover
from ccorchctl.commands.init import initialise
from ccorchctl.commands.instance import AGENT_HELP, SETTLED, create, given_text, removed_text, settle
from ccorchctl.context import Context, Target
from ccorchctl.failures import Failure, usage
from ccorchctl.output import clean, count, doing_text, home, machine, one_line, sentence
from ccorchd.contract import INSTANCE_FIELDS, ErrorCode, Exit, State

if TYPE_CHECKING:
    from ccorchctl.client import Client

_SHOWN: Final = 20
"""How many commits the summary lists."""

CHOICES: Final = {
    "keep": "leave branch, worktree and agent as they are",
    "merge": "merge the branch into your checkout, then remove the instance",
    "discard": "stop the agent and remove its worktree; a branch with commits stays",
}


def add(verbs: Verbs) -> None:
    parser = verbs.verb(
        "try",
        run_try,
        "give one agent a task, watch it, then keep, merge or discard its work",
        example='try "add a test for the parser"',
        description="Give one agent a task: makes this repository a project if it is none, starts an instance, and "
        "attaches to it. After leaving (Ctrl-b d) you see what it changed, and keep, merge or discard it. Without a "
        "terminal it waits until the agent is idle or needs somebody, and keeps the work unless told otherwise.",
    )
    parser.add_argument("prompt", metavar="PROMPT", nargs="+", help="the task; '-' reads it from standard input")
    parser.add_argument("--agent", metavar="AGENT", help=AGENT_HELP)
    group: argparse._MutuallyExclusiveGroup = parser.add_mutually_exclusive_group()
    for word, meaning in CHOICES.items():
        group.add_argument(
            f"--{word}", dest="decision", action="store_const", const=word, help=f"don't ask afterwards: {meaning}"
        )
    parser.add_argument(
        "--no-attach", action="store_true", help="don't attach, wait until it is idle or needs somebody"
    )
    parser.set_defaults(own_timeout=True)


async def run_try(context: Context) -> int:
    import asyncio

    options, out = context.options, context.out
    prompt = given_text(" ".join(options.prompt))
    if not prompt.strip():
        raise usage("what should the agent do?", 'ccorchctl try "add a test for the parser"')
    attached = not options.no_attach and prompts.interactive() and sys.stdout.isatty() and out.human
    if attached:
        need_terminal()
    if options.decision == "discard" and not options.yes and not prompts.interactive():
        prompts.require("", yes=False)  # refuses, and does so before there is anything to discard
    client = await context.client()
    place = await context.here()
    if place is None:
        place = (await initialise(context, client, "."))[0]
    path, record = await create(
        context,
        client,
        str(place["name"]),
        "",
        agent=options.agent or "",
        prompt=prompt,
        environment=await client.environment(),
    )
    target = Target(str(record["address"]), path)
    out.note(f"{target.address} started: branch {record.get('branch', '')} in {home(str(record.get('worktree', '')))}")
    if attached:
        await _watch(client, target)
    else:
        try:
            async with asyncio.timeout(options.timeout):
                await settle(context, client, [target], SETTLED, say=False)
        except asyncio.CancelledError:  # Ctrl-C
            out.warn(f"\n{target.address} goes on: ccorchctl attach {target.address}")
            raise
        except TimeoutError:
            raise Failure(
                ErrorCode.TIMEOUT,
                f"{target.address} is still at work",
                f"It goes on: ccorchctl attach {target.address}; its work so far: ccorchctl diff {target.address}",
            ) from None
    record = await client.describe(target.object)
    commits = await client.commits(target.object)
    stat = await client.diff(target.object, stat=True)
    if out.human:
        _summary(context, target, record, commits, stat)
    asks = out.human and prompts.interactive() and sys.stdout.isatty()
    decision = options.decision or (_ask(target, record, commits, stat) if asks else "keep")
    outcome = await _DECIDED[decision](context, client, target, record, commits)
    if not out.human:
        out.data(
            {
                "instance": machine(record, INSTANCE_FIELDS),
                "commits": [{"id": commit, "subject": subject} for commit, subject in commits],
                "stat": stat,
                "decision": decision,
                "outcome": outcome,
            }
        )
    return int(Exit.FAILURE) if record["state"] == State.FAILED else 0


async def _watch(client: Client, target: Target) -> None:
    """Run the terminal as a child, so that there is somebody to ask when it ends."""
    import asyncio

    program = await takeover(client, target.object)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the agent while its terminal is shown
    try:
        process = await asyncio.create_subprocess_exec(*program.argv, env=program.environment)
        await process.wait()
    except OSError as error:
        raise Failure(
            ErrorCode.MISSING_PROGRAM,
            f"{program.argv[0]} cannot be run: {error.strerror}",
            f"The agent goes on: ccorchctl attach {target.address}",
        ) from None
    finally:
        signal.signal(signal.SIGINT, before)


def _summary(
    context: Context, target: Target, record: dict[str, Any], commits: list[tuple[str, str]], stat: str
) -> None:
    out = context.out
    out.line()
    text = one_line(doing_text(record))
    out.line(f"{sentence(target.address, out.state(record), record)}{f': {text}' if text else ''}")
    out.line(f"{count(len(commits), 'commit')} on {clean(str(record.get('branch', '')))}")
    for commit, subject in commits[:_SHOWN]:
        out.fitted(f"{commit[:9]}  {one_line(subject)}", indent=2)
    if len(commits) > _SHOWN:
        out.line(f"  {out.ellipsis} {len(commits) - _SHOWN} more")
    if stat.strip():
        for line in stat.rstrip().splitlines():
            out.line(clean(line))
    else:
        out.line("No changes.")


def _ask(target: Target, record: dict[str, Any], commits: list[tuple[str, str]], stat: str) -> str:
    if not commits and not stat.strip() and State(str(record["state"])).running:
        question = "It has changed nothing yet. What now?"
    else:
        question = "What shall become of it?"
    try:
        return prompts.choose(question, CHOICES, default="keep")
    except KeyboardInterrupt:
        print(f"\n{target.address} is as it was. See 'ccorchctl show {target.address}'.", end="", file=sys.stderr)
        raise


async def _keep(context: Context, _client: Client, target: Target, record: dict[str, Any], _: object) -> str:
    goes_on = State(str(record["state"])).running
    text = f"{target.address} is kept" + (" and goes on." if goes_on else ".")
    context.out.note(text)
    context.out.note(
        f"Next: ccorchctl {'attach' if goes_on else 'start'} {target.address}, or ccorchctl merge {target.address}"
    )
    return text


async def _merge(
    context: Context, client: Client, target: Target, record: dict[str, Any], commits: list[tuple[str, str]]
) -> str:
    if not commits:
        text = f"{target.address} has no commits to merge; it is kept."
        context.out.note(text)
        return text
    commit = await client.merge(target.object)
    text = f"{target.address} merged; your checkout is at {commit[:12]}."
    context.out.note(text)
    if record["state"] in (State.WORKING, State.STARTING):
        kept = f"{target.address} is still at work, so it is kept."
    else:
        kept = removed_text(target.address, await client.remove(target.object))
    context.out.note(kept)
    return f"{text} {kept}"


async def _discard(
    context: Context, client: Client, target: Target, record: dict[str, Any], commits: list[tuple[str, str]]
) -> str:
    question = f"Discard {target.address} ({count(len(commits), 'commit')})?"
    if not context.options.yes and context.options.decision is None and not prompts.confirm(question):
        return await _keep(context, client, target, record, commits)
    if context.options.decision is not None:
        prompts.require(question, yes=context.options.yes)
    text = removed_text(target.address, await client.remove(target.object, force=True))
    context.out.note(text)
    return text


_DECIDED: Final = {"keep": _keep, "merge": _merge, "discard": _discard}
