# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import pytest

from ccorchd.config import Config
from ccorchd.limits import default_limits, default_memory_max

GIB = 1024**3


@pytest.mark.parametrize(
    ("total", "instances", "expected"),
    [
        (2 * GIB, 10, GIB),  # never more than half the machine
        (8 * GIB, 10, int(1.28 * GIB)),
        (64 * GIB, 10, int(10.24 * GIB)),
        (64 * GIB, 100, int(1.024 * GIB)),
        (64 * GIB, 1000, GIB),  # never less than an agent with a test suite needs
        (64 * GIB, 1, 32 * GIB),
    ],
)
def test_formula_is_as_documented(total: int, instances: int, expected: int) -> None:
    assert default_memory_max(total, instances) == pytest.approx(expected, rel=1e-6)


def test_settings_replace_the_formula() -> None:
    config = Config()
    limits = default_limits(config, 64 * GIB)
    assert limits.memory_max == default_memory_max(64 * GIB, 10)
    assert limits.memory_high == int(limits.memory_max * 0.9)
    assert limits.tasks_max == 1024
    assert limits.cpu_weight == 100
    config.set("instances.memory_share", "25%", "test")
    assert default_limits(config, 64 * GIB).memory_max == 16 * GIB
    config.set("instances.memory_max", "4G", "test")
    config.set("instances.cpu_quota", "150%", "test")
    limits = default_limits(config, 64 * GIB)
    assert limits.memory_max == 4 * GIB
    assert limits.memory_high == 4 * GIB * 9 // 10
    assert limits.cpu_quota_percent == 150
