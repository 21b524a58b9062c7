# SPDX-License-Identifier: LGPL-2.1-or-later
"""From records to what a person or a program reads: tables that fit the terminal, JSON, sizes, ages, colours."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TextIO

from ccorchd.contract import Reason, State

Record = Mapping[str, Any]

_COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "grey": "90", "bold": "1"}

STATE_COLOUR: Final[dict[str, str]] = {
    State.STARTING: "blue",
    State.WORKING: "green",
    State.WAITING: "yellow",
    State.IDLE: "cyan",
    State.STOPPING: "blue",
    State.STOPPED: "grey",
    State.FAILED: "red",
}

URGENCY: Final[tuple[str, ...]] = (
    State.WAITING,
    State.FAILED,
    State.WORKING,
    State.STARTING,
    State.IDLE,
    State.STOPPING,
    State.STOPPED,
)
"""The order in which states interest a person."""

TIMES: Final = frozenset({"time", "since", "created", "started"})
"""Keys whose values are microseconds since the epoch, in every record of the contract."""


# ---------------------------------------------------------------- words for values


def size(count: int | None) -> str:
    """Return bytes for people, base 1024 as systemd writes them: ``512M``, ``1.5G``; "" for None."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1024 or unit == "T":
            digits = 1 if unit != "B" and value < 10 else 0
            return f"{value:.{digits}f}".removesuffix(".0") + unit
        value /= 1024
    raise AssertionError  # the last unit takes everything


def duration(seconds: float | None) -> str:
    """Return a length of time in its largest unit or two: ``0.4 s``, ``3 min``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{min(59, round(seconds))} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def age(microseconds: int | None, *, now: float | None = None) -> str:
    """Return how long ago a time of a record was: ``just now``, ``3 min ago``; "" for None or 0."""
    if not microseconds:
        return ""
    seconds = (time.time() if now is None else now) - microseconds / 1e6
    if seconds < 1:
        return "just now"
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)} s ago"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 48 * 60:
        return f"{minutes // 60} h ago"
    return f"{minutes // (24 * 60)} d ago"


def moment(microseconds: int) -> datetime:
    """Return a record's time as an aware datetime in the local zone, exact to the microsecond."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).astimezone()


def rfc3339(microseconds: int) -> str:
    return moment(microseconds).isoformat(timespec="microseconds")


def stamp(microseconds: int) -> str:
    """Return date, time and zone as systemctl status shows them: ``Mon 2026-03-02 14:03:22 CET``."""
    return moment(microseconds).strftime("%a %Y-%m-%d %H:%M:%S %Z")


def against(used: int | None, limit: str | None) -> str:
    """Return memory in use, with its share of *limit* (a number as text, or ``infinity``): ``1.2G 60%``."""
    if used is None:
        return ""
    if limit and limit.isdigit() and int(limit):
        return f"{size(used)} {round(100 * used / int(limit))}%"
    return size(used)


CONTROLLERS: Final = {"memory": "memory", "cpu": "CPU", "pids": "tasks"}
"""Controllers of cgroup v2 that limits need, by the words of the limits' options."""


def controller_words(names: Iterable[str]) -> str:
    """Return controllers as people know them, memory first: ``memory, CPU and tasks``."""
    names = list(names)
    words = [word for name, word in CONTROLLERS.items() if name in names]
    words += [clean(name) for name in names if name not in CONTROLLERS]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def unenforced_words(status: Record) -> str:
    """Return what no limit holds here, or "": ``memory, CPU and tasks``."""
    return controller_words(status.get("unenforced") or ())


def count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def state_text(record: Record) -> str:
    """Return the state with its reason: ``waiting: permission``, ``failed: out of memory``."""
    state, reason = str(record.get("state", "")), str(record.get("reason", ""))
    if reason and reason != Reason.REQUESTED:
        return f"{state}: {reason.replace('-', ' ')}"
    return state


def sentence(address: str, state: str, record: Record) -> str:
    """Return ``shop/api is idle`` or ``shop/api failed: setup``; *state* is the text of its state."""
    return f"{address} {state}" if record.get("state") == State.FAILED else f"{address} is {state}"


def doing_text(record: Record) -> str:
    """Return what there is to say about an instance now: why it waits or failed, else what it does."""
    if record.get("state") in (State.WAITING, State.FAILED) and record.get("reason_text"):
        return str(record["reason_text"])
    if record.get("state") in (State.STOPPED, State.STOPPING):
        return str(record.get("reason_text") or "")
    return str(record.get("doing") or record.get("reason_text") or "")


