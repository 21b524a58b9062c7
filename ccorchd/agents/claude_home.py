# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user's Claude Code configuration, of which ccorch sets three flags and nothing else.

Without them Claude Code opens with dialogs (onboarding, trust in the folder, use of an API key) where nobody sits. The
file is the user's: only what is missing is set, under Claude Code's own lock, and a file that cannot be understood is
left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

_LOCK_TIMEOUT: Final = 10.0
_LOCK_STALE: Final = 10.0
"""Seconds after which Claude Code (npm's proper-lockfile) takes over a lock whose time stamp is not renewed."""

_KEY_TAIL: Final = 20
"""How many last characters of an API key Claude Code notes as approved or refused."""


@dataclass(frozen=True, slots=True)
class ClaudeHome:
    """*folder* holds sessions, transcripts and the log-in; *file* is the configuration."""

    folder: Path
    file: Path

    @classmethod
    def find(cls, environment: Mapping[str, str], configured: str = "") -> ClaudeHome:
        """Return where Claude Code looks: *configured*, else CLAUDE_CONFIG_DIR of *environment*, else the user's home.

        Claude Code keeps ``.claude.json`` inside a configured folder, but beside ``~/.claude`` in the home.
        """
        home = Path(environment.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
        chosen = configured or environment.get("CLAUDE_CONFIG_DIR", "")
        if chosen:
            folder = home / chosen[2:] if chosen.startswith("~/") else Path(chosen)
            return cls(folder, folder / ".claude.json")
        return cls(home / ".claude", home / ".claude.json")

    def make_ready(self, *, repository: str, api_key: str = "") -> bool:
        """Set what is missing for a start without dialogs; return whether anything was.

        Trust is noted for the main *repository*, which covers its worktrees. *api_key* is one that the user put into
        the environment: it is approved unless the user has refused it before. Raises ``AgentFailed``.
        """
        try:
            document = self._read()
            if not self._missing(document, repository, api_key):
                return False
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._lock():
                # Once more under the lock: Claude Code or another start may have written in between.
                document = self._read()
                if not self._missing(document, repository, api_key):
                    return False
                self._write(document)
                return True
        except OSError as error:
            raise CcorchError(
                ErrorCode.AGENT_FAILED,
                f"Claude Code's configuration {self.file} cannot be prepared: {error.strerror or error}",
                "Claude Code must be able to write it too: look at its owner and at the free space.",
            ) from error

    def _read(self) -> dict[str, Any]:
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as error:
            raise self._unreadable(str(error)) from error
        if not text.strip():
            return {}
        try:
            document = json.loads(text)
        except ValueError as error:
            raise self._unreadable(str(error)) from error
        if not isinstance(document, dict):
            raise self._unreadable("it holds no JSON object")
        return document

    def _unreadable(self, why: str) -> CcorchError:
        return CcorchError(
            ErrorCode.AGENT_FAILED,
            f"Claude Code's configuration {self.file} is no valid JSON: {why}",
            "ccorch has not touched it. Mend it, or move it away; Claude Code keeps copies in "
            f"{self.folder / 'backups'}.",
        )

    def _missing(self, document: dict[str, Any], repository: str, api_key: str) -> bool:
        """Set in *document* what is missing; return whether anything was."""
        changed = False
        if document.get("hasCompletedOnboarding") is not True:
            document["hasCompletedOnboarding"] = changed = True
        projects = self._part(document, "projects")
        # Claude Code names a repository by its real path.
        project = self._part(projects, os.path.realpath(repository), "projects.")
        if project.get("hasTrustDialogAccepted") is not True:
            project["hasTrustDialogAccepted"] = changed = True
        if tail := api_key.strip()[-_KEY_TAIL:]:
            answers = self._part(document, "customApiKeyResponses")
            approved = answers.setdefault("approved", [])
            refused = answers.setdefault("rejected", [])
            if not isinstance(approved, list) or not isinstance(refused, list):
                raise self._unreadable("customApiKeyResponses has an unknown form")
            if tail not in approved and tail not in refused:
                approved.append(tail)
                changed = True
        return changed

    def _part(self, document: dict[str, Any], key: str, prefix: str = "") -> dict[str, Any]:
        part = document.setdefault(key, {})
        if not isinstance(part, dict):
            raise self._unreadable(f"{prefix}{key} is no object")
        return part

    def _write(self, document: dict[str, Any]) -> None:
        target = Path(os.path.realpath(self.file))  # some people link it into a repository of dot files
        try:
            mode = stat.S_IMODE(target.stat().st_mode)
        except FileNotFoundError:
            mode = 0o600
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".claude.json.ccorch-")
        try:
            # A half character (a lone surrogate) has no UTF-8; with this it stays the escape that it was.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                json.dump(document, file, indent=2, ensure_ascii=False)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock that Claude Code takes for its writes: a folder beside the file, made by whoever holds it."""
        lock = Path(os.path.realpath(self.file) + ".lock")
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                lock.mkdir()
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - lock.stat().st_mtime > _LOCK_STALE:
                        lock.rmdir()
                        continue
                if time.monotonic() > deadline:
                    raise CcorchError(
                        ErrorCode.AGENT_FAILED,
                        f"Claude Code's configuration {self.file} has been locked for {_LOCK_TIMEOUT:g} s",
                        f"If no Claude Code is running, remove the folder {lock}",
                    ) from None
                time.sleep(0.02)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.rmdir()
