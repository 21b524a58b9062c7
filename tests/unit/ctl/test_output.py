# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words for values, widths, tables and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import pytest

from ccorchctl import output
from ccorchctl.output import Column, Output, against, age, clean, cut, duration, layout, machine, rfc3339, size, width
from ccorchd.contract import INSTANCE_FIELDS


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1K"),
        (1536, "1.5K"),
        (10 * 1024**2, "10M"),
        (1024**3, "1G"),
        (3 * 1024**4, "3T"),
        (5000 * 1024**4, "5000T"),
    ],
)
def test_size(count: int | None, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("before", "text"),
    [(-5, "just now"), (0, "just now"), (30, "30 s ago"), (180, "3 min ago"), (7200, "2 h ago"), (300000, "3 d ago")],
)
def test_age(before: float, text: str) -> None:
    assert age(int((1e9 - before) * 1e6), now=1e9) == text


def test_age_of_nothing() -> None:
    assert age(None) == age(0) == ""


def test_against_a_limit() -> None:
    assert against(512 * 1024**2, str(1024**3)) == "512M 50%"
    assert against(512 * 1024**2, "infinity") == against(512 * 1024**2, "0") == "512M"
    assert against(None, "1024") == ""


def test_times_are_exact_and_have_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert rfc3339(1_790_000_000_123_457) == "2026-09-21T14:13:20.123457+00:00"


@pytest.mark.parametrize(
    ("text", "columns"), [("abc", 3), ("読む", 4), ("é", 1), ("e\u0301", 1), ("👍", 2), ("", 0), ("ｆ", 2)]
)
def test_width(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "most", "result"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("読む本", 4, "読…"),
        ("読む本", 5, "読む…"),
        ("ab cd", 4, "ab…"),
        ("abcd", 1, "…"),
        ("abcd", 0, ""),
    ],
)
def test_cut(text: str, most: int, result: str) -> None:
    assert cut(text, most) == result
    assert width(result) <= most


def test_clean_takes_what_steers_a_terminal() -> None:
    assert clean("a\x1b[31mb\x07\x9bc\u202ed\u2028e") == "a [31mb  c d e"
    assert clean("a\tb\n", keep="\t") == "a\tb "
    assert clean("naïve 読む") == "naïve 読む"


def test_layout_drops_then_shrinks() -> None:
    assert layout([10, 10], [0, 5], [0, 0], 30) == {0: 10, 1: 10}
    assert layout([10, 30], [0, 5], [0, 0], 30) == {0: 10, 1: 18}
    assert layout([10, 10, 10], [0, 0, 0], [0, 1, 2], 22) == {0: 10, 1: 10}
    assert layout([30, 20], [5, 5], [0, 0], 32) == {0: 15, 1: 15}
    assert layout([30, 20], [5, 5], [0, 0], 42, keys=[0]) == {0: 30, 1: 10}
    assert layout([30], [0], [0], 10) == {0: 30}  # nothing may give way


COLUMNS = (
    Column("NAME", lambda row: str(row["name"]), least=6),
    Column("SIZE", lambda row: str(row["size"]), right=True),
    Column("NONE", lambda row: ""),
    Column("PATH", lambda row: str(row["path"]), least=6, left=True),
)
ROWS = [{"name": "読む読む読む", "size": 5, "path": "/a/long/path/to"}, {"name": "b\nc", "size": 1000, "path": "/b"}]


def shown(
    columns: int | None, rows: Sequence[Mapping[str, object]] = ROWS, *, full: bool = False, quiet: bool = False
) -> list[str]:
    stream = io.StringIO()
    Output(columns=columns, stream=stream, color=False, full=full, quiet=quiet).table(rows, COLUMNS, empty="Nothing.")
    return stream.getvalue().splitlines()


def test_table_in_full() -> None:
    assert shown(None) == [
        "NAME          SIZE  PATH",
        "読む読む読む     5  /a/long/path/to",
        "b c           1000  /b",
    ]
    assert shown(10, full=True) == shown(None)


def test_table_on_a_narrow_terminal() -> None:
    lines = shown(24)
    assert lines == ["NAME      SIZE  PATH", "読む読…      5  …path/to", "b c       1000  /b"]
    assert all(width(line) <= 24 for line in lines)


def test_table_in_colour_has_the_same_text() -> None:
    import re

    stream = io.StringIO()
    column = Column("STATE", lambda row: str(row["name"]), colour=lambda row: "red")
    Output(columns=80, stream=stream, color=True).table(ROWS, (column, COLUMNS[1]))
    assert "\x1b[31m" in stream.getvalue()
    plain = re.sub(r"\x1b\[\d*m", "", stream.getvalue()).splitlines()
    assert plain == ["STATE         SIZE", "読む読む読む     5", "b c           1000"]


def test_table_of_nothing() -> None:
    assert shown(80, []) == ["Nothing."]
    assert shown(80, [], quiet=True) == []


def test_an_ascii_terminal_gets_dots() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert Output(stream=stream).ellipsis == "..."


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Output(stream=Terminal()).color
    assert not Output("json", stream=Terminal()).color
    assert not Output(stream=Terminal(), color=False).color
    assert not Output(stream=io.StringIO()).color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output(stream=Terminal()).color


def test_fields_wrap_but_keep_paths_whole() -> None:
    stream = io.StringIO()
    path = "/a/path/that/is/longer/than/the/terminal"
    Output(columns=30, stream=stream).fields([("A", "one, two, three, four, five, six"), ("Path", path), ("No", "")])
    assert stream.getvalue().splitlines() == ["   A: one, two, three, four,", "      five, six", f"Path: {path}"]


def test_json_forms() -> None:
    for form, lines in (("json", 4), ("jsonl", 2)):
        stream = io.StringIO()
        Output(form, stream=stream).data([1, 2])
        assert len(stream.getvalue().splitlines()) == lines
    stream = io.StringIO()
    Output("jsonl", stream=stream).data({"a": "ü"})
    assert stream.getvalue() == '{"a": "ü"}\n'


def test_machine_records_have_all_keys() -> None:
    record = machine({"name": "api", "since": 0, "pid": 0, "created": 1_000_000, "extra": 1}, INSTANCE_FIELDS)
    assert list(record)[: len(INSTANCE_FIELDS)] == list(INSTANCE_FIELDS)
    assert record["since"] is None
    assert record["pid"] is None
    assert record["memory_current"] is None
    assert record["extra"] == 1
    assert json.dumps(record)


def test_state_and_doing() -> None:
    waiting = {"state": "waiting", "reason": "permission", "reason_text": "Bash ls", "doing": "Bash"}
    assert output.state_text(waiting) == "waiting: permission"
    assert output.doing_text(waiting) == "Bash ls"
    assert output.state_text({"state": "failed", "reason": "out-of-memory"}) == "failed: out of memory"
    assert output.state_text({"state": "stopped", "reason": "requested"}) == "stopped"
    assert output.doing_text({"state": "stopped", "doing": "old"}) == ""
    assert output.doing_text({"state": "working", "doing": "Edit"}) == "Edit"


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert output.home("/home/u/x") == "~/x"
    assert output.home("/home/u") == "~"
    assert output.home("/home/user/x") == "/home/user/x"
    monkeypatch.setenv("HOME", "/")
    assert output.home("/x") == "/x"
