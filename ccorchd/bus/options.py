# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading ``a{sv}`` arguments: every key known, every value of its type, or an error that names the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import Variant


class Options:
    """The options of one call. Each getter returns the default for a key that was not given."""

    def __init__(self, given: Mapping[str, Variant], signatures: Mapping[str, str]) -> None:
        """Raise ``InvalidArgument`` for a key that *signatures* does not have, or a value of another signature."""
        for key, value in given.items():
            if key not in signatures:
                near = difflib.get_close_matches(key, signatures, n=1)
                raise CcorchError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"{key!r} is no option of this call",
                    f"Did you mean {near[0]!r}?" if near else f"Options are: {', '.join(signatures) or 'none'}.",
                )
            if value.signature != signatures[key]:
                raise CcorchError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"the option {key!r} has the D-Bus type {value.signature!r} and should have {signatures[key]!r}",
                )
        self._values: dict[str, Any] = {key: value.value for key, value in given.items()}

    def text(self, key: str) -> str:
        return str(self._values.get(key, ""))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self._values.get(key, default))

    def number(self, key: str, default: int = 0) -> int:
        return int(self._values.get(key, default))

    def mapping(self, key: str) -> dict[str, str]:
        return dict(self._values.get(key, {}))

    def texts(self, key: str) -> list[str]:
        return list(self._values.get(key, []))
