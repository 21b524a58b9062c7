# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks of the names that people give to git: a branch, a revision, a commit id."""

from __future__ import annotations

import re
from typing import Final

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError

_BAD_IN_BRANCH: Final = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_BAD_IN_REVISION: Final = re.compile(r"[\x00-\x1f\x7f]|\.\.|^\s|\s$")
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}\Z")


def check_branch(name: str) -> str:
    """Return *name* if a branch can have it (git-check-ref-format(1)), else raise ``InvalidArgument``."""
    parts = name.split("/")
    bad = (
        not name
        or len(name.encode("utf-8", "surrogateescape")) > 200
        or name.startswith("-")
        or name in ("@", "HEAD")
        or name.endswith(".")
        or _BAD_IN_BRANCH.search(name)
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
        or not _printable(name)
    )
    if bad:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            f"{name!r} cannot be the name of a branch",
            "See git-check-ref-format(1): no spaces, no '..', none of ~^:?*[\\, no '-' in front.",
        )
    return name


def check_revision(text: str) -> str:
    """Return *text* if it may name one commit (gitrevisions(7)), else raise ``InvalidArgument``.

    Whether there is such a commit is for git to say. What would be an option, a range or a search is refused.
    """
    if not text or len(text) > 400 or text[0] in "-:^" or _BAD_IN_REVISION.search(text) or not _printable(text):
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            f"{text!r} does not name a commit",
            "Give a branch, a tag or a commit id, for example main, origin/main or v1.2.",
        )
    return text


def check_commit(text: str) -> str:
    """Return *text* if it is a commit id, whole or at least seven digits of it, else raise ``InvalidArgument``."""
    if not _COMMIT.match(text):
        raise CcorchError(ErrorCode.INVALID_ARGUMENT, f"{text!r} is no commit id")
    return text


def _printable(text: str) -> bool:
    """A name travels over D-Bus, so it must be valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
