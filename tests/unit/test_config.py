# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings: where values come from, what is refused and in which words, and that the documentation is the table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ccorchd import config as module
from ccorchd import settings, settings_text
from ccorchd.config import Config, load
from ccorchd.contract import SETTING_FIELDS, ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.settings import SETTINGS, Kind

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, text: str, name: str = "ccorchd.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(folder: Path, environment: dict[str, str] | None = None) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        load(folder, environment or {})
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert "\n" not in caught.value.message
    return caught.value


def test_defaults_without_any_file(tmp_path: Path) -> None:
    config = load(
        tmp_path / "absent", {"PATH": "/bin", "CCORCH_SUFFIX": "run", "CCORCH_SOCKET": "/x", "CCORCH_INSTANCE": "a/b"}
    )
    assert {key: config[key] for key in config} == {setting.key: setting.default for setting in SETTINGS}
    assert {config.source(key) for key in config} == {"default"}


def test_every_default_passes_its_own_check() -> None:
    for setting in SETTINGS:
        config = Config()
        config.set(setting.key, setting.default, "test")
        assert config[setting.key] == setting.default
        assert type(config[setting.key]) is type(setting.default)


def test_later_ones_win_and_are_named(tmp_path: Path) -> None:
    main = write(tmp_path, "[instances]\nmax = 3\ntasks_max = 100\ncpu_weight = 50\nstop_timeout = 4\n")
    second = write(tmp_path, "instances.tasks_max = 300\ninstances.cpu_weight = 70\n", "ccorchd.toml.d/20-b.toml")
    write(tmp_path, "instances.tasks_max = 200\n", "ccorchd.toml.d/10-a.toml")
    write(tmp_path, "nonsense", "ccorchd.toml.d/30-c.toml~")
    write(tmp_path, "nonsense", "ccorchd.toml.d/.40-d.toml")
    config = load(tmp_path, {"CCORCH_INSTANCES_CPU_WEIGHT": "90"})
    assert (config["instances.max"], config.source("instances.max")) == (3, str(main))
    assert (config["instances.tasks_max"], config.source("instances.tasks_max")) == (300, str(second))
    assert (config["instances.cpu_weight"], config.source("instances.cpu_weight")) == (
        90,
        "CCORCH_INSTANCES_CPU_WEIGHT",
    )
    assert config["instances.stop_timeout"] == 4.0
    assert isinstance(config["instances.stop_timeout"], float)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('events.text_limit = "64K"', "events.text_limit", 65536),
        ("events.text_limit = 1000", "events.text_limit", 1000),
        ('agents.environment = ["A", "B_1"]', "agents.environment", ("A", "B_1")),
        ('instances.memory_max = "40%"', "instances.memory_max", "40%"),
        ('instances.memory_max = "infinity"', "instances.memory_max", "infinity"),
        ('instances.memory_share = "12.5%"', "instances.memory_share", "12.5%"),
        ('instances.cpu_quota = "150%"', "instances.cpu_quota", "150%"),
        ("usage.interval = 0.5", "usage.interval", 0.5),
        ('claude.permission_mode = "plan"', "claude.permission_mode", "plan"),
        ('claude.config_dir = "~/c"', "claude.config_dir", os.path.expanduser("~/c")),
    ],
)
def test_values_of_files(tmp_path: Path, text: str, key: str, value: object) -> None:
    write(tmp_path, text)
    assert load(tmp_path, {})[key] == value


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("CCORCH_INSTANCES_MAX", "7", "instances.max", 7),
        ("CCORCH_USAGE_INTERVAL", "2", "usage.interval", 2.0),
        ("CCORCH_EVENTS_TEXT_LIMIT", "2K", "events.text_limit", 2048),
        ("CCORCH_AGENTS_ENVIRONMENT", "A,B  C", "agents.environment", ("A", "B", "C")),
        ("CCORCH_AGENTS_ENVIRONMENT", "", "agents.environment", ()),
        ("CCORCH_CLAUDE_MODEL", "12", "claude.model", "12"),
        ("CCORCH_LOGS_LINES_PER_10S", "5", "logs.lines_per_10s", 5),
    ],
)
def test_values_of_variables(tmp_path: Path, variable: str, text: str, key: str, value: object) -> None:
    config = load(tmp_path, {variable: text})
    assert config[key] == value
    assert config.source(key) == variable


def test_booleans_are_read_from_both() -> None:
    # No setting of today is one, so the row is made here.
    setting = settings.Setting("daemon.flag", Kind.BOOL, False, "")
    assert module._parsed(setting, True, "f") is True
    assert module._parsed(setting, module._from_text(setting, "On"), "f") is True
    assert module._parsed(setting, module._from_text(setting, "no"), "f") is False
    for wrong in (1, "true", module._from_text(setting, "maybe")):
        with pytest.raises(CcorchError, match="true or false"):
            module._parsed(setting, wrong, "f")


