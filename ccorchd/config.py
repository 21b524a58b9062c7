# SPDX-License-Identifier: LGPL-2.1-or-later
"""The values of the daemon's settings: read from files and variables, checked against the table in settings.py.

Later ones win: the defaults, ``ccorchd.toml``, the files of ``ccorchd.toml.d/`` in the order of their names, and
variables ``CCORCH_<SECTION>_<NAME>``. Nothing is guessed: an unknown key or a value out of range is an error.

``python3 -m ccorchd.config man|markdown|toml`` prints the table as ccorchd.toml(5), for docs/settings.md, or as a file
to start from.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import Limits, parse_size
from ccorchd.settings import (
    BY_KEY,
    FILE_NAME,
    NO_MACHINE,
    SECTIONS,
    SETTINGS,
    VARIABLE_PREFIX,
    Kind,
    Setting,
    Unfit,
    Value,
    check_folder,
    show,
)

N = TypeVar("N", int, float)


class Config:
    """Checked values of all settings, with where each comes from.

    ``config["instances.max"]`` has the type of the setting's default (seconds are floats, lists are tuples); an
    unknown key is a KeyError, since only the code can be wrong then. Holders keep the one object: :meth:`adopt` changes
    it.
    """

    def __init__(self) -> None:
        """All settings at their defaults."""
        self._values: dict[str, Value] = {setting.key: setting.default for setting in SETTINGS}
        self._sources: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def source(self, key: str) -> str:
        """Return ``default``, the path of the file, or the name of the variable that the value comes from."""
        return self._sources.get(BY_KEY[key].key, "default")

    def set(self, key: str, value: object, source: str) -> None:
        """Check *value*, written as in a file, and keep it; raise ``ConfigInvalid`` naming *source*."""
        self._values[key] = _parsed(BY_KEY[key], value, source)
        self._sources[key] = source

    def rows(self) -> list[dict[str, str]]:
        """Return the table with values as clients see it (``contract.SETTING_FIELDS``)."""
        return [
            {
                "key": setting.key,
                "value": show(self._values[setting.key]),
                "default": show(setting.default),
                "source": self.source(setting.key),
                "help": setting.help,
            }
            for setting in SETTINGS
        ]

    def adopt(self, fresh: Config) -> tuple[list[str], list[str]]:
        """Take over from *fresh*, just loaded, what can change in a running daemon.

        Return the keys that changed here, and those that differ but wait for the daemon's next start.
        """
        changed: list[str] = []
        waiting: list[str] = []
        for setting in SETTINGS:
            key = setting.key
            if fresh[key] == self._values[key]:
                continue
            if setting.reload:
                changed.append(key)
                self._values[key] = fresh[key]
                self._sources[key] = fresh.source(key)
            else:
                waiting.append(key)
        return changed, waiting


def load(config_dir: Path, environment: Mapping[str, str]) -> Config:
    """Read all files of *config_dir* and the variables of *environment*; a missing file or folder is no error.

    Raise ``ConfigInvalid`` with one sentence that names the file, the line where it is known, the key and the nearest
    known one.
    """
    config = Config()
    for path in _files(config_dir):
        _read_file(config, path)
    _read_variables(config, environment)
    _check_together(config)
    return config


def _files(config_dir: Path) -> list[Path]:
    main, folder = config_dir / FILE_NAME, config_dir / f"{FILE_NAME}.d"
    found = [main] if main.exists() or main.is_symlink() else []
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{folder} cannot be read: {error.strerror}") from error
    return found + [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _read_file(config: Config, path: Path) -> None:
    try:
        text = path.read_bytes().decode()
        # tomllib takes only \n and \r\n for line ends, as TOML wants; splitlines() would take more.
        data = tomllib.loads(text)
    except OSError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CcorchError(ErrorCode.CONFIG_INVALID, f"{path} is not UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise CcorchError(
            ErrorCode.CONFIG_INVALID,
            f"{path} is no valid TOML: {error}",
            'Text goes between quotes: model = "sonnet"; a section starts with its name in brackets: [claude].',
        ) from error
    for section, table in data.items():
        if section not in SECTIONS:
            names = list(table) if isinstance(table, dict) else []
            key = f"{section}.{names[0]}" if len(names) == 1 else section
            line = _line(text, section, names[0] if len(names) == 1 else "")
            raise _unknown(key, f"{path}{line}")
        if not isinstance(table, dict):
            raise CcorchError(
                ErrorCode.CONFIG_INVALID,
                f"{path}{_line(text, section, '')}: {section} is a section, not a setting",
                f"Write [{section}] on a line of its own, and its settings below it.",
            )
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in BY_KEY:
                raise _unknown(key, f"{path}{_line(text, section, name)}")
            try:
                config.set(key, value, str(path))
            except CcorchError as error:
                message = error.message.replace(str(path), f"{path}{_line(text, section, name)}", 1)
                raise CcorchError(error.code, message, error.hint) from None


def _read_variables(config: Config, environment: Mapping[str, str]) -> None:
    by_variable = {setting.variable: setting for setting in SETTINGS}
    for variable in sorted(environment):
        if not variable.startswith(VARIABLE_PREFIX):
            continue
        if setting := by_variable.get(variable):
            config.set(setting.key, _from_text(setting, environment[variable]), variable)
            continue
        # Other variables of ours start like this too (CCORCH_SUFFIX): an error is only what is meant for a section.
        ours = any(variable.startswith(f"{VARIABLE_PREFIX}{section.upper()}_") for section in SECTIONS)
        near = difflib.get_close_matches(variable, by_variable, n=1, cutoff=0.6 if ours else 0.92)
        if ours or near:
            hint = f"Did you mean {near[0]}?" if near else "ccorchd.toml(5) lists all variables."
            raise CcorchError(ErrorCode.CONFIG_INVALID, f"the environment has an unknown setting {variable}", hint)


def _check_together(config: Config) -> None:
    if config["ports.first"] > config["ports.last"]:
        raise CcorchError(
            ErrorCode.CONFIG_INVALID,
            f"ports.first = {config['ports.first']} ({config.source('ports.first')}) is above "
            f"ports.last = {config['ports.last']} ({config.source('ports.last')})",
            "Set both to the two ends of one range.",
        )
    wanted = {"MemoryHigh": config["instances.memory_high"], "MemoryMax": config["instances.memory_max"]}
    if all(text and not text.endswith("%") for text in wanted.values()):
        try:
            Limits.parse(wanted, Limits(), NO_MACHINE)
        except CcorchError as error:
            raise CcorchError(
                ErrorCode.CONFIG_INVALID,
                f"instances.memory_high ({config.source('instances.memory_high')}) is above "
                f"instances.memory_max ({config.source('instances.memory_max')})",
                error.hint,
            ) from error


def _unknown(key: str, where: str) -> CcorchError:
    section, _, name = key.partition(".")
    names = {setting.name: setting.key for setting in SETTINGS}
    own = {setting.name: setting.key for setting in SETTINGS if setting.section == section}

    def close(word: str, known: Mapping[str, str], cutoff: float) -> list[str]:
        return [known[match] for match in difflib.get_close_matches(word, known, n=1, cutoff=cutoff)]

    # A slip within the section, else the right name in the wrong section or without any, else what looks most alike.
    near = (
        close(name, own, 0.6) or close(name or section, names, 0.9) or close(key, {each: each for each in BY_KEY}, 0.6)
    )
    if near:
        hint = f"Did you mean {near[0]}?"
    elif section in SECTIONS:
        hint = f"[{section}] has " + ", ".join(each.name for each in SETTINGS if each.section == section) + "."
    else:
        hint = "Sections are " + ", ".join(SECTIONS) + "."
    what = "setting" if "." in key or (near and section not in SECTIONS) else "section"
    return CcorchError(ErrorCode.CONFIG_INVALID, f"{where}: unknown {what} {key}", hint)


_NEVER: Final = re.compile(r"(?!)")


def _line(text: str, section: str, name: str) -> str:
    """Return ``:LINE`` of a key, or nothing where this simple reading does not find it (tomllib tells no lines)."""

    def spelled(word: str) -> str:
        return rf"""(?:{re.escape(word)}|"{re.escape(word)}"|'{re.escape(word)}')"""

    header = re.compile(r"\s*\[+\s*([^\]]*?)\s*\]+\s*(?:#.*)?\Z")
    own_header = re.compile(
        spelled(section) + (rf"(?:\s*\.\s*{spelled(name)}(?:\s*\..*)?)?\Z" if name else r"(?:\s*\..*)?\Z")
    )
    in_section = re.compile(rf"\s*{spelled(name)}\s*[=.]")
    dotted = re.compile(
        rf"\s*{spelled(section)}\s*"
        + (rf"(?:\.\s*{spelled(name)}\s*[=.]|=.*\b{re.escape(name)}\b)" if name else "[=.]")
    )
    here, first_header = "", ""
    for number, line in enumerate(text.split("\n"), 1):
        if match := header.match(line.rstrip("\r")):
            here = match[1]
            if own_header.match(here):
                first_header = first_header or f":{number}"
                if not name or here.strip("\"'") != section:
                    return f":{number}"
        elif (dotted if not here else in_section if name and here.strip("\"'") == section else _NEVER).match(line):
            return f":{number}"
    return first_header


_WORDS: Final = {
    word: truth for truth, words in ((True, "1 yes true on"), (False, "0 no false off")) for word in words.split()
}


def _from_text(setting: Setting, text: str) -> object:
    """Turn a variable's text into what a file would hold; what does not fit is left for the check to refuse."""
    try:
        match setting.type:
            case Kind.INT:
                return int(text)
            case Kind.FLOAT | Kind.SECONDS:
                return float(text)
            case Kind.BOOL:
                return _WORDS.get(text.strip().lower(), text)
            case Kind.LIST:
                return [word for word in re.split(r"[\s,]+", text) if word]
    except ValueError:
        pass
    return text


