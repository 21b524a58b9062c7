# SPDX-License-Identifier: LGPL-2.1-or-later
"""``events`` and ``audit``; and the reading and printing of event rows that ``logs`` and ``why`` share."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.output import Column, Output, clean, cut, machine, moment, one_line
from ccorchctl.times import parse_since
from ccorchd.contract import EVENT_FIELDS

if TYPE_CHECKING:
    from ccorchctl.client import Client

Row = dict[str, Any]

ALL: Final = 0
"""Value of ``--lines`` for "no limit"."""


def add(verbs: Verbs) -> None:
    parser = verbs.verb(
        "events", run_events, "show what happened, everywhere or in one place", example="events -f --project shop"
    )
    parser.add_argument("--instance", metavar="NAME", help="only events of this instance")
    parser.add_argument(
        "--project", metavar="PROJECT", help="only events of this project; '.' is the one of this folder"
    )
    parser.add_argument(
        "--kind",
        metavar="KIND",
        action="append",
        default=[],
        help="only events of this kind; may be given several times",
    )
    add_range(parser)

    parser = verbs.verb(
        "audit",
        run_audit,
        "show who changed what: every call that changes something, refused ones too",
        example="audit -n 20",
    )
    parser.add_argument("--instance", metavar="NAME", help="only calls about this instance")
    parser.add_argument(
        "--project", metavar="PROJECT", help="only calls about this project; '.' is the one of this folder"
    )
    add_range(parser, follow=False)


def add_range(parser: argparse.ArgumentParser, *, follow: bool = True) -> None:
    """Add ``-n``, ``--since`` and ``-f``, with journalctl's letters."""
    parser.add_argument(
        "-n", "--lines", metavar="N", type=_lines, help="show the last N lines, or 'all' (default: 50; 10 with -f)"
    )
    parser.add_argument(
        "--since", metavar="TIME", type=parse_since, help="from this time on: '10 min ago', today, 14:30"
    )
    if follow:
        parser.add_argument(
            "-f", "--follow", action="store_true", help="go on with new ones as they come, until Ctrl-C"
        )
    else:
        parser.set_defaults(follow=False)


def _lines(text: str) -> int:
    if text == "all":
        return ALL
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of lines; give a number above 0, or 'all'")


async def read(client: Client, *, lines: int | None, since: float | None, default: int, **chosen: Any) -> list[Row]:
    """Return event rows, oldest first: the last *lines* (None: *default*, or no limit with *since*), not before *since*."""
    if lines is None:
        lines = ALL if since is not None else default
    start = 0 if since is None else int(since * 1_000_000)
    if lines:
        rows = await client.events(newest=True, limit=lines, **chosen)
        return [row for row in rows if row["time"] >= start]
    limit = 1000
    while True:  # the daemon pages by count from the end: ask for more until the start is covered
        rows = await client.events(newest=True, limit=limit, **chosen)
        if len(rows) < limit or rows[0]["time"] < start or limit > 10_000_000:
            return [row for row in rows if row["time"] >= start]
        limit *= 8


async def follow(client: Client, after: int, wanted: Callable[[Row], bool], **chosen: Any) -> AsyncIterator[Row]:
    """Yield new rows that are *wanted*, each once and in order, for ever; a restart of the daemon leaves no gap.

    *after* is the id of the last row already seen; *chosen* is the same choice in words of ListEvents.
    """
    async with client.follow_events() as signals:
        for row in await client.events(after=after, limit=1_000_000, **chosen):
            after = int(row["id"])
            yield row
        async for member, _path, body in signals:
            if member == "NameOwnerChanged":
                if body[2]:  # a new owner: read what it may have written before we heard of it
                    for row in await client.events(after=after, limit=1_000_000, **chosen):
                        after = max(after, int(row["id"]))
                        yield row
            elif int(body[0]["id"]) > after and wanted(body[0]):
                after = int(body[0]["id"])
                yield body[0]


