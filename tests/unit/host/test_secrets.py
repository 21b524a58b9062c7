# SPDX-License-Identifier: LGPL-2.1-or-later
"""Secrets in the encrypted file: sealed, closed to others, bound to their key, silent in errors."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.secrets import CREDENTIAL, KEY_FILE, SECRETS_FILE, Secrets

NAME = "anthropic-api-key"
VALUE = "made-up-value-of-a-key"


class Place:
    """An installation's folders, of which any number of Secrets can be opened one after another."""

    def __init__(self, root: Path) -> None:
        self.state, self.config, self.credentials = root / "state", root / "config", root / "credentials"
        self.environment: dict[str, str] = {}

    def open(self, service: str = "ccorch") -> Secrets:
        return Secrets(self.state, self.config, service=service, environment=self.environment)

    def give_credential(self, key: bytes) -> None:
        self.credentials.mkdir(exist_ok=True)
        (self.credentials / CREDENTIAL).write_bytes(key)
        self.environment["CREDENTIALS_DIRECTORY"] = str(self.credentials)

    @property
    def file(self) -> Path:
        return self.state / SECRETS_FILE

    @property
    def key_file(self) -> Path:
        return self.config / KEY_FILE


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def refused(place: Place, *, name: str = NAME) -> CcorchError:
    with pytest.raises(CcorchError) as caught:
        await place.open().get(name)
    assert VALUE not in str(caught.value) + caught.value.hint
    return caught.value


async def test_what_is_set_is_there_for_the_next_daemon(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    await place.open().set("jira.token", "zwei\nZeilen ☂")
    secrets = place.open()
    assert await secrets.names() == [NAME, "jira.token"]
    assert await secrets.get(NAME) == VALUE
    assert await secrets.get("jira.token") == "zwei\nZeilen ☂"
    assert await secrets.get("other") is None


async def test_nothing_is_made_before_something_is_stored(place: Place) -> None:
    secrets = place.open()
    assert await secrets.names() == []
    assert await secrets.get(NAME) is None
    assert await secrets.remove(NAME) is False
    assert not place.state.exists()
    assert not place.config.exists()


async def test_files_are_sealed_and_closed_to_others(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    for file in (place.file, place.key_file):
        assert file.stat().st_mode & 0o777 == 0o600
    sealed = place.file.read_bytes()
    assert VALUE.encode() not in sealed
    assert NAME.encode() not in sealed
    assert VALUE.encode() not in base64.b64decode(json.loads(sealed)["data"])
    assert sorted(path.name for path in place.state.iterdir()) == [SECRETS_FILE]


async def test_each_write_has_its_own_nonce(place: Place) -> None:
    nonces = set()
    for _ in range(3):
        await place.open().set(NAME, VALUE)
        nonces.add(json.loads(place.file.read_text())["nonce"])
    assert len(nonces) == 3


async def test_remove(place: Place) -> None:
    secrets = place.open()
    await secrets.set(NAME, VALUE)
    assert await secrets.remove(NAME) is True
    assert await secrets.remove(NAME) is False
    assert await place.open().get(NAME) is None


async def test_installations_do_not_see_each_other(place: Place) -> None:
    await place.open("ccorch").set(NAME, VALUE)
    other = place.open("ccorch_run")
    assert await other.names() == []
    assert await other.remove(NAME) is False


async def test_credential_is_the_key_where_there_is_one(place: Place) -> None:
    place.give_credential(os.urandom(32))
    await place.open().set(NAME, VALUE)
    assert not place.key_file.exists()
    assert await place.open().get(NAME) == VALUE
    assert "credential" in await place.open().place()
    place.environment.clear()
    error = await refused(place)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert "key" in error.message


async def test_file_moves_to_the_credential_at_the_next_change(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    assert str(place.key_file) in await place.open().place()
    place.give_credential(os.urandom(32))
    assert await place.open().get(NAME) == VALUE
    await place.open().set("other", "x")
    place.key_file.unlink()
    assert await place.open().get(NAME) == VALUE


async def test_short_credential_is_refused(place: Place) -> None:
    place.give_credential(b"short")
    with pytest.raises(CcorchError, match="too short"):
        await place.open().set(NAME, VALUE)


async def test_foreign_key_opens_nothing(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.key_file.write_bytes(base64.b64encode(os.urandom(32)))
    assert (await refused(place)).code is ErrorCode.STORAGE_FAILED
    with pytest.raises(CcorchError):
        await place.open().set("other", "x")  # would lose what is in there


async def test_damaged_key_file_is_told(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    os.truncate(place.key_file, 15)
    error = await refused(place)
    assert error.code is ErrorCode.STORAGE_FAILED
    assert "is damaged" in error.message
    assert "backup" in error.hint


async def test_a_key_file_that_is_a_link_is_refused(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.key_file.rename(place.key_file.with_suffix(".elsewhere"))
    place.key_file.symlink_to(place.key_file.with_suffix(".elsewhere"))
    assert "cannot be read" in (await refused(place)).message


async def test_a_credential_and_a_file_that_cannot_be_read(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.give_credential(b"x" * 32)
    (place.credentials / CREDENTIAL).unlink()
    assert await place.open().get(NAME) == VALUE, "a credential that is not there is none"
    (place.credentials / CREDENTIAL).mkdir()
    assert "the credential" in (await refused(place)).message
    place.file.unlink()
    place.file.mkdir()
    assert f"{place.file} cannot be read" in (await refused(place)).message


async def test_open_key_file_is_refused(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.key_file.chmod(0o644)
    assert "chmod 600" in (await refused(place)).hint


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sealed: {**sealed, "data": base64.b64encode(b"\0" * 64).decode()},
        lambda sealed: {**sealed, "nonce": base64.b64encode(b"\0" * 12).decode()},
        lambda sealed: {**sealed, "nonce": ""},
        lambda sealed: {"version": 1},
        lambda sealed: [],
    ],
    ids=["data", "nonce", "no-nonce", "keys", "list"],
)
async def test_damage_is_told(place: Place, spoil: object) -> None:
    await place.open().set(NAME, VALUE)
    assert callable(spoil)
    place.file.write_text(json.dumps(spoil(json.loads(place.file.read_text()))))
    assert "damaged" in (await refused(place)).message


async def test_torn_file_is_told(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.file.write_bytes(place.file.read_bytes()[:40])
    assert "damaged" in (await refused(place)).message


async def test_later_version_is_refused(place: Place) -> None:
    await place.open().set(NAME, VALUE)
    place.file.write_text(json.dumps({**json.loads(place.file.read_text()), "version": 2}))
    assert "later version" in (await refused(place)).message


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "../x", "a b", "x" * 65, "a\n"])
async def test_unfit_names(place: Place, name: str) -> None:
    for call in (place.open().get(name), place.open().set(name, VALUE), place.open().remove(name)):
        with pytest.raises(CcorchError) as caught:
            await call
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 65537])
async def test_unfit_values(place: Place, value: str) -> None:
    with pytest.raises(CcorchError) as caught:
        await place.open().set(NAME, value)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_unwritable_folder_is_told(place: Place) -> None:
    place.config.parent.mkdir(exist_ok=True)
    place.config.write_text("a file where a folder should be")
    with pytest.raises(CcorchError) as caught:
        await place.open().set(NAME, VALUE)
    assert caught.value.code is ErrorCode.STORAGE_FAILED
    assert VALUE not in str(caught.value)


async def test_variables_of_keyring_change_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYRING_PROPERTY__FILE", str(place.state / "elsewhere"))
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    await place.open().set(NAME, VALUE)
    assert place.file.exists()
