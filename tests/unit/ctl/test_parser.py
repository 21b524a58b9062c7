# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar: wrong uses, shortcuts, an example for each verb, and how little it takes to load."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchctl import parser
from ccorchctl.__main__ import main
from ccorchctl.failures import Failure, from_bus, render, usage
from ccorchctl.times import parse_duration, parse_since
from ccorchd import projectfile
from ccorchd.contract import ERROR_PREFIX, EXIT_OF, ErrorCode, Exit, Naming, pack_error

ROOT = Path(__file__).resolve().parents[3]


def leaves(
    where: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    found = [action for action in where._actions if isinstance(action, argparse._SubParsersAction)]
    if not found:
        yield path, where
    for action in found:
        for name, sub in action.choices.items():
            yield from leaves(sub, (*path, name))


LEAVES = list(leaves(parser.build(everywhere=True)))


@pytest.mark.parametrize(("path", "verb"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_verb_has_a_description_and_an_example_that_parses(
    path: tuple[str, ...], verb: argparse.ArgumentParser
) -> None:
    assert verb.description
    assert verb.epilog
    assert verb.epilog.startswith("Example: ccorchctl ")
    import shlex

    words: list[str] = []
    for word in shlex.split(verb.epilog.removeprefix("Example: ccorchctl ").split(";")[0]):
        if word in ("<", ">"):
            break
        words.append(word)
    options = parser.parse(words)
    assert parser.expand(words)[: len(path)] == list(path)
    assert callable(options.run)


@pytest.mark.parametrize(("path", "verb"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_option_and_argument_is_explained(path: tuple[str, ...], verb: argparse.ArgumentParser) -> None:
    for action in verb._actions:
        assert action.help, (path, action.dest)
    verb.format_help()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["attach", "x"], ["instance", "attach", "x"]),
        (["-o", "json", "list"], ["-o", "json", "instance", "list"]),
        (["--timeout=3s", "ls"], ["--timeout=3s", "instance", "list"]),
        (["projects"], ["project", "list"]),
        (["instances", "-o", "json"], ["instance", "list", "-o", "json"]),
        (["instances", "--state", "idle"], ["instance", "list", "--state", "idle"]),
        (["instance", "-o", "json", "show", "x"], ["instance", "-o", "json", "show", "x"]),
        (["instance", "--help"], ["instance", "--help"]),
        (["secret", "-q"], ["secret", "list", "-q"]),
        (["help"], ["--help"]),
        (["help", "send"], ["instance", "send", "--help"]),
        (["help", "instance"], ["instance", "--help"]),
        ([], []),
        (["--version"], ["--version"]),
    ],
)
def test_shortcuts(words: list[str], wanted: list[str]) -> None:
    expanded = parser.expand(words)
    assert sorted(expanded) == sorted(wanted)
    assert [w for w in expanded if not w.startswith("-")] == [w for w in wanted if not w.startswith("-")]


def test_options_of_every_command_may_stand_anywhere() -> None:
    for words in (["-o", "json", "-q", "list"], ["list", "-o", "json", "-q"], ["instance", "-q", "list", "-ojson"]):
        options = parser.parse(words)
        assert options.output == "json"
        assert options.quiet
        assert options.timeout is None
    assert parser.parse(["list", "--timeout", "1min"]).timeout == 60


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["lst"], ["'ccorchctl' has no command 'lst'", "'list'"]),
        (["atach", "x"], ["no command 'atach'", "'attach'"]),
        (["instance", "strat"], ["'ccorchctl instance' has no command 'strat'", "'start'"]),
        (["xyzzy"], ["no command 'xyzzy'", "Commands: init, try"]),
        (["stop", "x", "--forse"], ["'ccorchctl instance stop' has no option --forse", "--help"]),
        (["status", "now"], ["'now' is one argument too many for 'ccorchctl status'"]),
        (["-o", "xml"], ["'xml' is no value of -o/--output", "table, json, jsonl"]),
        (["merge", "--yes=1"], ["--yes"]),
        (["config", "get"], ["KEY"]),
        (["list", "--timeout", "0"], ["'0' is no duration"]),
        (["list", "--timeout"], ["--timeout"]),
        (["list", "--proj", "x"], ["no option --proj"]),
        (["try", "--keep", "--discard", "x"], ["--discard", "--keep"]),
    ],
)
def test_wrong_uses(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == Exit.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ccorchctl: ")
    assert len(captured.err.splitlines()) <= 2
    for part in parts:
        assert part in captured.err


def test_wrong_use_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lst", "--output=jsonl"]) == Exit.USAGE
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "Usage"
    assert error["exit_status"] == 2


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["instance", "create", "--help"], ["help", "why"]])
def test_help_needs_neither_bus_nor_event_loop(words: list[str]) -> None:
    program = (
        "import sys\nfrom ccorchctl.__main__ import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'dbus_next', 'asyncio', 'ccorchctl.client'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_manual_lists_the_options_of_every_command_once() -> None:
    for _, verb in leaves(parser.build()):
        assert "--no-autostart" not in verb.format_help()
        assert "Example: ccorchctl " in str(verb.description)
    assert parser.build().format_help().count("--no-autostart") == 1


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5min", 300), ("1h 30min", 5400), ("200ms", 0.2), ("2 hours", 7200), ("1.5 h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "5 parsecs", "1h x", "nan", "inf"])
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no duration"):
        parse_duration(text)