@pytest.mark.parametrize(
    ("text", "line", "unknown", "near"),
    [
        ("[instances]\n\n# x\nmaks = 3\n", 4, "instances.maks", "instances.max"),
        ("[instances]\nstop_timout = 3\n", 2, "instances.stop_timout", "instances.stop_timeout"),
        ("[instance]\nmax = 3\n", 2, "instance.max", "instances.max"),
        ("\ninstance.max = 3\n", 2, "instance.max", "instances.max"),
        ("stop_timeout = 3\n", 1, "stop_timeout", "instances.stop_timeout"),
        ('[claude]\nmodel = "x"\n[prompts]\nmodel = "x"\n', 4, "prompts.model", "claude.model"),
        ("[ports]\n'first_one' = 3\n", 2, "ports.first_one", "ports.first"),
        ("[ports.first_one]\nx = 3\n", 1, "ports.first_one", "ports.first"),
        ("ports = { firts = 1 }\n", 1, "ports.firts", "ports.first"),
    ],
)
def test_unknown_key_names_file_line_and_nearest(tmp_path: Path, text: str, line: int, unknown: str, near: str) -> None:
    path = write(tmp_path, text, "ccorchd.toml.d/x.toml")
    error = refused(tmp_path)
    assert error.message == f"{path}:{line}: unknown setting {unknown}"
    assert error.hint == f"Did you mean {near}?"


def test_unknown_key_without_a_neighbour_lists_the_section(tmp_path: Path) -> None:
    write(tmp_path, "[ports]\nqqqqqqqq = 3\n")
    assert refused(tmp_path).hint == "[ports] has first, last."


def test_unknown_section_without_a_neighbour_lists_sections(tmp_path: Path) -> None:
    path = write(tmp_path, "[qqqqqqqq]\na = 1\nb = 2\n")
    error = refused(tmp_path)
    assert error.message == f"{path}:1: unknown section qqqqqqqq"
    assert error.hint.startswith("Sections are instances, ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instances.max = 0", "instances.max = 0 does not fit: write a whole number, 1 to 1000"),
        ("instances.max = true", "instances.max = true does not fit: write a whole number"),
        ("instances.max = 3.0", "instances.max = 3.0 does not fit: write a whole number"),
        ('instances.max = "3"', 'instances.max = "3" does not fit: write a whole number'),
        ("instances.max = [3]", "instances.max = [3] does not fit"),
        ("[instances.max]\na = 1", "instances.max = {…} does not fit"),
        ("usage.interval = nan", "usage.interval = nan does not fit: write seconds, 0.1 to 3600"),
        ("usage.interval = inf", "usage.interval = inf does not fit"),
        ('usage.interval = "1s"', "does not fit: write seconds"),
        ("events.text_limit = 1", "write a size in bytes or like 64K, 256 to 1048576"),
        ('events.text_limit = "lots"', 'events.text_limit = "lots" does not fit'),
        ('events.text_limit = "40%"', 'events.text_limit = "40%" does not fit'),
        ('instances.memory_max = "lots"', 'instances.memory_max = "lots" does not fit: Write for example 512M'),
        ('instances.memory_max = "1K"', 'instances.memory_max = "1K" does not fit: Give at least 16M'),
        ("instances.memory_max = 1", "instances.memory_max = 1 does not fit: write a text"),
        ('instances.memory_share = "0%"', "percentage"),
        ('instances.memory_share = "120%"', "percentage"),
        ('instances.memory_share = "1G"', "percentage"),
        ('instances.cpu_quota = "2"', "Write a percentage of one CPU"),
        ('agents.environment = "A"', "write a list of texts"),
        ('agents.environment = ["A B"]', '"A B" is no name of a variable'),
        ("agents.environment = [1]", "write a list of texts"),
        ('claude.permission_mode = "yolo"', 'write one of "default", "acceptEdits"'),
        ('claude.config_dir = "x/y"', "a path that starts with / or ~/"),
        ('claude.command = ""', "the name or the path of a program"),
        ('claude.model = "a\\nb"', "on one line"),
        ("ports.first = 80", "ports.first = 80 does not fit: write a whole number, 1024 to 65535"),
        ("ports = 3", "ports is a section, not a setting"),
    ],
)
def test_wrong_values_name_file_line_key_and_what_would_fit(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, f"# a comment\n{text}\n")
    error = refused(tmp_path)
    assert error.message.startswith(f"{path}:2: ")
    assert words in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("variable", "text", "words", "hint"),
    [
        ("CCORCH_INSTANCES_MAX", "many", 'CCORCH_INSTANCES_MAX: instances.max = "many" does not fit', "default is 10"),
        ("CCORCH_INSTANCES_MAKS", "1", "unknown setting CCORCH_INSTANCES_MAKS", "CCORCH_INSTANCES_MAX?"),
        ("CCORCH_INSTANCE_MAX", "1", "unknown setting CCORCH_INSTANCE_MAX", "CCORCH_INSTANCES_MAX?"),
        ("CCORCH_PORTS_QQQQQQQQQQQQ", "1", "unknown setting CCORCH_PORTS_QQQQQQQQQQQQ", ""),
    ],
)
def test_wrong_variables(tmp_path: Path, variable: str, text: str, words: str, hint: str) -> None:
    error = refused(tmp_path, {variable: text})
    assert words in error.message
    assert hint in error.hint


