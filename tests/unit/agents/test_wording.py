# SPDX-License-Identifier: LGPL-2.1-or-later
"""How reports are put into words."""

from __future__ import annotations

import pytest

from ccorchd.agents.base import signal_name
from ccorchd.agents.wording import cut, duration, one_line, tool_line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_one_line_has_no_control_characters() -> None:
    assert one_line("a\tb\n\x1b[31mc\x07") == "a b  [31mc "
    assert one_line("one two three", 8) == "one two…"


def test_cut_keeps_whole_characters() -> None:
    assert cut("äöü", 6) == "äöü"
    assert cut("äöü", 3) == "ä\n[3 bytes left out]"


def test_tool_line() -> None:
    assert tool_line("Bash", "make", 65, "failed") == "tool Bash: make (1 min 5 s, failed)"
    assert tool_line("Read", "", None, "ok") == "tool Read (ok)"


def test_signals_without_a_name_have_a_number() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(77) == "signal 77"