def test_since(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    now = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC
    midnight = now - (now % 86400)
    for text, wanted in {
        "10 min ago": now - 600,
        "-10min": now - 600,
        "1h": now - 3600,
        "now": now,
        "today": midnight,
        "yesterday": midnight - 86400,
        "14:00": midnight + 14 * 3600,
        "09:30:05": midnight + 9 * 3600 + 1805,
        "2026-09-21": midnight,
        "2026-09-21 01:00": midnight + 3600,
        "2026-09-21T01:00:00+01:00": midnight,
        "@5": 5.0,
    }.items():
        assert parse_since(text, now=now) == wanted, text
    for text in ("25:00", "2026-13-01", "whenever", "@x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_since(text, now=now)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("code", list(ErrorCode))
def test_exit_status_of_every_error(code: ErrorCode) -> None:
    failure = from_bus(ERROR_PREFIX + code, pack_error("a sentence", "do this"), Naming())
    assert failure.status == EXIT_OF.get(code, Exit.FAILURE)
    assert render(failure) == "ccorchctl: a sentence\nHint: do this\n"
    assert json.loads(render(failure, as_json=True))["error"]["code"] == code


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("org.freedesktop.DBus.Error.ServiceUnknown", Exit.NOT_RUNNING),
        ("org.freedesktop.DBus.Error.NameHasNoOwner", Exit.NOT_RUNNING),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", Exit.NOT_RUNNING),
        ("org.freedesktop.systemd1.NoSuchUnit", Exit.NOT_RUNNING),
        ("org.freedesktop.DBus.Error.NoReply", Exit.TIMEOUT),
        ("org.freedesktop.DBus.Error.AccessDenied", Exit.REFUSED),
        ("org.freedesktop.DBus.Error.UnknownMethod", Exit.FAILURE),
        ("org.freedesktop.DBus.Error.UnknownObject", Exit.NOT_FOUND),
        ("org.example.Strange", Exit.FAILURE),
        (ERROR_PREFIX + "FromTheFuture", Exit.FAILURE),
    ],
)
def test_errors_of_the_bus(name: str, status: Exit) -> None:
    failure = from_bus(name, "text", Naming("run"))
    assert failure.status == status
    assert len(render(failure).splitlines()) <= 2
    if status == Exit.NOT_RUNNING:
        assert "systemctl --user status ccorchd_run.service" in failure.hint


def test_an_error_cannot_steer_the_terminal() -> None:
    text = render(Failure("Internal", "bad \x1b[2J\nname", "try\r\x07 it"))
    assert "\x1b" not in text
    assert text.count("\n") == 2


def test_usage_is_status_two() -> None:
    assert usage("no").status == Exit.USAGE


def test_a_bug_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(words: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("ccorchctl.parser.parse", broken)
    monkeypatch.delenv("CCORCH_DEBUG", raising=False)
    assert main(["list"]) == Exit.FAILURE
    assert "ccorchctl: unexpected ZeroDivisionError: oh\n" in capsys.readouterr().err
    monkeypatch.setenv("CCORCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["list"])


# ---------------------------------------------------------------- what goes to the agent


def test_only_listed_variables_are_passed() -> None:
    from ccorchctl.client import caller_environment

    environment = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "SSH_AUTH_SOCK": "/s",
        "https_proxy": "http://p",
        "GITHUB_TOKEN": "x",
        "DBUS_SESSION_BUS_ADDRESS": "unix:",
        "TMUX": "t",
        "LANG": "bad\udcff",
    }
    assert caller_environment(environment, ["PATH", "LC_*", "SSH_AUTH_SOCK", "https_proxy", "LANG"]) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "SSH_AUTH_SOCK": "/s",
        "https_proxy": "http://p",
    }


def test_the_template_is_valid_once_uncommented(tmp_path: Path) -> None:
    import re
    import tomllib

    from ccorchctl.commands.init import TEMPLATE

    assert tomllib.loads(TEMPLATE) == {}
    settings = tomllib.loads(re.sub(r"^#(?! )", "", TEMPLATE, flags=re.M))
    (tmp_path / ".ccorch.toml").write_text(re.sub(r"^#(?! )", "", TEMPLATE, flags=re.M))
    assert projectfile.load(tmp_path).setup  # the daemon that reads it knows every key
    assert set(settings) == {"agent", "base", "port_variable", "setup", "environment", "instances"}
    assert settings["setup"] == {"steps": ["npm ci", "make deps"]}
    assert set(settings["instances"]["limits"]) == {"memory_max", "memory_high", "cpu_quota", "cpu_weight", "tasks_max"}
