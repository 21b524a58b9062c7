# SPDX-License-Identifier: LGPL-2.1-or-later
"""Telling many listeners inside the daemon that something happened, without the teller knowing them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Broadcast(Generic[T]):
    """Hands each published value to all subscribers, at once and in the order in which they came.

    Subscribers are plain functions called in the publisher's thread (the event loop's, in the daemon); they must not
    block. One that raises is logged with its traceback and breaks neither the publisher nor the others.
    """

    def __init__(self, name: str = "") -> None:
        """*name* says in the log whose subscriber failed."""
        self._name = name
        self._subscribers: dict[object, Callable[[T], None]] = {}

    def subscribe(self, callback: Callable[[T], None]) -> Callable[[], None]:
        """Call *callback* with each value from now on; the returned function ends that, and may be called again."""
        # A token of its own: the same function may subscribe twice, and each subscription ends alone.
        token = object()
        self._subscribers[token] = callback

        def cancel() -> None:
            self._subscribers.pop(token, None)

        return cancel

    def publish(self, value: T) -> None:
        """Hand *value* to everybody who is subscribed now, except those cancelled while this goes on."""
        for token, callback in tuple(self._subscribers.items()):
            if token not in self._subscribers:
                continue
            try:
                callback(value)
            except Exception:
                _log.exception("a subscriber of %s failed", self._name or "a broadcast")

    def __len__(self) -> int:
        return len(self._subscribers)

    def __bool__(self) -> bool:
        # Without this, a broadcast that nobody listens to would look like None to "if broadcast".
        return True
