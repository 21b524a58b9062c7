# SPDX-License-Identifier: LGPL-2.1-or-later
"""``.ccorch.toml``: what it says, what it asks for, and how its faults are told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ccorchctl.commands.init import TEMPLATE
from ccorchd import projectfile
from ccorchd.contract import LIMITS, ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.projectfile import ProjectFile

ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, text: str) -> ProjectFile:
    (folder / ".ccorch.toml").write_text(text)
    return projectfile.load(folder)


def test_without_a_file_nothing_is_said_or_asked(tmp_path: Path) -> None:
    assert projectfile.load(tmp_path) == load(tmp_path, "") == ProjectFile()
    assert ProjectFile().digest == ""
    assert ProjectFile().asks == []


def test_everything(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        agent = "demo"
        base = "origin/main"
        port_variable = "VITE_PORT"
        [setup]
        steps = ["npm ci", "cp 'a b' c && make"]
        [environment]
        DATABASE_URL = "sqlite:///dev.db"
        EMPTY = ""
        [instances]
        limits = { memory_max = "25%", memory_high = "1G", cpu_quota = "150%", cpu_weight = 50, tasks_max = "infinity" }
        """,
    )
    assert found.setup == ["npm ci", "cp 'a b' c && make"]
    assert found.environment == {"DATABASE_URL": "sqlite:///dev.db", "EMPTY": ""}
    assert (found.agent, found.base, found.port_variable) == ("demo", "origin/main", "VITE_PORT")
    assert found.limits == {
        "MemoryMax": "25%",
        "MemoryHigh": "1G",
        "CPUQuota": "150%",
        "CPUWeight": "50",
        "TasksMax": "infinity",
    }
    assert set(found.limits) == set(LIMITS)
    assert found.asks == [
        "npm ci",
        "cp 'a b' c && make",
        "set DATABASE_URL=sqlite:///dev.db",
        "set EMPTY=",
        "run the agent demo",
        "tell the port in VITE_PORT",
    ]


def test_the_template_of_init_knows_every_key(tmp_path: Path) -> None:
    assert load(tmp_path, TEMPLATE) == ProjectFile()
    written = load(tmp_path, re.sub(r"(?m)^#(?! )", "", TEMPLATE))
    assert written.setup
    assert written.environment
    assert written.agent
    assert written.base
    assert set(written.limits) == set(LIMITS)
    assert "port_variable" in TEMPLATE


def test_the_reference_names_every_key() -> None:
    reference = (ROOT / "docs/projectfile.md").read_text()
    for key in projectfile.KEYS:
        assert f"`{key}`" in reference or f"`[{key}]`" in reference, key
    for block in re.findall(r"```toml\n(.*?)```", reference, re.DOTALL):
        assert block


def test_the_examples_of_the_reference_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/projectfile.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert load(tmp_path, block) != ProjectFile()


