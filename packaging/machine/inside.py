# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a command inside a machine starts with, the same in each kind of machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

PATH = "/usr/local/bin:/usr/bin:/bin"
ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(user: str, uid: int) -> dict[str, str]:
    """Return the clean environment of a command of *user*: nothing of the caller's but the kind of terminal."""
    variables = {"LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"), "USER": user, "LOGNAME": user}
    variables["SHELL"] = "/bin/bash"
    if uid == 0:
        return variables | {"HOME": "/root", "PATH": ROOT_PATH}
    return variables | {
        "HOME": f"/home/{user}",
        "PATH": PATH,
        "XDG_RUNTIME_DIR": f"/run/user/{uid}",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{uid}/bus",
    }


def command_line(
    command: Sequence[str], *, user: str, uid: int, env: Mapping[str, str] | None, cwd: str, login: bool
) -> list[str]:
    """Return *command* with what makes it run as *user*, in *cwd* (home when empty); root inside executes the result.

    *login* goes through PAM, so that logind opens a session, as ssh does, which ends with the command.
    """
    variables = environment(user, uid) | dict(env or {})
    settings = [f"{key}={value}" for key, value in variables.items()]
    line = ["env", "-i", "-C", cwd or variables["HOME"], *settings, *command]
    if login:
        return ["su", "--login", user, "--command", shlex.join(line)]
    if uid:
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", *line]
    return line
