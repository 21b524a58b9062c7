# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may stand in the argument vector of an agent."""

from __future__ import annotations

from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

_LIMIT: Final = 120 * 1024
"""Bytes. Linux takes 128 KiB in one argument (MAX_ARG_STRLEN, execve(2)), a few of which go into words around it."""


def prompt_argument(prompt: str) -> str:
    """Return *prompt* if a program can be given it as an argument; raise ``InvalidArgument`` otherwise."""
    size = len(prompt.encode("utf-8", "surrogateescape"))
    if size > _LIMIT:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            f"the prompt has {size} bytes, and an agent can be started with at most {_LIMIT}",
            "Put the text into a file of the worktree and name that, or send it once the agent is idle.",
        )
    if "\0" in prompt:
        raise CcorchError(ErrorCode.INVALID_ARGUMENT, "a prompt cannot hold a NUL character")
    return prompt
