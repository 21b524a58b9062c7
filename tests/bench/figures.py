# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rows of figures: what was measured, against what, in the same run, and whether it is within its bound."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence


@dataclasses.dataclass
class Row:
    """One line of the table. All figures are in *unit*.

    *judged* is the figure that *most* bounds (0: for information): ``ratio`` and ``difference`` compare with *rival*,
    pair by pair of the interleaved runs; ``median`` and ``maximum`` look at *ours* alone.
    """

    name: str
    unit: str
    ours: list[float]
    rival_name: str = ""
    rival: list[float] = dataclasses.field(default_factory=list)
    judged: str = ""
    most: float = 0.0

    @property
    def value(self) -> float:
        """The judged figure; 0 for a row that is only for information and has nothing to compare with."""
        pairs = list(zip(self.ours, self.rival, strict=False))
        if self.judged == "maximum":
            return max(self.ours)
        if self.judged == "median":
            return statistics.median(self.ours)
        if self.judged == "difference":
            return statistics.median(own - other for own, other in pairs)
        return statistics.median(own / other for own, other in pairs) if pairs else 0.0

    @property
    def verdict(self) -> str:
        if not self.most:
            return "-"
        return "ok" if self.value <= self.most else "over"

    def as_json(self) -> dict[str, object]:
        """Return everything, the single runs too, so that others can judge by other figures."""
        ours = {"median": statistics.median(self.ours), "min": min(self.ours), "max": max(self.ours)}
        return {**dataclasses.asdict(self), **ours, "value": self.value, "verdict": self.verdict}

    @classmethod
    def from_json(cls, fields: dict[str, object]) -> Row:
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in fields.items() if key in known})  # type: ignore[arg-type]


def interleaved(
    rounds: int, ours: Callable[[], float], rival: Callable[[], float], *, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """Measure A B A B …: what else the machine does falls on both. The first *warm_up* rounds don't count."""
    pairs = [(ours(), rival()) for _ in range(warm_up + rounds)][warm_up:]
    return [own for own, _ in pairs], [other for _, other in pairs]


def spread(values: Sequence[float]) -> str:
    """Return ``median (min-max)``, empty for no values."""
    if not values:
        return ""
    digits = 0 if statistics.median(values) >= 100 else 1
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as plain text."""
    cells = [("what", "ccorch: median (min-max)", "against: median (min-max)", "judged", "at most", "")]
    for row in rows:
        signs = {"ratio": ("x", ""), "difference": ("", f" {row.unit} more")}
        before, after = signs.get(row.judged or "ratio", ("", f" {row.unit}"))
        judged = f"{before}{row.value:.2f}{after}" if row.value else ""
        bound = f"{before}{row.most:g}{after}" if row.most else "-"
        against = f"{spread(row.rival)} {row.unit}, {row.rival_name}" if row.rival else ""
        cells.append((row.name, f"{spread(row.ours)} {row.unit}", against, judged, bound, row.verdict))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
