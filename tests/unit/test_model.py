# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names, addresses, sizes and limits: what is taken, and the words in which the rest is refused."""

from __future__ import annotations

import pytest

from ccorchd.contract import LIMITS, ErrorCode, Naming
from ccorchd.errors import CcorchError
from ccorchd.model import Address, Limits, check_name, parse_size

GIB = 1024**3


@pytest.mark.parametrize("name", ["a", "0", "fix-1", "a--b", "a" * 40, "1-2"])
def test_good_names(name: str) -> None:
    assert check_name(name, "an instance") == name


@pytest.mark.parametrize(
    "name", ["", "-", "-a", "a-", "A", "a.b", "a/b", "a_b", "a b", "ä", "a" * 41, "a\n", "\na", "..", "a\0", "٣"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(CcorchError, match="cannot be the name of an instance") as caught:
        check_name(name, "an instance")
    assert caught.value.code is ErrorCode.INVALID_NAME
    assert "1 to 40" in caught.value.hint


def test_no_two_addresses_share_a_unit() -> None:
    addresses = {
        (project, name) for project in ("a", "a-b", "a-b-c", "b", "ccorch") for name in ("a", "b", "b-c", "c", "a-b")
    }
    units = {Naming().scope(project, name) for project, name in addresses}
    assert len(units) == len(addresses)
    # systemd.unit(5): at most 255 bytes, also for the longest names and suffix.
    assert len(Naming("x" * 16).scope("p" * 40, "n" * 40)) <= 255


def test_addresses() -> None:
    address = Address.parse("web-shop/fix-1")
    assert (address.project, address.name, str(address)) == ("web-shop", "fix-1", "web-shop/fix-1")
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "a", "/", "a/", "/a", "a/b/c", "A/b", "a/b ", "../x"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(CcorchError) as caught:
        Address.parse(text)
    assert caught.value.code is ErrorCode.INVALID_NAME
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1K", 1024),
        ("1.5G", 3 * GIB // 2),
        ("2g", 2 * GIB),
        ("2GB", 2 * GIB),
        ("2GiB", 2 * GIB),
        (" 3 M ", 3 * 1024**2),
        ("40%", 4 * GIB),
        ("12.5%", 10 * GIB // 8),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "MemoryMax", 10 * GIB) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "1X", "1 2", "%", "1.G", "0x10", "1e9", "nan", "inf", "1G2", "9T9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(CcorchError) as caught:
        parse_size(text, "MemoryMax", 10 * GIB)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.message.startswith("MemoryMax=")


def test_numbers_beyond_all_bounds_are_refused_in_words_too() -> None:
    for text in ("9" * 500, "9" * 500 + "%", "99999999T"):
        with pytest.raises(CcorchError, match="MemoryMax="):
            parse_size(text, "MemoryMax", 10 * GIB)
    with pytest.raises(CcorchError, match="TasksMax="):
        Limits.parse({"TasksMax": "9" * 5000}, Limits(), GIB)


def test_limits_are_laid_over_the_defaults() -> None:
    defaults = Limits(memory_high=4 * GIB, memory_max=5 * GIB)
    assert Limits.parse({}, defaults, 16 * GIB) == defaults
    assert Limits.parse({"MemoryMax": "50%", "MemoryHigh": "2G"}, defaults, 16 * GIB) == Limits(2 * GIB, 8 * GIB)
    assert Limits.parse({"CPUQuota": "150%", "CPUWeight": "7", "TasksMax": "99"}, defaults, GIB) == Limits(
        4 * GIB, 5 * GIB, 150.0, 7, 99
    )
    none = Limits.parse(dict.fromkeys(("MemoryHigh", "MemoryMax", "CPUQuota", "TasksMax"), "infinity"), defaults, GIB)
    assert none == Limits(None, None, None, 100, None)


def test_memory_high_follows_a_smaller_memory_max() -> None:
    defaults = Limits(memory_high=4 * GIB, memory_max=5 * GIB)
    limits = Limits.parse({"MemoryMax": "2G"}, defaults, 16 * GIB)
    assert limits.memory_max == 2 * GIB
    assert limits.memory_high is not None
    assert GIB < limits.memory_high < 2 * GIB
    with pytest.raises(CcorchError, match="is above MemoryMax"):
        Limits.parse({"MemoryHigh": "3G", "MemoryMax": "2G"}, defaults, 16 * GIB)
    with pytest.raises(CcorchError, match="is above MemoryMax"):
        Limits.parse({"MemoryHigh": "6G"}, defaults, 16 * GIB)


def test_limits_as_strings_are_read_back() -> None:
    for limits in (Limits(), Limits(GIB, 2 * GIB, 12.5, 1, 16), Limits(None, 2 * GIB, 200.0, 10_000, None)):
        strings = limits.strings()
        assert tuple(strings) == LIMITS
        assert Limits.parse(strings, Limits(GIB, GIB), 16 * GIB) == limits


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("MemoryMax", "lots"),
        ("MemoryMax", "1M"),
        ("MemoryMax", "99999999T"),
        ("MemoryHigh", "0"),
        ("CPUQuota", "2"),
        ("CPUQuota", "0%"),
        ("CPUQuota", "9999999%"),
        ("CPUWeight", "0"),
        ("CPUWeight", "10001"),
        ("CPUWeight", "infinity"),
        ("TasksMax", "5"),
        ("TasksMax", "-1"),
        ("TasksMax", "²"),
        ("IOWeight", "5"),
        ("memorymax", "1G"),
    ],
)
def test_bad_limits_name_the_limit(key: str, text: str) -> None:
    with pytest.raises(CcorchError) as caught:
        Limits.parse({key: text}, Limits(), 16 * GIB)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert key in caught.value.message
    assert caught.value.hint
