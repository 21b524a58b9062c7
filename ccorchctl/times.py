# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times and durations as people type them; the words are those of systemd.time(7)."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime, timedelta
from typing import Final

_SECONDS: Final = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def parse_duration(text: str) -> float:
    """Return seconds for ``90``, ``90s``, ``5min``, ``1h 30min``; raise ArgumentTypeError otherwise."""
    rest, total = text.strip().lower(), 0.0
    while rest:
        match = _PART.match(rest)
        unit = match[2] if match else ""
        unit = unit if unit in _SECONDS else unit.removesuffix("s")
        if not match or (unit and unit not in _SECONDS):
            total = 0
            break
        total += float(match[1]) * (_SECONDS[unit] if unit else 1)
        rest = rest[match.end() :]
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write for example 30s, 5min or '1h 30min'")
    return total


def parse_since(text: str, *, now: float | None = None) -> float:
    """Return seconds since the epoch for a time in the past; raise ArgumentTypeError for anything else.

    Takes ``10 min ago``, ``-10min``, ``10min``, ``today``, ``yesterday``, ``14:30``, ``2026-03-02``,
    ``2026-03-02 14:30``, RFC 3339, and ``@`` with seconds since the epoch. Without a zone it is local time.
    """
    now = time.time() if now is None else now
    words = text.strip()
    today = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)
    match words:
        case "now":
            return now
        case "today":
            return today.timestamp()
        case "yesterday":
            return (today - timedelta(days=1)).timestamp()
    try:
        if words.startswith("@"):
            return float(words[1:])
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", words):
            hour, minute, second = (*(int(part) for part in words.split(":")), 0)[:3]
            return today.replace(hour=hour, minute=minute, second=second).timestamp()
        if re.match(r"\d{4}-\d\d-\d\d", words):
            return datetime.fromisoformat(words).timestamp()
        return now - parse_duration(words.removesuffix("ago").removeprefix("-"))
    except (ValueError, OverflowError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write for example '10 min ago', today, 14:30 or 2026-03-02"
        ) from None
