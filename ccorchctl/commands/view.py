# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verbs that look at an instance: ``list``, ``show``, ``diff``, ``screen``, ``logs`` and ``why``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from ccorchctl.commands import Verbs
from ccorchctl.commands.events import ALL, Journal, add_range, is_of, of_trail, read, show
from ccorchctl.context import Context
from ccorchctl.failures import Failure
from ccorchctl.output import (
    STATE_COLOUR,
    URGENCY,
    Column,
    against,
    age,
    clean,
    count,
    cut,
    doing_text,
    duration,
    home,
    machine,
    one_line,
    sentence,
    size,
    stamp,
    state_text,
    unenforced_words,
)
from ccorchd.contract import EVENT_FIELDS, INSTANCE_FIELDS, LIMITS, ErrorCode, State

_DEBUG: Final = 7
_HEAD, _TAIL = 5, 40
"""How many rows of a long story ``why`` shows from its beginning and its end."""

WHICH: Final = "instance (default: the one whose worktree this is)"


def add_list(noun: Verbs) -> None:
    parser = noun.verb(
        "list", run_list, "list instances, those that need somebody first", example="list --state waiting,failed"
    )
    parser.add_argument("--project", metavar="PROJECT", help="only this project's; '.' is the one of this folder")
    parser.add_argument(
        "--state",
        metavar="STATES",
        type=_state_words,
        default=(),
        help=f"only these, comma-separated: {', '.join(State)}",
    )


def add_show(noun: Verbs) -> None:
    parser = noun.verb(
        "show", run_show, "show all about an instance: state, branch, usage against its limits", example="show shop/api"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=WHICH)