def test_digest_is_that_of_what_runs(tmp_path: Path) -> None:
    texts = [
        '[setup]\nsteps = ["a", "b"]',
        '[setup]\nsteps = ["b", "a"]',
        '[setup]\nsteps = ["a b"]',
        '[setup]\nsteps = ["a", "b"]\n[environment]\nX = "1"\nY = "2"',
        '[environment]\nX = "1"\nY = "2"',
        '[environment]\nX = "2"\nY = "1"',
        'agent = "demo"',
        'port_variable = "P"',
    ]
    digests = [load(tmp_path, text).digest for text in texts]
    assert len(set(digests)) == len(texts)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    # Neither comments nor order nor what only restricts or names a commit asks again.
    same = '# a comment\nbase = "main"\n[environment]\nY = "2"\nX = "1"\n[instances.limits]\ntasks_max = 64\n'
    assert load(tmp_path, same).digest == digests[4]
    assert load(tmp_path, 'base = "main"\n[instances.limits]\ntasks_max = 64\n').digest == ""
    # The user agreed to this text; a later version must not ask for the same thing again.
    assert digests[0] == "8244b772730079d2788d4c9c254e43fbb601b51b77295ef4d82f2b362de6b3f6"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('agnet = "x"', ":1: agnet: unknown key", "Did you mean agent?"),
        ('\n[setup]\nstpes = ["x"]', ":3: setup.stpes: unknown key", "Did you mean setup.steps?"),
        ("[setpu]\n", ":1: setpu: unknown key", "Did you mean setup?"),
        ('steps = ["x"]', ":1: steps: unknown key", "Did you mean setup.steps?"),
        ('[instances]\nmemory_max = "2G"', ":2: instances.memory_max: unknown key", "instances.limits.memory_max?"),
        ("[instances.limits]\nmemorymax = 1", ":2: instances.limits.memorymax: unknown key", "limits.memory_max?"),
        ("[x.y]\nz = 1\n", ":1: x: unknown key", "Known here: agent, base, "),
        ('"agnet" = "x"', ":1: agnet: unknown key", "agent"),
        ("agent = 3", ":1: agent: 3 is no text", 'agent = "…"'),
        ('agent = ""', None, ""),
        ('agent = " "', ':1: agent: " " is no text', ""),
        ('agent = "rm -rf"', ":1: agent: 'rm -rf' is no name", ""),
        ('base = "--force"', ":1: base: '--force' does not name", ""),
        ("setup = 1", ":1: setup: this is a section", "[setup]"),
        ("instances = 1", ":1: instances: this is a section", "[instances]"),
        ("environment = []", ":1: environment: this is a section", "[environment]"),
        ("[instances]\nlimits = 5", ":2: instances.limits: this is a section", "[instances.limits]"),
        ('[setup]\nsteps = "x"', ':2: setup.steps: "x" is no list', 'steps = ["npm ci"]'),
        ('[setup]\nsteps = ["x",\n 3]', ":2: setup.steps: step 2 is 3", "/bin/sh"),
        ('[setup]\nsteps = [""]', ":2: setup.steps: step 1", ""),
        ('[setup]\nsteps = ["a\\u0000"]', ":2: setup.steps: step 1", ""),
        ("setup.steps = [" + '"x",' * 101 + "]", ":1: setup.steps: more than 100", "script"),
        ("[environment]\nA = 1", ":2: environment.A: 1 is no text", 'A = "1"'),
        ("[environment]\nA = true", ":2: environment.A: true is no text", 'A = "true"'),
        ('[environment]\n"1A" = ""', ":2: environment.1A: '1A' is no name", ""),
        ('[environment]\nCCORCH_SOCKET = ""', ":2: environment.CCORCH_SOCKET: ", "another"),
        ('[environment]\nTMUX = ""', ":2: environment.TMUX: ", "another"),
        ('[environment]\nPORT = "3000"', ":2: environment.PORT: ", "port_variable"),
        ('port_variable = "a b"', ":1: port_variable: 'a b' is no name", ""),
        ('[instances.limits]\nmemory_max = "lots"', ":2: instances.limits.memory_max: memory_max='lots'", "512M"),
        ("[instances.limits]\ncpu_weight = 0", ":2: instances.limits.cpu_weight: cpu_weight='0'", "1 to 10000"),
        ("[instances.limits]\ncpu_weight = true", ":2: instances.limits.cpu_weight: true is no limit", "100"),
        ("[instances.limits]\ntasks_max = [1]", ":2: instances.limits.tasks_max: [1] is no limit", "1024"),
        (
            '[instances.limits]\nmemory_high = "2G"\nmemory_max = "1G"',
            ":2: instances.limits.memory_high: it is above",
            "",
        ),
        ("agent = \n", " is no valid TOML: Invalid value (at line 1", "quotes"),
        ("a = " + "[" * 5000, " is ", ""),
        ("#" * 300_000, " is larger than 256 KiB", ""),
    ],
)
def test_faults_name_file_line_and_key(tmp_path: Path, text: str, message: str | None, hint: str) -> None:
    if message is None:
        assert load(tmp_path, text) == ProjectFile()
        return
    with pytest.raises(CcorchError) as caught:
        load(tmp_path, text)
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert caught.value.message.startswith(f"{tmp_path}/.ccorch.toml{message}")
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("kind", ["folder", "pipe", "bytes", "loop"])
def test_what_is_no_readable_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".ccorch.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "bytes":
        path.write_bytes(b'agent = "\xff"')
    else:
        path.symlink_to(path)
    with pytest.raises(CcorchError) as caught:
        projectfile.load(tmp_path)
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert str(path) in caught.value.message
