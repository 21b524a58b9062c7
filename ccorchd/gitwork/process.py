# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one door for git processes: curated environment, time-outs, bounded output, failures told once.

GitPython starts the processes, and no more than that: its time-out kills with SIGKILL (which leaves locks behind), it
waits for background processes of hooks, and it runs git in the daemon's own folder when the wanted one is gone. All
options given here are constants; names are checked (``refs.py``) and come after ``--`` where git takes that.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

# At import GitPython runs `git version` and raises ImportError without git; that must be an error of a request only.
_refresh = os.environ.get("GIT_PYTHON_REFRESH")
os.environ["GIT_PYTHON_REFRESH"] = "quiet"
from git.cmd import Git  # noqa: E402
from git.exc import GitCommandNotFound  # noqa: E402

if _refresh is None:
    del os.environ["GIT_PYTHON_REFRESH"]
else:
    os.environ["GIT_PYTHON_REFRESH"] = _refresh

LEAST_VERSION: Final = (2, 39)
"""``git merge-tree --write-tree`` came with 2.38; Debian 12 has 2.39."""

_ENVIRONMENT: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:ssh:file",
    "GIT_EDITOR": ":",
    "GIT_MERGE_AUTOEDIT": "no",
    "LC_ALL": "C.UTF-8",
    "LANGUAGE": "C",
}
_READING: Final = {"GIT_OPTIONAL_LOCKS": "0"}

_CALLER: Final = ("PATH", "SSH_AUTH_SOCK", "GNUPGHOME")
"""What hooks and filters (git-lfs) need of the environment of the person who asked."""

_CONFIG: Final = (
    # Neither of the two may leave a process of a worktree behind in the daemon's own cgroup.
    *("-c", "core.fsmonitor=false", "-c", "gc.auto=0", "-c", "maintenance.auto=false"),
    # Others work in the same repository: let git itself wait for its locks (milliseconds).
    *("-c", "core.filesRefLockTimeout=3000", "-c", "core.packedRefsTimeout=3000"),
    *("-c", "advice.addEmbeddedRepo=false"),
)

# `git rev-parse --local-env-vars`: a daemon started from a git hook must not take that repository for every other.
for _name in (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE", "GIT_CONFIG"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG_PARAMETERS", "GIT_GRAFT_FILE"),
    *("GIT_IMPLICIT_WORK_TREE", "GIT_SHALLOW_FILE", "GIT_REPLACE_REF_BASE", "GIT_NO_REPLACE_OBJECTS"),
    *("GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"),
    *("GIT_EXTERNAL_DIFF", "GIT_DIFF_OPTS", "GIT_TRACE"),
):
    os.environ.pop(_name, None)

_TERM_WAIT: Final = 5.0
_DRAIN_WAIT: Final = 0.5
_SLICE: Final = 0.25
_LIMIT: Final = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Answer:
    """What a git process said. ``truncated``: there was more output than asked for, and git was ended."""

    status: int
    output: bytes
    errors: str
    truncated: bool = False

    @property
    def text(self) -> str:
        """The output as text without the last newline."""
        return self.output.decode("utf-8", "replace").rstrip("\n")

    @property
    def fields(self) -> list[bytes]:
        """The parts of an output that ends each with NUL."""
        parts = self.output.split(b"\0")
        return parts[:-1] if parts and not parts[-1] else parts


