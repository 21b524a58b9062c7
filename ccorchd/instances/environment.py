# SPDX-License-Identifier: LGPL-2.1-or-later
"""The environment of an agent: the user's own, put together from an allowlist.

Nothing that systemd gave the daemon may reach an agent (``INVOCATION_ID``, ``NOTIFY_SOCKET``, ``LISTEN_FDS``,
``CREDENTIALS_DIRECTORY`` …): a shell that finds ``NOTIFY_SOCKET`` could report the daemon dead. So the daemon's own
environment is never the base.
"""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
from collections.abc import Iterable, Mapping
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.model import InstanceRecord

CALLER_PATTERNS: Final[tuple[str, ...]] = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_*",
    "TZ",
    "SSH_AUTH_SOCK",
    "SHELL",
    "GNUPGHOME",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "COLORTERM",
    "VIRTUAL_ENV",
    "[Hh][Tt][Tt][Pp]_[Pp][Rr][Oo][Xx][Yy]",
    "[Hh][Tt][Tt][Pp][Ss]_[Pp][Rr][Oo][Xx][Yy]",
    "[Nn][Oo]_[Pp][Rr][Oo][Xx][Yy]",
    "[Aa][Ll][Ll]_[Pp][Rr][Oo][Xx][Yy]",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)
"""What a client may hand over. Values lie in the database, so nothing that is a secret belongs here."""

_NEVER: Final[tuple[str, ...]] = (
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_*",
    "LISTEN_*",
    "MAINPID",
    "MANAGERPID",
    "*_DIRECTORY",
    "SYSTEMD_*",
    "MEMORY_PRESSURE_*",
    "TMUX",
    "TMUX_PANE",
    "CCORCH_*",
    "PYTHON*",
    "COVERAGE_*",
    "DBUS_STARTER_*",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
)

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def from_caller(wanted: Mapping[str, str], extra: Iterable[str]) -> dict[str, str]:
    """Return what of *wanted* an agent may have: :data:`CALLER_PATTERNS` and the setting ``agents.environment``."""
    allowed = caller_patterns(extra)
    return {name: value for name, value in wanted.items() if _matches(name, allowed) and not _matches(name, _NEVER)}


def caller_patterns(extra: Iterable[str]) -> list[str]:
    """Return the names, as fnmatch(3) patterns, of what clients send; *extra* is the setting ``agents.environment``."""
    return [*CALLER_PATTERNS, *extra]


def check_variables(variables: Mapping[str, str], where: str) -> None:
    """Raise ``InvalidArgument`` if *where* (a file, an option) sets a variable that belongs to ccorch or systemd."""
    own = [pattern for pattern in _NEVER if pattern not in ("PYTHON*", "COVERAGE_*")]
    for name in variables:
        if not _VARIABLE.match(name):
            raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"{name!r} in {where} is no name of a variable")
        if _matches(name, own):
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"{where} cannot set {name} for an agent",
                "Variables of systemd, tmux and ccorch are set by them alone.",
            )


def compose(
    instance: InstanceRecord,
    manager: Mapping[str, str],
    project: Mapping[str, str],
    *,
    port_variable: str,
    suffix: str,
) -> dict[str, str]:
    """Return the whole environment of an agent.

    Laid over each other: the user manager's (which holds environment.d(5)), what the caller sent when the instance was
    created or started, what the project names, and ccorch's own.
    """
    user = pwd.getpwuid(os.getuid())
    base = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
    }
    result = {**base, **{name: value for name, value in manager.items() if not _matches(name, _NEVER)}}
    result.update(instance.environment)
    result.update(project)
    local_bin = f"{user.pw_dir}/.local/bin"
    if local_bin not in result["PATH"].split(":"):
        result["PATH"] = f"{local_bin}:{result['PATH']}"
    result.update(
        {
            "CCORCH_INSTANCE": str(instance.address),
            "CCORCH_PROJECT": instance.project,
            "CCORCH_BRANCH": instance.branch,
            "CCORCH_WORKTREE": instance.worktree,
            "CCORCH_REPOSITORY": instance.repository,
            "CCORCH_PORT": str(instance.port),
            port_variable: str(instance.port),
        }
    )
    if suffix:
        result["CCORCH_SUFFIX"] = suffix
    result.pop("DBUS_SESSION_BUS_ADDRESS", None)
    return result
