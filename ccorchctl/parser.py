# SPDX-License-Identifier: LGPL-2.1-or-later
"""The grammar of the command line. Importing and building it touches neither the bus nor any file.

:func:`build` is what argparse-manpage makes ccorchctl(1) from.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ccorchctl import __version__
from ccorchctl.commands import Verbs, config, events, host, instance, overview, project, secret, trial, worktree
from ccorchctl.commands import init as init_command
from ccorchctl.failures import usage
from ccorchctl.times import parse_duration

_BARE: Final = (
    *("list", "create", "show", "start", "stop", "restart", "remove", "attach", "detach", "send", "interrupt"),
    *("logs", "why", "diff", "screen", "wait", "merge"),
)

SHORTCUTS: Final[dict[str, tuple[str, ...]]] = {
    **{verb: ("instance", verb) for verb in _BARE},
    "ls": ("instance", "list"),
    "rm": ("instance", "remove"),
    "instances": ("instance",),
    "projects": ("project",),
    "worktrees": ("worktree",),
    "secrets": ("secret",),
    "event": ("events",),
    "tree": ("worktree", "tree"),
}
"""First words that stand for others: verbs of instances without their noun, and plurals."""

ALONE: Final = frozenset({"project", "instance", "worktree", "secret", "config"})
"""Nouns that mean ``list`` when no verb follows."""

VALUED: Final = frozenset({"-o", "--output", "--timeout"})
"""Options of every command that take a value, so that the words before the verb can be told apart."""

COMMON: Final = VALUED | {"-q", "--quiet", "-y", "--yes", "--full", "--no-color", "--no-autostart", "--system"}
"""All options of every command."""

DESCRIPTION: Final = """\
Run a team of coding agents, each in a systemd scope with a git worktree, a tmux server and limits of its own.
Without a command it shows one screen: who needs you, who works on what, and what that uses.
"""

SECTIONS: Final[dict[str, str]] = {
    "addresses": """\
  An instance is written project/name; inside the project's checkout or a
  worktree just the name will do. Verbs of instances work without their noun
  ('ccorchctl attach api'), plurals do too ('ccorchctl instances').
""",
    "examples": """\
  ccorchctl init                           make this repository a project
  ccorchctl try "test the parser"          one agent; then keep, merge, discard
  ccorchctl create api -p "write the API"  an agent in the background
  ccorchctl list                           who does what
  ccorchctl attach api                     its terminal; leave with Ctrl-b d
  ccorchctl why api                        its story, and where there is more
""",
    "exit status": """\
  0  done                          4  no such project or instance
  1  failed                        5  it exists already
  2  wrong use or value            6  refused: state, limit, or no confirmation
  3  the daemon is not running     7  timed out
  130  interrupted
""",
    "environment": """\
  CCORCH_SUFFIX             a separate installation, for trial runs
  NO_COLOR                  no colours, whatever the terminal can do
  DBUS_SESSION_BUS_ADDRESS  the bus; without it, the socket in XDG_RUNTIME_DIR
  CCORCH_DEBUG              show the trace of an unexpected error
  'create', 'start', 'restart' and 'try' pass your PATH, LANG, LC_*, TZ, EDITOR,
  SHELL, SSH_AUTH_SOCK, *_PROXY and the like on to the agents that they start;
  the setting agents.environment names more.
""",
    "files": """\
  .ccorch.toml                   a project's set-up steps, environment, limits
  ~/.config/ccorch/ccorchd.toml  the daemon's settings ('ccorchctl config path')
  ~/.local/share/ccorch/         worktrees
  ~/.local/state/ccorch/         the daemon's database
""",
    "see also": """\
  ccorch(7), ccorchd(8), ccorchd.toml(5), systemctl(1), journalctl(1), tmux(1),
  git-worktree(1), systemd.resource-control(5)
""",
}
"""Sections of the help's end, and of the manual page after its options: title and text, indented by two."""

EPILOG: Final = "\n".join(f"{title}:\n{text}" for title, text in SECTIONS.items())


_EXCLUSIVE: Final = re.compile(r"argument (.+): not allowed with argument (.+)")