class GitRun:
    """The git processes of one operation, run in a thread. Set :attr:`stop` from outside to end it early."""

    def __init__(self, caller: Mapping[str, str] | None = None) -> None:
        self.stop = threading.Event()
        self._caller = {name: caller[name] for name in _CALLER if name in caller} if caller else {}
        # "-C" says where, not the working folder: GitPython falls back to the daemon's own when that is gone.
        self._git = Git("/")

    def read(
        self,
        where: Path,
        *arguments: str,
        accept: tuple[int, ...] = (0,),
        timeout: float = 60,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        limit: int = _LIMIT,
    ) -> Answer:
        """Run git in *where* without taking optional locks; raise :func:`failure` for a status not in *accept*.

        *timeout* in seconds, *limit* of the output in bytes.
        """
        answer = self._run(where, arguments, timeout, stdin, {**_READING, **(environment or {})}, limit)
        if answer.status not in accept and not answer.truncated:
            raise failure(answer, where)
        return answer

    def write(
        self,
        where: Path,
        *arguments: str,
        accept: tuple[int, ...] | None = (0,),
        timeout: float = 300,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        patience: float = 10,
    ) -> Answer:
        """Run git in *where*; while another git holds a lock, try again for *patience* seconds.

        With ``accept=None`` every status is returned.
        """
        until = time.monotonic() + patience
        pause = 0.02
        while True:
            answer = self._run(where, arguments, timeout, stdin, environment or {}, _LIMIT)
            if accept is None or answer.status in accept:
                return answer
            if not busy(answer) or time.monotonic() + pause > until:
                raise failure(answer, where)
            self.pause(pause)
            pause = min(pause * 2, 0.5)

    def pause(self, seconds: float) -> None:
        """Wait; raise ``Timeout`` if the operation is stopped meanwhile."""
        if self.stop.wait(seconds):
            raise CcorchError(ErrorCode.TIMEOUT, "the git operation was called off")

    def _run(
        self,
        where: Path,
        arguments: tuple[str, ...],
        timeout: float,
        stdin: bytes,
        environment: Mapping[str, str],
        limit: int,
    ) -> Answer:
        if self.stop.is_set():
            raise CcorchError(ErrorCode.TIMEOUT, "the git operation was called off")
        with contextlib.ExitStack() as stack:
            source: BinaryIO | None = None
            if stdin:
                source = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
                source.write(stdin)
                source.seek(0)
            try:
                process: Any = self._git.execute(
                    ["git", "-C", str(where), *_CONFIG, *arguments],
                    istream=source,
                    as_process=True,
                    env={**_ENVIRONMENT, **self._caller, **environment},
                    start_new_session=True,  # no terminal to prompt on, and one group to end
                )
            except GitCommandNotFound as error:
                raise CcorchError(
                    ErrorCode.MISSING_PROGRAM, "git is not installed", "Install it, for example: sudo apt install git"
                ) from error
            except OSError as error:
                raise CcorchError(ErrorCode.GIT_FAILED, f"git could not be started: {error.strerror}") from error
            return _Reading(process, limit).until_end(timeout, self.stop, where, arguments[0])