def _parsed(setting: Setting, value: object, source: str) -> Value:
    try:
        return _converted(setting, value)
    except Unfit as error:
        detail = str(error)
    except CcorchError as error:
        detail = error.hint or error.message
    raise CcorchError(
        ErrorCode.CONFIG_INVALID,
        f"{source}: {setting.key} = {_show_given(value)} does not fit: {detail}",
        f"The default is {show(setting.default)}. {setting.help}",
    )


def _converted(setting: Setting, value: object) -> Value:
    wrong = Unfit(f"write {_article(setting.allowed())}")
    match setting.type:
        case Kind.BOOL:
            if not isinstance(value, bool):
                raise wrong
            return value
        case Kind.INT:
            if not isinstance(value, int) or isinstance(value, bool):
                raise wrong
            return _in_range(setting, value, wrong)
        case Kind.FLOAT | Kind.SECONDS:
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise wrong
            return _in_range(setting, float(value), wrong)
        case Kind.SIZE:
            if isinstance(value, str) and "%" not in value:
                value = parse_size(value, setting.key, 0)
            if not isinstance(value, int) or isinstance(value, bool):
                raise wrong
            return _in_range(setting, value, wrong)
        case Kind.LIST:
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise wrong
            for each in value:
                _check_text(setting, each)
            return tuple(value)
        case Kind.TEXT:
            if not isinstance(value, str) or (setting.choices and value not in setting.choices):
                raise wrong
            _check_text(setting, value)
            return os.path.expanduser(value) if setting.check is check_folder else value


def _check_text(setting: Setting, text: str) -> None:
    # A line break could smuggle a second line into a generated file, a NUL cannot be an argument.
    if any(character in text for character in "\0\r\n"):
        raise Unfit("write it on one line")
    if setting.check:
        setting.check(text)


def _in_range(setting: Setting, number: N, wrong: Unfit) -> N:
    if (setting.least is not None and number < setting.least) or (setting.most is not None and number > setting.most):
        raise wrong
    return number


def _article(words: str) -> str:
    if words.startswith(("seconds", "one of", "true")):
        return words
    return f"a {words}"


def _show_given(value: object) -> str:
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_show_given, value)) + "]"
    text = show(value) if isinstance(value, bool | int | str) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


if __name__ == "__main__":
    from ccorchd.settings_text import main

    sys.exit(main(sys.argv[1:]))
