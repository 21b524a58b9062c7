# SPDX-License-Identifier: LGPL-2.1-or-later
"""The limits an instance gets when nobody names any.

With *T* the host's memory and *n* the setting ``instances.max``::

    MemoryMax  = min(T / 2, max(1 GiB, 2 x 0.8 x T / n))
    MemoryHigh = 90 % of MemoryMax

Four fifths of the memory are shared out, each instance may take twice its share since they seldom peak together, none
less than an agent with a test suite needs, and none more than half the machine. ``instances.memory_share`` replaces the
formula by a percentage of *T*, ``instances.memory_max`` and ``instances.memory_high`` by sizes.
"""

from __future__ import annotations

from typing import Final

from ccorchd.config import Config
from ccorchd.model import Limits, parse_size

_LEAST: Final = 1024**3
_SHARED_OUT: Final = 0.8
_OVERCOMMIT: Final = 2
_HIGH: Final = 0.9


def default_memory_max(total: int, max_instances: int) -> int:
    """Return MemoryMax in bytes for a host with *total* bytes."""
    share = int(_OVERCOMMIT * _SHARED_OUT * total / max_instances)
    return min(total // 2, max(_LEAST, share))


def default_limits(config: Config, total: int) -> Limits:
    """Return the limits of an instance that is created without any; *total* is the host's memory in bytes."""
    share = str(config["instances.memory_share"])
    most = (
        default_memory_max(total, int(config["instances.max"]))
        if share == "auto"
        else parse_size(share, "instances.memory_share", total)
    )
    computed = Limits(
        memory_high=int(most * _HIGH),
        memory_max=most,
        cpu_weight=int(config["instances.cpu_weight"]),
        tasks_max=int(config["instances.tasks_max"]),
    )
    named = {
        "MemoryMax": str(config["instances.memory_max"]),
        "MemoryHigh": str(config["instances.memory_high"]),
        "CPUQuota": str(config["instances.cpu_quota"]),
    }
    return Limits.parse({key: text for key, text in named.items() if text}, computed, total)