class _Reading:
    """Reads both outputs of a process until it ends, too much comes, it takes too long, or it is called off."""

    def __init__(self, process: Any, limit: int) -> None:
        self._keep_alive = process  # its finaliser ends the process
        self._popen: subprocess.Popen[bytes] = process.proc
        self._limit = limit
        self._parts: dict[str, list[bytes]] = {"output": [], "errors": []}
        self._sizes = {"output": 0, "errors": 0}

    def until_end(self, timeout: float, stop: threading.Event, where: Path, verb: str) -> Answer:
        popen = self._popen
        assert popen.stdout is not None
        assert popen.stderr is not None
        pidfd = os.pidfd_open(popen.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(popen.stdout, selectors.EVENT_READ, "output")
                selector.register(popen.stderr, selectors.EVENT_READ, "errors")
                selector.register(pidfd, selectors.EVENT_READ, "end")
                outcome = self._follow(selector, time.monotonic() + timeout, stop)
            if outcome != "end":
                self._end(pidfd)
            status = popen.wait()
        finally:
            os.close(pidfd)
            popen.stdout.close()
            popen.stderr.close()
        if outcome == "late":
            raise CcorchError(
                ErrorCode.TIMEOUT,
                f"git {verb} in {where} took longer than {timeout:g} s and was ended",
                "Something it runs may hang: a hook, a filter, or a slow disk.",
            )
        if outcome == "stopped":
            raise CcorchError(ErrorCode.TIMEOUT, "the git operation was called off")
        errors = b"".join(self._parts["errors"]).decode("utf-8", "replace")
        return Answer(status, b"".join(self._parts["output"]), errors, outcome == "full")

    def _follow(self, selector: selectors.BaseSelector, deadline: float, stop: threading.Event) -> str:
        ended = False
        while True:
            now = time.monotonic()
            if now >= deadline:
                # A background process of a hook may hold the pipes open for ever: git itself has ended.
                return "end" if ended else "late"
            if stop.is_set() and not ended:
                return "stopped"
            for key, _ in selector.select(min(_SLICE, deadline - now)):
                if key.data == "end":
                    ended = True
                    deadline = time.monotonic() + _DRAIN_WAIT
                    selector.unregister(key.fileobj)
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif not self._take(key.data, chunk):
                    return "full"
            if ended and not selector.get_map():
                return "end"

    def _take(self, stream: str, chunk: bytes) -> bool:
        room = self._limit - self._sizes[stream]
        self._parts[stream].append(chunk[:room])
        self._sizes[stream] += min(len(chunk), room)
        return len(chunk) <= room

    def _end(self, pidfd: int) -> None:
        """End the process group; SIGTERM first, because git then takes its lock files away."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with selectors.DefaultSelector() as selector:
                selector.register(pidfd, selectors.EVENT_READ)
                if selector.select(_TERM_WAIT):
                    break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)


_BUSY: Final = re.compile(r"(?:[Uu]nable to create|could not lock|cannot lock|unable to lock).*File exists")
_LOCK_FILE: Final = re.compile(r"'([^']+\.lock)'")
_OWNED: Final = re.compile(r"dubious ownership in repository at '([^']+)'")
_SPACE: Final = ("No space left on device", "Disk quota exceeded")
_SECRET: Final = re.compile(r"(?<=://)[^/@\s]+@")


def busy(answer: Answer) -> bool:
    """Return whether git failed because another git process holds a lock."""
    return answer.status != 0 and bool(_BUSY.search(answer.errors))


def reason(errors: str) -> str:
    """Return the line of git's error output that says what is wrong, without credentials in URLs."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for prefix in ("fatal: ", "error: "):
        for line in lines:
            if line.startswith(prefix):
                return _SECRET.sub("", line.removeprefix(prefix))
    return _SECRET.sub("", lines[-1]) if lines else "git gave no reason"


def failure(answer: Answer, where: Path) -> CcorchError:
    """Return the error that a failed git process means."""
    errors = answer.errors
    why = reason(errors)
    if any(words in errors for words in _SPACE):
        return CcorchError(ErrorCode.NO_SPACE, f"no space is left for {where}", "Free some disk space, then try again.")
    if owned := _OWNED.search(errors):
        return CcorchError(
            ErrorCode.NOT_ALLOWED,
            f"{owned[1]} belongs to another user, so git refuses to work in it",
            f"If you trust it: git config --global --add safe.directory {owned[1]}",
        )
    if "not a git repository" in errors:
        return CcorchError(
            ErrorCode.NOT_A_REPOSITORY, f"{where} is in no git repository", f"Make it one: git -C {where} init"
        )
    if busy(answer):
        lock = _LOCK_FILE.search(errors)
        return CcorchError(
            ErrorCode.GIT_FAILED,
            f"Another git process is at work in {where}: {why}",
            f"If none is running, one has died: remove {lock[1]}" if lock else "Try again when it has ended.",
        )
    if "tell me who you are" in errors or "empty ident name" in errors or "auto-detect email" in errors:
        return CcorchError(
            ErrorCode.GIT_FAILED,
            "git does not know your name, so it cannot commit",
            "git config --global user.name NAME; git config --global user.email ADDRESS",
        )
    code = -answer.status
    if code > 0 and not errors.strip():
        why = f"it was ended by signal {code}"
    hint = "Look at the folder's owner and permissions." if "Permission denied" in errors else ""
    return CcorchError(ErrorCode.GIT_FAILED, f"git failed in {where}: {why}", hint)
