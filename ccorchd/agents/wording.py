# SPDX-License-Identifier: LGPL-2.1-or-later
"""How agents' reports are put into words: one readable line for the journal, whatever the agent sent."""

from __future__ import annotations

from typing import Final

LINE: Final = 300
"""Characters of a report's text that go into a message; the whole text goes into the event's data."""


def one_line(text: object, limit: int = LINE) -> str:
    """Return *text* as one line without control characters, cut to *limit* characters with an ellipsis."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def cut(text: str, size: int) -> str:
    """Return *text* cut to at most *size* bytes of UTF-8, with a remark that says how much is missing."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= size:
        return raw.decode("utf-8")
    return raw[:size].decode("utf-8", "ignore") + f"\n[{len(raw) - size} bytes left out]"


def duration(seconds: float) -> str:
    """Return ``2.1 s``, ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def call(tool: str, detail: str) -> str:
    """Return ``Bash: pytest -q``, or only the tool's name where there is no detail."""
    return f"{tool}: {detail}" if detail else tool


def tool_line(tool: str, detail: str, seconds: float | None, outcome: str) -> str:
    """Return ``tool Bash: pytest -q (2.1 s, ok)``."""
    remarks = ", ".join(([duration(seconds)] if seconds is not None else []) + [outcome])
    return f"tool {call(tool, detail)} ({remarks})"
