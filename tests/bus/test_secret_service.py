# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets in a real Secret Service (gnome-keyring) on a private bus: used when open, never asked to open."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import Bus
from ccorchd.host.secrets import SECRETS_FILE, Secrets

NAME = "anthropic-api-key"
VALUE = "made-up-value-of-a-key"
TIMEOUT = 20.0


class Desktop:
    """A user's session with a keyring that can be locked and unlocked."""

    def __init__(self, bus: Bus, root: Path) -> None:
        self.bus = bus
        self.root = root
        self._daemon: asyncio.subprocess.Process | None = None

    def secrets(self) -> Secrets:
        return Secrets(self.root / "state", self.root / "config", bus=self.bus, environment={})

    @property
    def file(self) -> Path:
        return self.root / "state" / SECRETS_FILE

    async def start_keyring(self) -> None:
        owned = asyncio.Event()
        subscription = self.bus.on_signal(
            sender="org.freedesktop.DBus",
            interface="org.freedesktop.DBus",
            member="NameOwnerChanged",
            callback=lambda message: owned.set() if message.body[0] == "org.freedesktop.secrets" else None,
        )
        with tempfile.TemporaryFile() as password:
            password.write(b"made-up")
            password.seek(0)
            self._daemon = await asyncio.create_subprocess_exec(
                "gnome-keyring-daemon",
                "--foreground",
                "--unlock",
                "--components=secrets",
                f"--control-directory={self.root}/control",
                stdin=password,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.root),
                    "XDG_RUNTIME_DIR": str(self.root),
                    "DBUS_SESSION_BUS_ADDRESS": os.environ["DBUS_SESSION_BUS_ADDRESS"],
                    "LC_ALL": "C.UTF-8",
                },
            )
        async with asyncio.timeout(TIMEOUT):
            await owned.wait()
        subscription.cancel()

    async def lock(self) -> None:
        await self.bus.call(
            "org.freedesktop.secrets",
            "/org/freedesktop/secrets",
            "org.freedesktop.Secret.Service",
            "Lock",
            "ao",
            ["/org/freedesktop/secrets/aliases/default"],
        )

    async def close(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            async with asyncio.timeout(TIMEOUT):
                await self._daemon.wait()


@pytest.fixture
async def desktop(dbus_session: str, tmp_path: Path) -> AsyncIterator[Desktop]:
    if shutil.which("gnome-keyring-daemon") is None:
        pytest.skip("gnome-keyring is not installed")
    bus = await Bus.connect(dbus_session)
    desktop = Desktop(bus, tmp_path)
    try:
        yield desktop
    finally:
        await desktop.close()
        await bus.close()


async def test_open_keyring_is_used(desktop: Desktop) -> None:
    await desktop.start_keyring()
    secrets = desktop.secrets()
    assert await secrets.place() == "the desktop's keyring"
    await secrets.set(NAME, VALUE)
    assert not desktop.file.exists()
    assert await desktop.secrets().get(NAME) == VALUE
    assert await secrets.names() == [NAME]
    assert await secrets.remove(NAME) is True
    assert await secrets.remove(NAME) is False
    assert await secrets.names() == []


async def test_without_a_keyring_the_file_is_used_and_none_is_started(desktop: Desktop) -> None:
    secrets = desktop.secrets()
    await secrets.set(NAME, VALUE)
    assert desktop.file.exists()
    owned = await desktop.bus.call(
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "NameHasOwner",
        "s",
        "org.freedesktop.secrets",
    )
    assert owned == [False]


async def test_locked_keyring_is_not_asked_to_open(desktop: Desktop) -> None:
    await desktop.start_keyring()
    secrets = desktop.secrets()
    await secrets.set(NAME, VALUE)
    await desktop.lock()
    assert await secrets.names() == [NAME]
    for call in (secrets.get(NAME), secrets.remove(NAME), secrets.set(NAME, "new")):
        with pytest.raises(CcorchError) as caught:
            await call
        assert caught.value.code is ErrorCode.NOT_READY
    await secrets.set("other", "x")
    assert desktop.file.exists()
    assert await secrets.get("other") == "x"
    assert await secrets.names() == [NAME, "other"]


async def test_newest_copy_counts(desktop: Desktop) -> None:
    await desktop.secrets().set(NAME, "old")
    await desktop.start_keyring()
    secrets = desktop.secrets()
    assert await secrets.get(NAME) == "old"
    await secrets.set(NAME, VALUE)
    assert await secrets.get(NAME) == VALUE
    await desktop.lock()
    with pytest.raises(CcorchError):
        await secrets.get(NAME)  # and not "old"
