# SPDX-License-Identifier: LGPL-2.1-or-later
"""``events`` and ``audit``; and the reading and printing of event rows that ``logs`` and ``why`` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ccorchctl.commands import Verbs
from ccorchctl.context import Context
from ccorchctl.failures import AWAY, Failure
from ccorchctl.output import Column, Output, clean, cut, machine, moment, one_line
from ccorchctl.times import parse_since
from ccorchd.contract import EVENT_FIELDS

if TYPE_CHECKING:
    from ccorchctl.client import Client

Row = dict[str, Any]

PAGE: Final = 10_000
"""The most rows to ask for in one call."""

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
    """Return the last *lines* event rows, oldest first (None: *default*, or all with *since*), none before *since*.

    A daemon hands out so many rows a call; what lies further back is read page by page from the beginning.
    """
    if lines is None:
        lines = ALL if since is not None else default
    start = 0 if since is None else int(since * 1_000_000)
    rows = await client.events(newest=True, limit=lines or PAGE, **chosen)
    wanted = lines or sys.maxsize
    if len(rows) < wanted and len(rows) >= PAGE and rows[0]["time"] >= start:
        rows = [row async for row in _from(client, 0, **chosen)][-wanted:]
    return [row for row in rows if row["time"] >= start]


async def _from(client: Client, after: int, **chosen: Any) -> AsyncIterator[Row]:
    """Yield all rows after the id *after*, page by page."""
    while rows := await client.events(after=after, limit=PAGE, **chosen):
        for row in rows:
            yield row
        after = int(rows[-1]["id"])


async def follow(client: Client, after: int, wanted: Callable[[Row], bool], **chosen: Any) -> AsyncIterator[Row]:
    """Yield new rows that are *wanted*, each once and in order, for ever; a restart of the daemon leaves no gap.

    *after* is the id of the last row already seen; *chosen* is the same choice in words of ListEvents.
    """
    async with client.follow_events() as signals:
        missed = True  # something may have happened before we listened, or while the daemon was away
        while True:
            if missed:
                missed = False
                try:
                    async for row in _from(client, after, **chosen):
                        after = int(row["id"])
                        yield row
                except Failure as failure:
                    if failure.code not in AWAY:
                        raise
            member, _path, body = await signals.get()
            if member == "NameOwnerChanged":
                missed = bool(body[2])
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
            is_of(row, chosen.get("instance", ""), chosen.get("project", ""))
            and (row["kind"] in kinds if kinds else not of_trail(row))
        ),
        **chosen,
    )


def is_of(row: Row, instance: str, project: str = "") -> bool:
    """True when *row* is about *instance* (an address) and *project*; "" takes any."""
    if project and row.get("project") != project:
        return False
    return not instance or _place(row) == instance


def of_trail(row: Row) -> bool:
    """True when *row* belongs to the audit trail: it says once more what an event says already."""
    return str(row["kind"]).startswith("audit.")


AUDIT: Final = (
    Column("WHEN", lambda row: moment(int(row["time"])).strftime("%Y-%m-%d %H:%M:%S")),
    Column("WHO", lambda row: str(row.get("actor", "")), least=12),
    Column(
        "WHAT",
        lambda row: str(row.get("message", "")),
        least=30,
        colour=lambda row: "yellow" if str(row.get("kind", "")).endswith("refused") else "",
    ),
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