def test_ports_must_be_a_range(tmp_path: Path) -> None:
    path = write(tmp_path, "ports.first = 43000\n")
    message = refused(tmp_path).message
    assert f"ports.first = 43000 ({path})" in message
    assert "ports.last = 42999 (default)" in message


def test_memory_high_above_max(tmp_path: Path) -> None:
    write(tmp_path, 'instances.memory_max = "1G"\ninstances.memory_high = "2G"\n')
    assert "memory_high" in refused(tmp_path).message


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[instances", "no valid TOML"), (b"\xff\xfe", "not UTF-8"), (b"a = 1\na = 2\n", "no valid TOML")],
)
def test_broken_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "ccorchd.toml"
    path.write_bytes(content)
    error = refused(tmp_path)
    assert str(path) in error.message
    assert words in error.message


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "ccorchd.toml"
    path.symlink_to("nowhere")
    assert str(path) in refused(tmp_path).message
    path.unlink()
    path.mkdir()
    assert "cannot be read" in refused(tmp_path).message
    path.rmdir()
    (tmp_path / "ccorchd.toml.d").write_text("")
    assert "cannot be read" in refused(tmp_path).message


def test_a_comment_or_text_is_not_taken_for_the_line(tmp_path: Path) -> None:
    text = "# [ports]\n# firts = 1\n[claude] # see below\nmodel = 'firts'\n[ports] # firts\nfirst = 42000\nfirts = 1\n"
    path = write(tmp_path, text)
    assert refused(tmp_path).message.startswith(f"{path}:7: ")


def test_reload_changes_only_what_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = (replace(each, reload=False) if each.key == "claude.model" else each for each in SETTINGS)
    monkeypatch.setattr(module, "SETTINGS", tuple(fixed))
    config = load(tmp_path, {})
    path = write(tmp_path, "instances.max = 3\nclaude.model = 'm'\n")
    assert config.adopt(load(tmp_path, {})) == (["instances.max"], ["claude.model"])
    assert (config["instances.max"], config.source("instances.max")) == (3, str(path))
    assert (config["claude.model"], config.source("claude.model")) == ("", "default")
    assert config.adopt(load(tmp_path, {})) == ([], ["claude.model"])


def test_rows_are_what_the_contract_says(tmp_path: Path) -> None:
    rows = load(tmp_path, {"CCORCH_CLAUDE_MODEL": 'a"b'}).rows()
    assert [row["key"] for row in rows] == [setting.key for setting in SETTINGS]
    for row in rows:
        assert list(row) == list(SETTING_FIELDS)
        assert all(isinstance(value, str) for value in row.values())
    assert next(row for row in rows if row["key"] == "claude.model")["value"] == '"a\\"b"'
    assert next(row for row in rows if row["key"] == "agents.environment")["value"] == "[]"


def test_unknown_key_in_the_code_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Config()["instances.maks"]
    with pytest.raises(KeyError):
        Config().source("instances.maks")


def test_table_is_sound() -> None:
    assert len({setting.key for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)
    assert set(settings.SECTION_HELP) == {setting.section for setting in SETTINGS}
    for setting in SETTINGS:
        assert re.fullmatch(r"[a-z]+\.[a-z][a-z0-9_]*", setting.key)
        assert setting.help.endswith((".", ")"))


def test_template_changes_nothing_and_knows_every_setting(tmp_path: Path) -> None:
    text = settings_text.default_text()
    write(tmp_path, text)
    config = load(tmp_path, {})
    assert {config.source(key) for key in config} == {"default"}
    # With all comments of settings taken away it must be valid, and say the defaults.
    path = write(tmp_path, re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))
    config = load(tmp_path, {})
    assert {config.source(key) for key in config} == {str(path)}
    assert {key: config[key] for key in config} == {setting.key: setting.default for setting in SETTINGS}
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("value", ['a"b\\c', "tab\there", "ü", True, 3, 2.5, 10.0, ("a", "b\\")])
def test_show_is_toml(value: settings.Value) -> None:
    read = tomllib.loads(f"x = {settings.show(value)}")["x"]
    assert (tuple(read) if isinstance(value, tuple) else read) == value


def test_every_setting_is_read_by_the_code() -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "ccorchd").rglob("*.py") if path.name != "settings.py")
    assert [setting.key for setting in SETTINGS if f'"{setting.key}"' not in code] == []


def test_settings_page_is_the_table() -> None:
    assert settings_text.markdown() in (REPOSITORY / "docs/settings.md").read_text()


def test_man_page_is_the_table() -> None:
    assert (REPOSITORY / "man/ccorchd.toml.5").read_text() == settings_text.man()


def test_man_page_renders_without_warnings() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z"], input=settings_text.man(), text=True, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    for setting in SETTINGS:
        assert setting.variable in settings_text.man()


def test_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ccorchd.config", *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=30,
        )

    assert run("man").stdout == settings_text.man()
    assert run("markdown").stdout == settings_text.markdown()
    assert run("toml").stdout == settings_text.default_text()
    assert run("nonsense").returncode == 2
