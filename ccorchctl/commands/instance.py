# SPDX-License-Identifier: LGPL-2.1-or-later
"""``instance``: the grammar of all its verbs, and those that change an instance's life."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from ccorchctl import prompts
from ccorchctl.commands import Verbs, attach, project, view
from ccorchctl.context import Context, Exec, Target
from ccorchctl.failures import AWAY, Failure, usage
from ccorchctl.output import doing_text, home, machine, one_line, sentence, state_text
from ccorchd.contract import INSTANCE_FIELDS, ErrorCode, Exit, State

if TYPE_CHECKING:
    from ccorchctl.client import Client

_LIMIT_OPTIONS: Final = (
    ("--memory-max", "MemoryMax", "SIZE", "the kernel kills it above this: 512M, 2G, 40%% of the host, infinity"),
    ("--memory-high", "MemoryHigh", "SIZE", "it is slowed down above this"),
    ("--cpu-quota", "CPUQuota", "PERCENT", "share of one CPU it may take at most: 50%%, 200%%"),
    ("--cpu-weight", "CPUWeight", "N", "its share when CPUs are short, 1 to 10000 (default: 100)"),
    ("--tasks-max", "TasksMax", "N", "how many processes and threads it may have"),
)

SETTLED: Final = (State.IDLE, State.WAITING, State.STOPPED, State.FAILED)
"""States that end by themselves only when somebody does something."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

AGENT_HELP: Final = "what runs in it: claude, demo (a stand-in that needs no account), or one from the settings"


