# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries as they arrive at a journald socket, the limit of each instance, and the catalog."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccorchd import projectfile
from ccorchd.host.journal import MESSAGE_IDS, Journal, JournalHandler
from ccorchd.model import Event
from ccorchd.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[3]
CATALOG = ROOT / "units/catalog/ccorch.catalog"


class Journald:
    """The receiving end: parses datagrams as the protocol says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                data = self._socket.recv(1 << 20)
            except BlockingIOError:
                return found
            found.append(self._parse(data))

    @staticmethod
    def _parse(data: bytes) -> dict[str, str]:
        entry = {}
        while data:
            line, _, rest = data.partition(b"\n")
            key, equals, value = line.partition(b"=")
            if equals:
                data = rest
            else:
                size = int.from_bytes(rest[:8], "little")
                value, data = rest[8 : 8 + size], rest[8 + size :]
                assert data[:1] == b"\n"
                data = data[1:]
            entry[key.decode()] = value.decode()
        return entry

    def close(self) -> None:
        self._socket.close()
        self.path.unlink()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    receiver = Journald(tmp_path / "socket")
    yield receiver
    receiver.close()


@pytest.fixture
def journal(journald: Journald) -> Iterator[Journal]:
    sender = Journal(path=str(journald.path))
    yield sender
    sender.close()


def test_an_entry(journal: Journal, journald: Journald) -> None:
    journal.send("grüß", priority=4, message_id="0" * 32, unit="ccorch-shop.one.scope", CCORCH_INSTANCE="shop/one")
    assert journald.entries() == [
        {
            "MESSAGE": "grüß",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "ccorchd",
            "MESSAGE_ID": "0" * 32,
            "USER_UNIT": "ccorch-shop.one.scope",
            "CCORCH_INSTANCE": "shop/one",
        }
    ]


def test_no_value_can_forge_a_field(journal: Journal, journald: Journald) -> None:
    journal.send("one\nPRIORITY=0", CCORCH_DATA="x\n_UID=0\n", **{"_UID": "0", "lower": "x", "A=B": "x"})
    [entry] = journald.entries()
    assert entry["MESSAGE"] == "one\nPRIORITY=0"
    assert entry["PRIORITY"] == "6"
    assert entry["CCORCH_DATA"] == "x\n_UID=0\n"
    assert not {"_UID", "lower", "A=B", "A"} & entry.keys()


def test_a_message_is_printable(journal: Journal, journald: Journald) -> None:
    journal.send("\x1b[1;31mred\x1b[0m \x1b]0;title\x07and\x00\x08\ttab \udc80\n")
    assert journald.entries()[0]["MESSAGE"] == "red and\ttab ?"


def test_a_long_value_is_cut(journal: Journal, journald: Journald) -> None:
    journal.send("ü" * 1_000_000, CCORCH_DATA="x" * 100_000)
    [entry] = journald.entries()
    assert entry["MESSAGE"].endswith("ü […]")
    assert len(entry["MESSAGE"].encode()) < 33_000


def test_an_event(journal: Journal, journald: Journald) -> None:
    event = Event("instance.failed", "out of memory", project="shop", instance="one", priority=3, data={"x": 1}, id=7)
    journal.event(event, "ccorch-shop.one.scope")
    journal.event(Event("daemon.started", "hello"))
    first, second = journald.entries()
    assert first["MESSAGE_ID"] == MESSAGE_IDS["instance.failed"]
    assert (first["CCORCH_INSTANCE"], first["CCORCH_EVENT"], first["CCORCH_DATA"]) == ("shop/one", "7", '{"x": 1}')
    assert second["MESSAGE_ID"] == MESSAGE_IDS["daemon.started"]
    assert "CCORCH_INSTANCE" not in second


def test_a_loud_instance_loses_lines_and_the_others_none(journald: Journald) -> None:
    journal = Journal(path=str(journald.path), limit=5, window=3600)
    seen = []
    for number in range(20):
        journal.send(f"loud {number}", unit="loud.scope", CCORCH_INSTANCE="shop/loud")
        journal.send(f"ours {number}")
        seen += journald.entries()  # the kernel queues ten datagrams and no more
    journal.send("quiet", CCORCH_INSTANCE="shop/quiet")
    journal.close()
    seen += journald.entries()
    lines = [entry["MESSAGE"] for entry in seen]
    assert [line for line in lines if line.startswith("loud")] == [f"loud {number}" for number in range(5)]
    assert sum(line.startswith("ours") for line in lines) == 20
    assert "quiet" in lines
    [told] = [entry for entry in seen if entry.get("MESSAGE_ID") == MESSAGE_IDS["journal.dropped"]]
    assert told["MESSAGE"].startswith("15 lines of shop/loud dropped")
    assert (told["USER_UNIT"], told["CCORCH_INSTANCE"]) == ("loud.scope", "shop/loud")


async def test_what_was_dropped_is_told_when_the_window_ends(journald: Journald) -> None:
    journal = Journal(path=str(journald.path), limit=1, window=0.05)
    for _ in range(3):
        journal.send("line", CCORCH_INSTANCE="shop/one")
    seen: list[dict[str, str]] = []
    async with asyncio.timeout(5):
        while len(seen) < 2:
            seen += journald.entries()
            await asyncio.sleep(0.01)
    assert seen[1]["MESSAGE"].startswith("2 lines of shop/one dropped")
    journal.send("line", CCORCH_INSTANCE="shop/one")  # and there is room again
    assert journald.entries()[0]["MESSAGE"] == "line"
    journal.close()


def test_no_limit(journald: Journald) -> None:
    journal = Journal(path=str(journald.path), limit=0)
    for _ in range(500):
        journal.send("line", CCORCH_INSTANCE="shop/one")
        assert len(journald.entries()) == 1
    journal.close()


def test_standard_error_without_journald(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(path=str(tmp_path / "nowhere"))
    journal.send("nobody listens", CCORCH_INSTANCE="shop/one")
    assert capsys.readouterr().err == "ccorchd: nobody listens\n"
    journal.close()


def test_a_journald_that_is_stuck_holds_nobody_up(
    journal: Journal, journald: Journald, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5_000):
        journal.send(f"line {number}")
    assert "line 4999" in capsys.readouterr().err
    assert journald.entries()[0]["MESSAGE"] == "line 0"


def test_a_restarted_journald_is_found_again(journal: Journal, journald: Journald) -> None:
    journal.send("before")
    journald.entries()
    journald.close()
    again = Journald(journald.path)
    journal.send("after")
    assert [entry["MESSAGE"] for entry in again.entries()] == ["after"]
    again.close()
    journald.__init__(journald.path)  # type: ignore[misc]  # for the fixture to close


def test_nothing_raises(journal: Journal, capsys: pytest.CaptureFixture[str]) -> None:
    journal.send("wrong", CCORCH_DATA=7)  # type: ignore[arg-type]
    assert "lost" in capsys.readouterr().err


def test_logging(journal: Journal, journald: Journald) -> None:
    logger, handler = logging.getLogger("ccorchd.test"), JournalHandler(journal)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("it failed: %s", "x")
        logger.warning("careful")
        logger.debug("detail")
    finally:
        logger.removeHandler(handler)
    failed, careful, detail = journald.entries()
    assert failed["MESSAGE"].startswith("it failed: x\nTraceback")
    assert (failed["PRIORITY"], careful["PRIORITY"], detail["PRIORITY"]) == ("3", "4", "7")
    assert careful["LOGGER"] == "ccorchd.test"
    assert careful["CODE_FILE"] == __file__


def test_each_kind_of_event_has_an_id_and_each_id_a_kind() -> None:
    """What the sources call an event: a literal of one of these families that is no key of a settings file."""
    kind = re.compile(r'"((?:agent|instance|setup|daemon|audit|project|journal)\.[a-z_]+)"')
    sources = [path for path in (ROOT / "ccorchd").rglob("*.py") if path.name != "journal.py"]
    written = {found for path in sources for found in kind.findall(path.read_text(encoding="utf-8"))}
    keys = {setting.key for setting in SETTINGS} | set(projectfile.KEYS)
    assert written - keys == set(MESSAGE_IDS) - {"journal.dropped"}


def test_ids_are_random() -> None:
    """As systemd-id128(1) makes them: version 4, so that nobody else has them."""
    assert {uuid.UUID(text).version for text in MESSAGE_IDS.values()} == {4}
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)


def test_the_catalog_explains_each_id_once() -> None:
    found = re.findall(r"^-- ([0-9a-f]{32})\nSubject: \S", CATALOG.read_text(), re.MULTILINE)
    assert sorted(found) == sorted(MESSAGE_IDS.values())
    assert len(set(found)) == len(found)


def test_journalctl_takes_the_catalog(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    command = ["journalctl", f"--root={tmp_path}", "--no-pager"]
    update = subprocess.run([*command, "--update-catalog"], check=True, capture_output=True, text=True)
    assert update.stderr == ""
    listed = subprocess.check_output([*command, "--list-catalog"], text=True)
    assert {line.split()[0] for line in listed.splitlines()} == set(MESSAGE_IDS.values())


def test_a_line_that_cannot_be_formatted_is_told_and_nothing_raises(
    journal: Journal, journald: Journald, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(journal)
    handler.handle(logging.LogRecord("ccorchd.test", logging.INFO, __file__, 1, "%d files", ("many",), None))
    assert "Logging error" in capsys.readouterr().err
    assert journald.entries() == []