_OTHER_WAYS: Final = {
    "ccorchctl config set": "Edit the file that 'ccorchctl config path' names, then: ccorchctl reload.",
    "ccorchctl config edit": "Edit the file that 'ccorchctl config path' names, then: ccorchctl reload.",
    "ccorchctl project create": "A repository becomes a project by 'ccorchctl init' or 'ccorchctl project add'.",
}
"""What people look for under a name that there is none of, and where it is."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: raised, not printed; only ``__main__`` exits."""

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ")
        missing = message.removeprefix("the following arguments are required: ")
        excluded = _EXCLUSIVE.fullmatch(message)
        if missing == "VERB":
            sentence = f"'{self.prog}' needs a verb"
        elif missing != message:
            sentence = f"'{self.prog}' needs {missing.replace(', ', ' and ')}"
        elif excluded:
            sentence = f"{excluded[2]} and {excluded[1]} exclude each other"
        raise usage(sentence.rstrip("."), f"See '{self.prog} --help'.")

    def format_usage(self) -> str:
        """Return the usage line without the options of every command, which would be most of it."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._own_actions(), self._mutually_exclusive_groups)
        return formatter.format_help()

    def format_help(self) -> str:
        return self.format_usage() + super().format_help().removeprefix(super().format_usage())

    def _own_actions(self) -> list[argparse.Action]:
        return [action for action in self._actions if not COMMON.intersection(action.option_strings)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        verbs = isinstance(action, argparse._SubParsersAction)
        words = [*known, *SHORTCUTS] if verbs and self.prog == "ccorchctl" else known
        near = difflib.get_close_matches(str(value), words, 1, 0.5)
        if verbs:
            sentence = f"'{self.prog}' has no command {str(value)!r}"
            offer = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(known)}."
            offer = _OTHER_WAYS.get(f"{self.prog} {value}", offer)
        else:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            sentence = f"{str(value)!r} is no value of {name}"
            offer = f"Choose from: {', '.join(known)}."
        raise usage(sentence, f"{offer} See '{self.prog} --help'.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            path = " ".join(filter(None, ("ccorchctl", getattr(options, "command", ""), getattr(options, "verb", ""))))
            flags = [word for word in rest if word.startswith("-")]
            if flags:
                raise usage(f"'{path}' has no option {flags[0]}", f"See '{path} --help'.")
            raise usage(
                f"{rest[0]!r} is one argument too many for '{path}'", f"Quote text with blanks. See '{path} --help'."
            )
        return options


def _common(parser: argparse.ArgumentParser, *, top: bool, show: bool) -> None:
    """Add the options of every command. Below the top they have no default, so that those before the verb survive."""
    group = parser.add_argument_group("options of every command") if show else parser

    def option(*names: str, help: str, default: Any = None, **how: Any) -> None:
        group.add_argument(
            *names, default=default if top else argparse.SUPPRESS, help=help if show else argparse.SUPPRESS, **how
        )

    option(
        "-o",
        "--output",
        metavar="FORM",
        choices=("table", "json", "jsonl"),
        default="table",
        help="table for people, json, or jsonl (one object per line)",
    )
    option("-q", "--quiet", action="store_true", default=False, help="say nothing beside the result")
    option("-y", "--yes", action="store_true", default=False, help="answer yes to every question")
    option("--full", action="store_true", default=False, help="don't shorten lines to the terminal's width")
    option("--no-color", action="store_true", default=False, help="no colours")
    option(
        "--timeout",
        metavar="TIME",
        type=parse_duration,
        help="longest wait for an answer, for example 30s or 5min",
    )
    option("--no-autostart", action="store_true", default=False, help="don't start the daemon when it is not running")
    option("--system", action="store_true", default=False, help="the shared daemon of this host (comes later)")


def build(*, everywhere: bool = False) -> argparse.ArgumentParser:
    """Return the whole grammar. With *everywhere*, the help of each command lists the options of every command too;
    a man page wants them once.
    """
    parser = Parser(
        prog="ccorchctl",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _common(parser, top=True, show=True)
    parser.add_argument("--version", action="version", version=f"ccorchctl {__version__}", help="print the version")
    parser.set_defaults(run=overview.run)
    actions = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    def finish(sub: argparse.ArgumentParser) -> None:
        _common(sub, top=False, show=everywhere)
        if not everywhere:
            # Old versions of argparse-manpage leave epilogs out.
            sub.description, sub.epilog = f"{sub.description}\n\n{sub.epilog}", None

    verbs = Verbs(actions, finish)
    init_command.add(verbs)
    trial.add(verbs)
    instance.add(verbs)
    project.add(verbs)
    worktree.add(verbs)
    events.add(verbs)
    host.add(verbs)
    config.add(verbs)
    secret.add(verbs)
    return parser


def expand(words: Sequence[str]) -> list[str]:
    """Return the command line with shortcuts written out, ``help X`` as ``X --help``, and a lone noun as its list."""
    position = _first(words, 0)
    before, rest = list(words[:position]), list(words[position:])
    if rest and rest[0] == "help":
        return [*before, *expand([*rest[1:], "--help"])]
    if rest and rest[0] in SHORTCUTS:
        rest[:1] = SHORTCUTS[rest[0]]
    if rest and rest[0] in ALONE:
        following = _first(rest, 1)
        asked = rest[following] if following < len(rest) else ""
        if asked not in ("-h", "--help") and (not asked or asked.startswith("-")):
            rest.insert(1, "list")
    return before + rest


def _first(words: Sequence[str], position: int) -> int:
    """Return the position of the first word from *position* on that is no option of every command."""
    while position < len(words) and (
        words[position] in COMMON or words[position].startswith(("--output=", "--timeout="))
    ):
        position += 2 if words[position] in VALUED else 1
    return min(position, len(words))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line (without the program's name); raise a usage failure when it cannot be meant."""
    if "COLUMNS" not in os.environ:
        # argparse takes the whole width of a terminal; lines of 160 columns are hard to read.
        os.environ["COLUMNS"] = str(min(100, os.get_terminal_size().columns)) if os.isatty(1) else "100"
        try:
            return _parse(words)
        finally:
            del os.environ["COLUMNS"]
    return _parse(words)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    options: argparse.Namespace = build(everywhere=True).parse_args(expand(words))
    return options