def add(verbs: Verbs) -> None:
    noun = verbs.noun(
        "instance",
        "run and control agents; these verbs work without the word 'instance' too",
        example="instance list",
    )

    parser = noun.verb(
        "create",
        run_create,
        "make a worktree and a branch, and start an agent in them",
        example='create api --prompt "write the REST API" --memory-max 2G',
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="its name, or project/name (default: one is made up)")
    parser.add_argument("--project", metavar="PROJECT", help="project it belongs to (default: the one of this folder)")
    parser.add_argument("--agent", metavar="AGENT", help=AGENT_HELP)
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="its first task; '-' reads it from standard input")
    parser.add_argument("--base", metavar="REF", help="commit or branch to begin from (default: the checkout's HEAD)")
    parser.add_argument("--branch", metavar="BRANCH", help="branch to make (default: ccorch/NAME)")
    for option, key, metavar, text in _LIMIT_OPTIONS:
        parser.add_argument(option, metavar=metavar, dest=key, help=text)
    parser.add_argument(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="a variable for it; without a value your own. For keys and tokens use 'ccorchctl secret'",
    )
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the agent, for example model=opus",
    )
    parser.add_argument("--no-start", action="store_true", help="don't start it yet")
    parser.add_argument("--attach", action="store_true", help="attach to it at once")

    view.add_list(noun)
    view.add_show(noun)

    for name, run, text in (
        ("start", run_start, "start stopped or failed instances; each resumes its session"),
        ("stop", run_stop, "stop instances and all they started; their work and session stay"),
        ("restart", run_restart, "stop and start instances"),
    ):
        parser = noun.verb(name, run, text, example=f"{name} shop/api")
        _several(parser)
        if name == "start":
            parser.add_argument(
                "-p", "--prompt", metavar="TEXT", help="what to do next; '-' reads it from standard input"
            )

    parser = noun.verb(
        "remove",
        run_remove,
        "remove instances and their worktrees; a branch with work that is not merged stays",
        example="remove shop/api",
        description="Stop instances and remove their worktrees. A branch with commits that are merged nowhere stays. "
        "Uncommitted changes are a reason to refuse; with --force they are saved under a git ref, which is printed.",
    )
    _several(parser)
    parser.add_argument("--force", action="store_true", help="also with uncommitted changes (a ref keeps them)")

    attach.add(noun)
    view.add_story(noun)

    parser = noun.verb(
        "wait",
        run_wait,
        "wait until instances are in a state",
        example="wait --all --until idle,waiting --timeout 30min",
        description="Wait until each instance is in one of the states. The exit status is 1 when one stops or fails "
        "and that was not waited for, and 7 when --timeout passes.",
    )
    _several(parser)
    parser.add_argument(
        "--until",
        metavar="STATES",
        type=_states,
        default=SETTLED,
        help=f"comma-separated states (default: {','.join(SETTLED)})",
    )
    parser.set_defaults(own_timeout=True)

    parser = noun.verb(
        "merge",
        run_merge,
        "merge an instance's branch into the branch of the main checkout",
        example="merge shop/api",
        description="Merge an instance's branch into the branch of the main checkout. Refused while that has "
        "uncommitted changes; a conflict is reported with its files and leaves the checkout as it was.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="instance (default: the one whose worktree this is)")


def _several(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="instance: project/name, or name in the project's checkout"
    )
    parser.add_argument("--all", action="store_true", help="all instances")
    parser.add_argument(
        "--project", metavar="PROJECT", help="with --all: only those of this project; '.' is this folder's"
    )


def _states(text: str) -> tuple[State, ...]:
    try:
        return tuple(State(word.strip()) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: states are {', '.join(State)}") from None


# ---------------------------------------------------------------- create


def given_text(text: str | None) -> str:
    """Return a prompt: *text*, or standard input for ``-``."""
    if text != "-":
        return text or ""
    if sys.stdin.isatty():
        print("Type the text; end with Ctrl-D.", file=sys.stderr)
    return sys.stdin.read().strip("\n")


def _table(words: list[str], option: str, *, own: bool) -> dict[str, str]:
    """Parse ``NAME=VALUE`` words; with *own* a lone NAME takes the caller's variable."""
    table: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or (own and not _NAME.match(name)):
            raise usage(f"{option} {word!r} has no proper name before the '='")
        if not equals:
            if not own:
                raise usage(f"{option} {word!r} has no value", f"Write {option} {name}=VALUE.")
            if name not in os.environ:
                raise usage(
                    f"{option} {name}: you have no such variable", f"Write {option} {name}=VALUE, or export it."
                )
            value = os.environ[name]
        table[name] = value
    return table


async def create(
    context: Context, client: Client, project_name: str, name: str, **options: Any
) -> tuple[str, dict[str, Any]]:
    """Create an instance; where its set-up steps need agreement and somebody can be asked, ask and try again.

    Returns object path and record.
    """
    try:
        path = await client.create_instance(project_name, name, **options)
    except Failure as failure:
        if failure.code == ErrorCode.MISSING_PROGRAM and not options.get("agent") and "claude" in failure.message:
            # The first thing that many will see; ccorch can be tried without an account all the same.
            hint = f"{failure.hint} To look around without it: --agent demo."
            raise Failure(failure.code, failure.message, hint) from None
        if failure.code != ErrorCode.SETUP_NOT_AGREED or not (context.options.yes or prompts.interactive()):
            raise
        if not await project.agree(context, client, await client.project(project_name)):
            raise Failure(ErrorCode.SETUP_NOT_AGREED, "not agreed; nothing was made") from None
        path = await client.create_instance(project_name, name, **options)
    return path, await client.describe(path)


async def run_create(context: Context) -> int | Exec:
    options = context.options
    project_name, slash, name = (options.name or "").rpartition("/")
    if slash and options.project and options.project != project_name:
        raise usage(f"the address {options.name} and --project {options.project} name different projects")
    if options.attach and options.no_start:
        raise usage("--attach and --no-start exclude each other")
    if options.attach:
        attach.need_terminal()
    variables = _table(options.env, "--env", own=True)
    details = _table(options.option, "--option", own=False)
    prompt = given_text(options.prompt)
    client = await context.client()
    path, record = await create(
        context,
        client,
        await context.project_name(project_name or options.project),
        name,
        agent=options.agent or "",
        prompt=prompt,
        base=options.base or "",
        branch=options.branch or "",
        limits={key: value for _, key, _, _ in _LIMIT_OPTIONS if (value := getattr(options, key)) is not None},
        environment=await client.environment(),
        variables=variables,
        options=details,
        start=not options.no_start,
    )
    address = str(record["address"])
    if context.out.human:
        what = "created" if options.no_start else "started"
        context.out.note(
            f"{address} {what}: branch {record.get('branch', '')} in {home(str(record.get('worktree', '')))}"
        )
        if not options.attach:
            context.out.note(f"Next: ccorchctl {'start' if options.no_start else 'attach'} {address}")
    else:
        context.out.data(machine(record, INSTANCE_FIELDS))
    return await attach.takeover(client, path) if options.attach else 0


# ---------------------------------------------------------------- start, stop, restart, remove, merge


async def _targets(context: Context) -> list[Target]:
    options = context.options
    if options.project and not options.all:
        raise usage("--project goes with --all")
    targets = await context.targets(options.names, every=options.all)
    if not targets:
        context.out.note("No instances.")
    return targets


async def run_start(context: Context) -> int:
    prompt = given_text(context.options.prompt)
    client = await context.client()
    environment = await client.environment()
    targets = await _targets(context)
    if context.options.all:  # those that run already are no error then
        records = {str(record["object"]): record for record in await client.instances()}
        targets = [t for t in targets if not State(str(records[t.object]["state"])).running]

    async def work(target: Target) -> str:
        await client.start(target.object, environment=environment, prompt=prompt)
        return f"{target.address} started."

    return await context.each(targets, work)


async def run_stop(context: Context) -> int:
    client = await context.client()
    targets = await _targets(context)
    if context.options.all:
        records = {str(record["object"]): record for record in await client.instances()}
        targets = [t for t in targets if State(str(records[t.object]["state"])).running]
        if targets:
            prompts.require(f"Stop {_these(targets)}?", yes=context.options.yes)

    async def work(target: Target) -> str:
        await client.stop(target.object)
        return f"{target.address} stopped."

    return await context.each(targets, work)


async def run_restart(context: Context) -> int:
    client = await context.client()
    environment = await client.environment()

    async def work(target: Target) -> str:
        await client.restart(target.object, environment=environment)
        return f"{target.address} restarted."

    return await context.each(await _targets(context), work)


def _these(targets: list[Target]) -> str:
    return targets[0].address if len(targets) == 1 else f"{len(targets)} instances"


async def run_remove(context: Context) -> int:
    client = await context.client()
    targets = await _targets(context)
    if not targets:
        return 0
    force = context.options.force
    loss = "; uncommitted changes go to a git ref" if force else ""
    prompts.require(
        f"Remove {', '.join(target.address for target in targets[:5])}{' …' if len(targets) > 5 else ''}"
        f" and {'its worktree' if len(targets) == 1 else 'their worktrees'}{loss}?",
        yes=context.options.yes,
    )
    removed: list[dict[str, Any]] = []

    async def work(target: Target) -> str:
        result = await client.remove(target.object, force=force)
        removed.append({"address": target.address, **result})
        return removed_text(target.address, result)

    status = await context.each(targets, work)
    if not context.out.human:
        context.out.data(removed)
    return status


def removed_text(address: str, result: dict[str, Any]) -> str:
    """Return what became of an instance's branch and changes, in one sentence or two."""
    branch = one_line(str(result.get("branch", "")))
    if not branch:
        fate = ""
    elif result.get("branch_deleted"):
        fate = f" Branch {branch} held nothing that is not merged, and went with it."
    else:
        fate = f" Branch {branch} stays: its work is merged nowhere (git branch -D {branch} would delete it)."
    kept = f" What was not committed is kept: git show {result['kept_ref']}" if result.get("kept_ref") else ""
    return f"{address} removed.{fate}{kept}"


async def run_merge(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    commit = await client.merge(target.object)
    if context.out.human:
        context.out.note(f"{target.address} merged; the checkout is at {commit[:12]}.")
    else:
        context.out.data({"address": target.address, "commit": commit})
    return 0


# ---------------------------------------------------------------- wait


async def run_wait(context: Context) -> int:
    import asyncio

    client = await context.client()
    targets = await _targets(context)
    if not targets:
        return 0
    try:
        async with asyncio.timeout(context.options.timeout):
            records = await settle(context, client, targets, context.options.until)
    except TimeoutError:
        now = {str(record["object"]): record for record in await client.instances()}
        late = [
            f"{target.address} ({now[target.object]['state']})"
            for target in targets
            if target.object in now and now[target.object]["state"] not in context.options.until
        ]
        raise Failure(
            ErrorCode.TIMEOUT,
            f"not yet {' or '.join(context.options.until)}: {', '.join(late) or 'the last of them'}",
        ) from None
    if not context.out.human:
        full = [machine(record, INSTANCE_FIELDS) for record in records]
        context.out.data(full[0] if len(full) == 1 and not context.options.all else full)
    return int(Exit.OK) if all(record["state"] in context.options.until for record in records) else int(Exit.FAILURE)


async def settle(
    context: Context, client: Client, targets: list[Target], until: tuple[State, ...], *, say: bool = True
) -> list[dict[str, Any]]:
    """Wait for as long as it takes until each instance is in one of *until*, or has stopped, failed or gone.

    Returns the records in the order of *targets*. Follows signals; a restart of the daemon on the way does no harm.
    """
    ends = {*until, State.STOPPED, State.FAILED}
    done: dict[str, dict[str, Any]] = {}

    async def look(target: Target) -> None:
        try:
            record = await client.describe(target.object)
        except Failure as failure:
            if failure.code in AWAY:
                return  # the next owner of the name makes us look again
            # An unknown object answers like an unknown method; the address tells which it was.
            try:
                await client.instance(target.address)
            except Failure as gone:
                if gone.code == ErrorCode.NO_SUCH_INSTANCE:
                    raise Failure(ErrorCode.NO_SUCH_INSTANCE, f"{target.address} was removed meanwhile") from None
                raise
            raise failure from None
        if record["state"] in ends:
            done[target.object] = record
            if say:
                text = one_line(doing_text(record))
                state = sentence(target.address, state_text(record), record)
                context.out.note(f"{state}{f' ({text})' if text else ''}")

    async with client.follow_instances() as signals:
        for target in targets:
            await look(target)
        while len(done) < len(targets):
            member, path, body = await signals.get()
            if member == "NameOwnerChanged":
                again = [target for target in targets if body[2]]
            elif member == "InterfacesRemoved":
                again = [target for target in targets if target.object == body[0]]
            else:
                again = [target for target in targets if target.object == path]
            for target in again:
                if target.object not in done:
                    await look(target)
    return [done[target.object] for target in targets]
