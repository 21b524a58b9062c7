# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small functions with tests that the demo agent writes into repositories. Each is right, and each test passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Piece:
    """*triggers* are words of a prompt that ask for it; *checks* are the body of a unittest method."""

    name: str
    triggers: frozenset[str]
    code: str
    checks: str


PIECES: Final = (
    Piece(
        "slugify",
        frozenset({"slug", "url", "name", "names", "title"}),
        '''\
def slugify(text: str) -> str:
    """Return *text* in small letters, words joined by dashes."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))
''',
        """\
        self.assertEqual(slugify("Hello, World!"), "hello-world")
        self.assertEqual(slugify(""), "")
""",
    ),
    Piece(
        "human_size",
        frozenset({"size", "bytes", "memory", "disk", "human"}),
        '''\
def human_size(count: float) -> str:
    """Return *count* bytes as a person reads it: 1536 is 1.5 KiB."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"
''',
        """\
        self.assertEqual(human_size(12), "12 B")
        self.assertEqual(human_size(1536), "1.5 KiB")
""",
    ),
    Piece(
        "parse_duration",
        frozenset({"duration", "time", "timeout", "seconds", "parse", "parser", "date"}),
        '''\
def parse_duration(text: str) -> int:
    """Return the seconds of a text such as 1h30m or 45s; raise ValueError for any other."""
    factors = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\\d+)([hms])", text)
    if not text or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return sum(int(number) * factors[unit] for number, unit in parts)
''',
        """\
        self.assertEqual(parse_duration("1h30m"), 5400)
        with self.assertRaises(ValueError):
            parse_duration("soon")
""",
    ),
    Piece(
        "chunks",
        frozenset({"chunk", "chunks", "batch", "split", "group", "list", "page", "pages"}),
        '''\
def chunks(items: list, size: int) -> list:
    """Return *items* in lists of *size*; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
''',
        """\
        self.assertEqual(chunks([1, 2, 3, 4, 5], 2), [[1, 2], [3, 4], [5]])
        self.assertEqual(chunks([], 3), [])
""",
    ),
    Piece(
        "merge",
        frozenset({"merge", "config", "configuration", "settings", "options", "defaults"}),
        '''\
def merge(low: dict, high: dict) -> dict:
    """Return *low* with *high* laid over it, tables within tables too."""
    result = dict(low)
    for key, value in high.items():
        below = result.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        result[key] = merge(below, value) if both else value
    return result
''',
        """\
        self.assertEqual(merge({"a": {"b": 1}}, {"a": {"c": 2}}), {"a": {"b": 1, "c": 2}})
        self.assertEqual(merge({"a": 1}, {"a": 2}), {"a": 2})
""",
    ),
    Piece(
        "table",
        frozenset({"table", "print", "output", "column", "columns", "format", "cli", "command"}),
        '''\
def table(rows: list) -> str:
    """Return *rows* of texts as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows)
    return "\\n".join(line.rstrip() for line in lines)
''',
        """\
        self.assertEqual(table([["a", "b"], ["long", "c"]]), "a     b\\nlong  c")
""",
    ),
)