class Journal:
    """Prints rows as lines of a log: a heading for each day, then time, place, and what happened."""

    def __init__(self, out: Output, *, place: bool) -> None:
        self._out = out
        self._place = place
        self._day = ""

    def print(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> None:
        out = self._out
        if not out.human:
            out.data(machine(row, EVENT_FIELDS))
            return
        when = moment(int(row["time"]))
        day = when.strftime("%a %Y-%m-%d")
        if day != self._day:
            self._day = day
            out.line(out.paint(f"-- {day} --", "grey"))
        head = when.strftime("%H:%M:%S")
        place = f"  {_place(row)}" if self._place else ""
        room = None if out.columns is None else max(20, out.columns - len(head) - len(place) - 2)
        text = one_line(str(row.get("message", "")))
        if room is not None:
            text = cut(text, room, out.ellipsis)
        priority = int(row.get("priority", 6))
        colour = "red" if priority <= 3 else "yellow" if priority == 4 else "bold" if priority == 5 else ""
        out.line(f"{out.paint(head, 'grey')}{out.paint(place, 'cyan')}  {out.paint(text, colour)}")


def _place(row: Mapping[str, Any]) -> str:
    project, name = str(row.get("project") or ""), str(row.get("instance") or "")
    if "/" in name:
        return clean(name)
    return clean(f"{project}/{name}" if name else project or "ccorchd")


async def show(
    context: Context, *, place: bool, default: int = 50, wanted: Callable[[Row], bool], **chosen: Any
) -> int:
    """Print the rows that the options of :func:`add_range` ask for; with -f go on until interrupted."""
    options, client = context.options, await context.client()
    last = 10 if options.follow else default
    rows = await read(client, lines=options.lines, since=options.since, default=last, **chosen)
    if context.out.form == "json" and not options.follow:
        context.out.data([machine(row, EVENT_FIELDS) for row in rows])
        return 0
    if options.follow and context.out.form == "json":
        context.out.form = "jsonl"  # an array that never ends is no JSON
    journal = Journal(context.out, place=place)
    journal.print(rows)
    if not options.follow:
        if not rows:
            context.out.note("No events.")
        return 0
    context.out.stream.flush()
    newest = int(rows[-1]["id"]) if rows else await _newest(client)
    async for row in follow(client, newest, wanted, **chosen):
        journal.row(row)
        context.out.stream.flush()
    return 0


async def _newest(client: Client) -> int:
    rows = await client.events(newest=True, limit=1)
    return int(rows[-1]["id"]) if rows else 0


async def _choice(context: Context) -> dict[str, Any]:
    options = context.options
    chosen: dict[str, Any] = {}
    if options.instance:
        chosen["instance"] = await context.address(options.instance)
    if options.project:
        chosen["project"] = await context.project_name(options.project)
    return chosen


async def run_events(context: Context) -> int:
    chosen = await _choice(context)
    kinds = frozenset(context.options.kind)
    if kinds:
        chosen["kinds"] = sorted(kinds)
    return await show(
        context,
        place="instance" not in chosen,
        wanted=lambda row: (
            is_of(row, chosen.get("instance", ""), chosen.get("project", "")) and (not kinds or row["kind"] in kinds)
        ),
        **chosen,
    )


def is_of(row: Row, instance: str, project: str = "") -> bool:
    """True when *row* is about *instance* (an address) and *project*; "" takes any."""
    if project and row.get("project") != project:
        return False
    return not instance or _place(row) == instance


AUDIT: Final = (
    Column("WHEN", lambda row: moment(int(row["time"])).strftime("%Y-%m-%d %H:%M:%S")),
    Column("WHO", lambda row: str(row.get("actor", "")), least=6),
    Column("WHERE", _place, least=10, drop=2),
    Column("WHAT", lambda row: str(row.get("kind", "")), least=8, drop=1),
    Column("OUTCOME", lambda row: str(row.get("message", "")), least=20),
)


async def run_audit(context: Context) -> int:
    options, client = context.options, await context.client()
    rows = await read(
        client, lines=options.lines, since=options.since, default=50, audit=True, **await _choice(context)
    )
    if context.out.human:
        context.out.table(rows, AUDIT, empty="Nothing has been changed yet.")
    else:
        context.out.data([machine(row, EVENT_FIELDS) for row in rows])
    return 0
