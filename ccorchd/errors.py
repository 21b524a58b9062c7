# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one exception type of ccorch: a code, a sentence and a hint. Each face renders it in one place."""

from __future__ import annotations

from ccorchd.contract import ErrorCode


class CcorchError(Exception):
    """Something a person can act on.

    *code* is the machine's word for it, *message* one sentence that names the thing and says what is wrong, *hint*
    (optional) what to do about it.
    """

    def __init__(self, code: ErrorCode, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
