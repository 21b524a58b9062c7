# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sentences and answers that need no daemon."""

from __future__ import annotations

import argparse
import io
import socket
import threading
from pathlib import Path

import pytest

from ccorchctl import parser, prompts
from ccorchctl.client import session_address
from ccorchctl.commands.events import is_of
from ccorchctl.commands.instance import removed_text
from ccorchctl.failures import Failure
from ccorchctl.output import Column, Output
from ccorchd.contract import Exit


def test_what_became_of_a_removed_instance() -> None:
    assert removed_text("shop/api", {}) == "shop/api removed."
    kept = removed_text("shop/api", {"branch": "b", "kept_ref": "refs/ccorch/removed/x"})
    assert "git branch -D b would delete it" in kept
    assert kept.endswith(" What was not committed is kept: git show refs/ccorch/removed/x")


def test_whose_event_it_is() -> None:
    row = {"project": "shop", "instance": "api"}
    assert is_of(row, "", "")
    assert is_of(row, "shop/api", "shop")
    assert not is_of(row, "", "blog")
    assert not is_of(row, "shop/web")
    assert is_of({"project": "shop", "instance": "shop/api"}, "shop/api")
    assert not is_of({"project": "", "instance": ""}, "shop/api")


def test_the_users_own_bus_is_found_without_the_variable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        assert session_address({"XDG_RUNTIME_DIR": str(tmp_path)}) == f"unix:path={tmp_path}/bus"
    (tmp_path / "bus").unlink()
    (tmp_path / "bus").write_text("no socket")
    with pytest.raises(Failure, match="no session bus"):
        session_address({"XDG_RUNTIME_DIR": str(tmp_path)})


def test_quiet_takes_notes_and_warnings_but_no_result() -> None:
    stream, notes = io.StringIO(), io.StringIO()
    out = Output(quiet=True, stream=stream, notes=notes)
    out.note("by the way")
    out.warn("mind")
    out.table([], [Column("A", str)], empty="Nothing.")
    out.line("result")
    assert (stream.getvalue(), notes.getvalue()) == ("result\n", "")


def test_a_table_of_nothing_may_say_nothing() -> None:
    stream = io.StringIO()
    Output(stream=stream).table([], [Column("A", str)])
    assert stream.getvalue() == ""


def test_long_sentences_wrap_and_paths_stay_whole() -> None:
    path = "/a/very/long/path/that/does/not/fit/in/here"
    lines = Output(columns=30, stream=io.StringIO()).wrapped(f"see it in {path} please", indent=4)
    assert lines == ["see it in", path, "please"]


@pytest.mark.parametrize(("answer", "default", "result"), [("\n", True, True), ("", True, False), ("Y\n", False, True)])
def test_a_question_asked_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    default: bool,
    result: bool,
) -> None:
    """Only the main thread may set signal handlers; a question works in any."""
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    given: list[bool] = []
    thread = threading.Thread(target=lambda: given.append(prompts.confirm("Go on?", default=default)))
    thread.start()
    thread.join(10)
    assert given == [result]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Go on? {'[Y/n]' if default else '[y/N]'} ")


def test_a_noun_without_a_verb() -> None:
    plain = parser.Parser(prog="ccorchctl secret")
    plain.add_subparsers(metavar="VERB", required=True)
    with pytest.raises(Failure, match="'ccorchctl secret' needs a verb") as caught:
        plain.parse_args([])
    assert caught.value.status == Exit.USAGE


def test_the_callers_width_is_respected_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("COLUMNS", "60")
    assert isinstance(parser.parse(["list"]), argparse.Namespace)
    assert os.environ["COLUMNS"] == "60"
    monkeypatch.delenv("COLUMNS")
    parser.parse(["list"])
    assert "COLUMNS" not in os.environ