def add_story(noun: Verbs) -> None:
    parser = noun.verb("logs", run_logs, "show what an instance did, line by line", example="logs -f shop/api")
    parser.add_argument("name", metavar="NAME", nargs="?", help=WHICH)
    add_range(parser)
    parser = noun.verb(
        "why",
        run_why,
        "tell an instance's story: how it came to be in its state",
        example="why shop/api",
        description="Tell an instance's story: what happened to it, when, and why it is in its state; last, the "
        "journalctl line that shows more. Works for removed instances too.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=WHICH)
    parser = noun.verb(
        "diff",
        run_diff,
        "show what an instance changed since its base, uncommitted changes included",
        example="diff --stat shop/api",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help=WHICH)
    parser.add_argument("--stat", action="store_true", help="only files and numbers of lines")
    parser = noun.verb("screen", run_screen, "print what is on an instance's terminal now", example="screen shop/api")
    parser.add_argument("name", metavar="NAME", nargs="?", help=WHICH)


def _state_words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in list(State):
            raise argparse.ArgumentTypeError(f"{word!r} is no state; states are {', '.join(State)}")
    return words


# ---------------------------------------------------------------- list and show


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records with those that need somebody first, and among these the one that waits longest."""
    return sorted(
        records,
        key=lambda r: (
            URGENCY.index(r["state"]) if r["state"] in URGENCY else len(URGENCY),
            r.get("since", 0) if r["state"] in (State.WAITING, State.FAILED) else 0,
            str(r.get("address")),
        ),
    )


def _limit(record: Mapping[str, Any], key: str) -> str:
    return str((record.get("limits") or {}).get(key, ""))


def cpu(record: Mapping[str, Any]) -> str:
    return duration(record.get("cpu_usage_seconds"))


COLUMNS: Final = (
    Column("INSTANCE", lambda r: str(r["address"]), least=24, key=True),
    Column("STATE", state_text, colour=lambda r: STATE_COLOUR.get(str(r.get("state")), "")),
    Column("SINCE", lambda r: age(r.get("since")), drop=3),
    Column("MEMORY", lambda r: against(r.get("memory_current"), _limit(r, "MemoryMax")), right=True, drop=4),
    Column("CPU", cpu, right=True, drop=6),
    Column("TASKS", lambda r: str(r.get("tasks_current", "")), right=True, drop=7),
    Column("AGENT", lambda r: str(r.get("agent", "")), drop=8),
    Column("BRANCH", lambda r: str(r.get("branch", "")), least=14, drop=9),
    Column("DOING", doing_text, least=16, drop=1),
)


async def run_list(context: Context) -> int:
    options, client = context.options, await context.client()
    project = await context.project_name(options.project) if options.project else ""
    records = in_order(await client.instances(project=project, states=options.state))
    if not context.out.human:
        context.out.data([machine(record, INSTANCE_FIELDS) for record in records])
        return 0
    chosen = bool(project or options.state)
    empty = "No such instances." if chosen else "No instances. In a project's checkout: ccorchctl create NAME"
    context.out.table(records, COLUMNS, empty=empty)
    if len(records) > 10:
        states = [(state, sum(r["state"] == state for r in records)) for state in URGENCY]
        context.out.note(
            f"{count(len(records), 'instance')}: {', '.join(f'{number} {state}' for state, number in states if number)}"
        )
    return 0


async def run_show(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    record = await client.describe(target.object)
    out = context.out
    if not out.human:
        out.data(machine(record, INSTANCE_FIELDS))
        return 0
    since = record.get("since")
    dot = "●" if out.encodes("●") else "*"
    out.line(f"{out.state(record, dot)} {out.paint(target.address, 'bold')}")
    estimate = " (added up from its processes)" if record.get("measured") == "processes" else ""
    unenforced = unenforced_words(await client.status())
    out.fields(
        [
            ("State", out.state(record) + (f" since {stamp(since)} ({age(since)})" if since else "")),
            ("Why", one_line(str(record.get("reason_text") or ""))),
            ("Doing", _doing(record)),
            ("Prompt", out_cut(context, one_line(str(record.get("prompt") or "")))),
            ("Agent", clean(str(record.get("agent") or ""))),
            ("Session", clean(str(record.get("session_id") or ""))),
            ("Branch", clean(str(record.get("branch") or "")) + _from(record)),
            ("Worktree", home(clean(str(record.get("worktree") or "")))),
            ("Unit", str(record.get("unit") or "")),
            ("PID", str(record.get("pid") or "")),
            ("Port", str(record.get("port") or "")),
            ("Memory", _memory(record) + (estimate if record.get("memory_current") is not None else "")),
            ("CPU", _cpu_line(record)),
            ("Tasks", _of(record.get("tasks_current"), _limit(record, "TasksMax"))),
            ("OOM kills", str(record["oom_kills"]) if record.get("oom_kills") else ""),
            ("Pressure", _pressure(record)),
            ("Limits", ", ".join(f"{key} {_limit_words(record, key)}" for key in LIMITS if _limit(record, key))),
            ("Not enforced", out.paint(f"{unenforced} (see 'ccorchctl doctor')", "yellow") if unenforced else ""),
            ("Created", f"{stamp(record['created'])} ({age(record['created'])})" if record.get("created") else ""),
            ("Restarts", str(record.get("restarts", 0))),
        ]
    )
    return 0


def _doing(record: Mapping[str, Any]) -> str:
    """Return what it does; of one that waits or has ended that would be what it did before."""
    return one_line(str(record.get("doing") or "")) if record["state"] in (State.WORKING, State.STARTING) else ""


def out_cut(context: Context, text: str) -> str:
    """Return *text* cut so that a field of it stays on one line."""
    out = context.out
    return text if out.columns is None else cut(text, max(20, out.columns - 12), out.ellipsis)


def _from(record: Mapping[str, Any]) -> str:
    return f" (from {clean(str(record['base']))})" if record.get("base") else ""


def _of(used: Any, limit: str) -> str:
    if used is None:
        return ""
    return f"{used} of {limit}" if limit and limit != "infinity" else str(used)


def _memory(record: Mapping[str, Any]) -> str:
    used, limit = record.get("memory_current"), _limit(record, "MemoryMax")
    if used is None:
        return ""
    text = against(used, limit).replace(" ", f" of {size(int(limit))}, " if limit.isdigit() else " ")
    return text + (f", peak {size(record['memory_peak'])}" if record.get("memory_peak") is not None else "")


def _cpu_line(record: Mapping[str, Any]) -> str:
    text = cpu(record)
    quota = _limit(record, "CPUQuota")
    return f"{text} (at most {quota} of one CPU)" if text and quota and quota != "infinity" else text


def _pressure(record: Mapping[str, Any]) -> str:
    parts = [
        f"{word} {record[key]:.1f}%"
        for word, key in (("memory", "memory_pressure"), ("CPU", "cpu_pressure"))
        if record.get(key)
    ]
    return ", ".join(parts)


def _limit_words(record: Mapping[str, Any], key: str) -> str:
    text = _limit(record, key)
    return size(int(text)) if key.startswith("Memory") and text.isdigit() else "none" if text == "infinity" else text


# ---------------------------------------------------------------- diff, screen


async def run_diff(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    text = await client.diff(target.object, stat=context.options.stat)
    if not context.out.human:
        context.out.data({"address": target.address, "diff": text})
        return 0
    if not text.strip():
        context.out.note(f"{target.address} has changed nothing.")
        return 0
    print_diff(context, text)
    return 0


def print_diff(context: Context, text: str) -> None:
    """Print a diff: coloured and made safe for a terminal, or as it is, so that git apply can read it."""
    out = context.out
    if not out.stream.isatty():
        out.stream.write(text if text.endswith("\n") else text + "\n")
        return
    for line in text.splitlines():
        colour = ""
        if line.startswith(("diff ", "index ", "+++", "---")):
            colour = "bold"
        elif line.startswith("@@"):
            colour = "cyan"
        elif line.startswith("+"):
            colour = "green"
        elif line.startswith("-"):
            colour = "red"
        out.line(out.paint(clean(line, keep="\t"), colour))


async def run_screen(context: Context) -> int:
    client = await context.client()
    target = await context.target(context.options.name)
    text = await client.screen(target.object)
    if context.out.human:
        lines = [clean(line, keep="\t").rstrip() for line in text.rstrip().split("\n")]
        for line in lines:
            context.out.line(line)
    else:
        context.out.data({"address": target.address, "screen": text})
    return 0


# ---------------------------------------------------------------- logs, why


async def _known(context: Context, address: str) -> dict[str, Any] | None:
    """Return the instance's record, or None when it was removed but left events; raise if there never was one."""
    client = await context.client()
    try:
        return await client.describe(await client.instance(address))
    except Failure as failure:
        if failure.code in (ErrorCode.NO_SUCH_INSTANCE, ErrorCode.NO_SUCH_PROJECT):
            try:
                rows = await client.events(instance=address, limit=1, newest=True)
            except Failure:
                raise failure from None
            if rows:
                return None
        raise


async def run_logs(context: Context) -> int:
    address = await context.address(context.options.name)
    await _known(context, address)
    return await show(
        context, place=False, wanted=lambda row: is_of(row, address) and not of_trail(row), instance=address
    )


async def run_why(context: Context) -> int:
    client, out = await context.client(), context.out
    address = await context.address(context.options.name)
    record = await _known(context, address)
    rows = await read(client, lines=ALL, since=None, default=0, instance=address)
    rows = [row for row in rows if int(row.get("priority", 6)) < _DEBUG]
    unit = str(record["unit"]) if record and record.get("unit") else context.naming.scope(*address.split("/", 1))
    line = f"journalctl --user -u {unit}"
    if not out.human:
        story = [machine(row, EVENT_FIELDS) for row in rows]
        out.data({"instance": machine(record, INSTANCE_FIELDS) if record else None, "events": story, "journal": line})
        return 0
    if record is None:
        out.line(f"{address} has been removed.")
    else:
        text = one_line(doing_text(record))
        ago = f" ({age(record['since'])})" if record.get("since") else ""
        head = sentence(out.paint(address, "bold"), out.state(record), record)
        out.line(f"{head}{ago}{f': {text}' if text else ''}")
    out.line()
    journal = Journal(out, place=False)
    if len(rows) > _HEAD + _TAIL and not context.options.full:
        journal.print(rows[:_HEAD])
        out.line(f"{out.ellipsis} {len(rows) - _HEAD - _TAIL} more (--full shows all)")
        journal.print(rows[-_TAIL:])
    else:
        journal.print(rows)
    out.line()
    out.line(f"More: {line}")
    return 0