def home(path: str) -> str:
    """Return *path* with the user's home folder written as ``~``."""
    base = os.path.expanduser("~")
    return "~" + path[len(base) :] if base not in ("/", "~") and (path + "/").startswith(base + "/") else path


# ---------------------------------------------------------------- text on a terminal


def clean(text: str, *, keep: str = "") -> str:
    """Return *text* without control and bidirectional-override characters, except those in *keep*.

    Names of tools, prompts and file names come from agents: they must not move the cursor or recolour the screen.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or c == " " or unicodedata.category(c) not in _UNSAFE else " " for c in text)


_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def one_line(text: str) -> str:
    """Return :func:`clean` text with runs of white space as one blank."""
    return " ".join(clean(text).split())


def width(text: str) -> int:
    """Return how many terminal columns *text* takes (UAX 11: wide and fullwidth count two, combining marks none)."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, most: int, ellipsis: str = "…") -> str:
    """Return *text* cut to at most *most* columns, ending in *ellipsis* when something is missing."""
    if width(text) <= most:
        return text
    room = most - len(ellipsis)
    if room <= 0:
        return ellipsis[: max(0, most)]
    taken = 0
    for position, character in enumerate(text):
        taken += _columns(character)
        if taken > room:
            return text[:position].rstrip() + ellipsis
    return text


