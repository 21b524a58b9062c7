# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real repositories, apart from whatever the user's own configuration of git says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ccorchd.worktrees import Worktrees


class Checkout:
    """A repository's folder with the git commands that the tests use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.path), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, name: str, text: str) -> str:
        (self.path / name).write_text(text)
        self.git("add", "--", name)
        self.git("commit", "-q", "-m", f"Change {name}")
        return self.git("rev-parse", "HEAD")

    def hook(self, name: str, body: str) -> None:
        file = self.path / ".git/hooks" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)


@pytest.fixture
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "gitconfig"
    configuration.write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
        '[protocol "file"]\n\tallow = always\n'
    )
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def checkout() -> type[Checkout]:
    return Checkout


@pytest.fixture
def main(own_configuration: None, tmp_path: Path) -> Checkout:
    """A repository with one commit."""
    made = Checkout(tmp_path / "main")
    made.path.mkdir()
    made.git("init", "-q")
    made.commit("a.txt", "one\n")
    return made


@pytest.fixture
def worktrees(tmp_path: Path) -> Worktrees:
    return Worktrees(tmp_path / "data")


@pytest.fixture
async def worktree(worktrees: Worktrees, main: Checkout) -> Checkout:
    """The worktree of the instance demo/amber on the branch ccorch/amber."""
    path = worktrees.path_for("demo", "amber")
    await worktrees.create(main.path, path, "ccorch/amber", "")
    return Checkout(path)
