# SPDX-License-Identifier: LGPL-2.1-or-later
"""How git processes are waited for, ended and told about."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork import process
from ccorchd.gitwork.process import GitRun


class Watched(GitRun):
    """Lets something happen in the middle of waiting for a lock."""

    def __init__(self, then: Callable[[Watched], object]) -> None:
        super().__init__()
        self.then = then
        self.pauses = 0

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.then(self)
        super().pause(seconds)


def program(folder: Path, body: str) -> dict[str, str]:
    """Put a program named git before the real one, and return the PATH of a caller who has that."""
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "git").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_lock_of_another_git_is_waited_for(main: Any) -> None:
    lock = main.path / ".git/index.lock"
    lock.touch()
    (main.path / "new").touch()
    run = Watched(lambda run: lock.unlink() if run.pauses == 2 else None)
    assert run.write(main.path, "add", "new").status == 0
    assert run.pauses == 2
    assert main.git("ls-files", "new") == "new"


def test_a_lock_that_stays_is_named(main: Any) -> None:
    lock = main.path / ".git/index.lock"
    lock.touch()
    (main.path / "new").touch()
    with pytest.raises(CcorchError, match="Another git process is at work") as caught:
        GitRun().write(main.path, "add", "new", patience=0)
    assert caught.value.code is ErrorCode.GIT_FAILED
    assert caught.value.hint.endswith(f"remove {lock}")


def test_calling_off_ends_the_wait_and_all_that_would_follow(main: Any) -> None:
    (main.path / ".git/index.lock").touch()
    (main.path / "new").touch()
    run = Watched(lambda run: run.stop.set())
    for _ in range(2):
        with pytest.raises(CcorchError, match="called off") as caught:
            run.write(main.path, "add", "new")
        assert caught.value.code is ErrorCode.TIMEOUT
    assert run.pauses == 1


def test_a_git_that_ignores_the_polite_signal_is_killed(
    main: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_TERM_WAIT", 0.1)
    caller = program(tmp_path / "bin", "trap '' TERM\necho $$ and more than was asked for\nexec sleep 600")
    answer = GitRun(caller).read(main.path, "status", limit=12)
    assert answer.truncated
    assert len(answer.output) == 12
    assert answer.status == -9
    with pytest.raises(ProcessLookupError):
        os.kill(int(answer.text.split()[0]), 0)


def test_a_git_that_dies_without_a_word_is_told_by_its_signal(main: Any, tmp_path: Path) -> None:
    with pytest.raises(CcorchError, match="it was ended by signal 11") as caught:
        GitRun(program(tmp_path / "bin", "kill -SEGV $$")).read(main.path, "status")
    assert caught.value.code is ErrorCode.GIT_FAILED


def test_a_git_that_cannot_be_run_is_an_error_of_the_request(main: Any, tmp_path: Path) -> None:
    program(tmp_path / "bin", "")
    (tmp_path / "bin/git").write_bytes(b"\x7fELF and nothing else")
    caller = {"PATH": str(tmp_path / "bin")}
    with pytest.raises(CcorchError, match="git could not be started") as caught:
        GitRun(caller).read(main.path, "status")
    assert caught.value.code is ErrorCode.GIT_FAILED