def pad(text: str, columns: int, *, right: bool = False) -> str:
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, how to get its text from a record, and how it gives way on a narrow terminal.

    Columns with the highest *drop* go first; *least* is the width below which a cell is no use.
    """

    title: str
    text: Callable[[Record], str]
    right: bool = False
    least: int = 0
    drop: int = 0
    colour: Callable[[Record], str] | None = None
    key: bool = False
    """What one types to get at the row: gives way only when nothing else can."""
    left: bool = False
    """Cut at the left end: of a path the last part says most."""


def layout(
    natural: Sequence[int], least: Sequence[int], drop: Sequence[int], room: int, keys: Container[int] = ()
) -> dict[int, int]:
    """Return column index → width so that all fit into *room* columns with two blanks between.

    First columns with a *drop* above 0 go, highest first, while even the least widths do not fit; then the widest
    shrink, those in *keys* last.
    """
    kept = list(range(len(natural)))

    def total(widths: Iterable[int]) -> int:
        widths = list(widths)
        return sum(widths) + 2 * (len(widths) - 1)

    while total(min(natural[i], least[i]) if least[i] else natural[i] for i in kept) > room:
        droppable = [i for i in kept if drop[i]]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda i: drop[i]))
    widths = {i: natural[i] for i in kept}
    while total(widths.values()) > room:
        shrinkable = [i for i in kept if least[i] and widths[i] > least[i]]
        if not shrinkable:
            break
        others = [i for i in shrinkable if i not in keys]
        widths[max(others or shrinkable, key=lambda i: widths[i])] -= 1
    return widths


class Output:
    """Standard output in the form the caller asked for (``table``, ``json`` or ``jsonl``), and notes beside it."""

    def __init__(
        self,
        form: str = "table",
        *,
        color: bool | None = None,
        full: bool = False,
        quiet: bool = False,
        columns: int | None = None,
        stream: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self.stream = stream or sys.stdout
        self.notes = notes or sys.stderr
        self.form = form
        self.quiet = quiet
        terminal = self.stream.isatty()
        if color is None:
            color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.color = color and form == "table"
        self.columns = columns if columns is not None else shutil.get_terminal_size().columns if terminal else None
        if full:
            self.columns = None
        self.ellipsis = "…" if self.encodes("…") else "..."

    @property
    def human(self) -> bool:
        return self.form == "table"

    def encodes(self, text: str) -> bool:
        try:
            text.encode(getattr(self.stream, "encoding", None) or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.color and colour and text else text

    def state(self, record: Record, text: str | None = None) -> str:
        """Return the state (or *text*) in the state's colour."""
        return self.paint(state_text(record) if text is None else text, STATE_COLOUR.get(str(record.get("state")), ""))

    def line(self, text: str = "") -> None:
        """Print one line of the result."""
        print(text, file=self.stream)

    def fitted(self, text: str, *, indent: int = 0) -> None:
        """Print one line, cut to the terminal."""
        room = None if self.columns is None else self.columns - indent
        self.line(" " * indent + (text if room is None else cut(text, room, self.ellipsis)))

    def wrapped(self, text: str, *, indent: int) -> list[str]:
        """Return *text* as lines that fit behind *indent* columns; a word that is too long (a path) stays whole."""
        if self.columns is None or width(text) <= self.columns - indent:
            return [text]
        return textwrap.wrap(text, max(20, self.columns - indent), break_long_words=False, break_on_hyphens=False)

    def note(self, text: str) -> None:
        """Say something beside the result: on standard output for people, nowhere with --quiet or a machine's form."""
        if self.human and not self.quiet:
            print(text, file=self.stream)

    def warn(self, text: str) -> None:
        """Say something on standard error; not for errors that end the command (those are failures)."""
        if not self.quiet:
            self.stream.flush()
            print(text, file=self.notes, flush=True)

    def data(self, value: Any) -> None:
        """Print *value* as JSON: in the form ``jsonl`` each element of a list on a line of its own."""
        if self.form == "jsonl":
            for item in value if isinstance(value, list) else [value]:
                self.line(json.dumps(item, ensure_ascii=False))
        else:
            self.line(json.dumps(value, ensure_ascii=False, indent=2))

    def table(self, rows: Sequence[Record], columns: Sequence[Column], *, empty: str = "") -> None:
        """Print *rows*, or the sentence *empty* when there are none. Empty columns are left out."""
        if not rows:
            if empty:
                self.note(empty)
            return
        cells = [[one_line(column.text(row)) for column in columns] for row in rows]
        used = [i for i in range(len(columns)) if any(line[i] for line in cells)]
        natural = [max([width(columns[i].title), *(width(line[i]) for line in cells)]) for i in used]
        least = [max(columns[i].least, width(columns[i].title)) if columns[i].least else 0 for i in used]
        room = self.columns if self.columns is not None else sum(natural) + 2 * len(natural)
        keys = [position for position, i in enumerate(used) if columns[i].key]
        widths = layout(natural, least, [columns[i].drop for i in used], room, keys)
        shown = [(used[i], columns_wide) for i, columns_wide in widths.items()]
        title = "  ".join(pad(columns[i].title, wide, right=columns[i].right) for i, wide in shown).rstrip()
        self.line(self.paint(title, "bold"))
        for row, line in zip(rows, cells, strict=True):
            parts = []
            for position, (i, wide) in enumerate(shown):
                text = self._cut_left(line[i], wide) if columns[i].left else cut(line[i], wide, self.ellipsis)
                last = position == len(shown) - 1
                padded = text if last and not columns[i].right else pad(text, wide, right=columns[i].right)
                colour = columns[i].colour
                parts.append(padded.replace(text, self.paint(text, colour(row)), 1) if colour and text else padded)
            self.line("  ".join(parts).rstrip())

    def _cut_left(self, text: str, most: int) -> str:
        if width(text) <= most:
            return text
        kept = text
        while kept and width(kept) > most - len(self.ellipsis):
            kept = kept[1:]
        return self.ellipsis + kept

    def fields(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print ``Key: value`` lines with the keys right-aligned, as systemctl status does, without the empty ones."""
        shown = [(key, value) for key, value in pairs if value]
        widest = max((width(key) for key, _ in shown), default=0)
        room = None if self.columns is None else max(20, self.columns - widest - 2)
        for key, value in shown:
            lines = [value]
            if room is not None and width(value) > room and "\x1b" not in value:
                # A path or an id that is too long stays whole, so that it can be copied.
                lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
            self.line(f"{key:>{widest}}: {lines[0]}")
            for line in lines[1:]:
                self.line(f"{'':>{widest}}  {line}")


# ---------------------------------------------------------------- records for programs


def machine(record: Record, fields: Iterable[str] = ()) -> dict[str, Any]:
    """Return *record* for JSON: every key of *fields* (null where unknown), times in RFC 3339 with zone."""
    keys = list(fields)
    keys += [key for key in record if key not in keys]
    return {key: _machine(key, record.get(key)) for key in keys}


def _machine(key: str, value: Any) -> Any:
    if key in TIMES:
        return rfc3339(value) if value else None
    if key in ("pid", "port") and value == 0:
        return None
    if key == "data" and isinstance(value, str):
        # JSON travels over D-Bus as text; whoever asks for JSON wants no text in it that is JSON again.
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
