# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from collections.abc import Callable

import pytest

from ccorchd.events import Broadcast


def test_everybody_hears_everything_in_order() -> None:
    broadcast: Broadcast[int] = Broadcast()
    heard: list[tuple[str, int]] = []
    broadcast.subscribe(lambda value: heard.append(("a", value)))
    broadcast.subscribe(lambda value: heard.append(("b", value)))
    broadcast.publish(1)
    broadcast.publish(2)
    assert heard == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_cancel_ends_one_subscription_of_the_same_function() -> None:
    broadcast: Broadcast[int] = Broadcast()
    heard: list[int] = []
    cancel = broadcast.subscribe(heard.append)
    broadcast.subscribe(heard.append)
    cancel()
    cancel()
    broadcast.publish(1)
    assert heard == [1]
    assert len(broadcast) == 1


def test_a_failing_subscriber_is_logged_and_breaks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    broadcast: Broadcast[int] = Broadcast("changes")
    heard: list[int] = []

    def fail(value: int) -> None:
        raise RuntimeError("no")

    broadcast.subscribe(fail)
    broadcast.subscribe(heard.append)
    broadcast.publish(1)
    assert heard == [1]
    assert "a subscriber of changes failed" in caplog.text
    assert "RuntimeError: no" in caplog.text


def test_subscribing_and_cancelling_while_publishing() -> None:
    broadcast: Broadcast[int] = Broadcast()
    heard: list[str] = []
    cancels: list[Callable[[], None]] = []

    def first(value: int) -> None:
        heard.append(f"first {value}")
        cancels[1]()
        broadcast.subscribe(lambda late: heard.append(f"late {late}"))

    cancels.append(broadcast.subscribe(first))
    cancels.append(broadcast.subscribe(lambda value: heard.append(f"second {value}")))
    broadcast.publish(1)
    assert heard == ["first 1"]
    cancels[0]()
    broadcast.publish(2)
    assert heard == ["first 1", "late 2"]


def test_a_broadcast_without_listeners_is_still_true() -> None:
    broadcast: Broadcast[int] = Broadcast()
    broadcast.publish(1)
    assert broadcast
    assert len(broadcast) == 0
