# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tokens and keys, through keyring: in the desktop's Secret Service where one is unlocked, else in an encrypted file.

keyring never chooses here: its own choice may prompt on standard input, or open a dialog that nobody sees. A secret may
lie in either place (a desktop is not always there); reading looks into both, writing leaves one copy, the newest.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from keyring.backend import KeyringBackend
from keyring.backends import SecretService
from keyring.errors import KeyringError, PasswordDeleteError

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import Bus, DBusCallError

CREDENTIAL: Final = "ccorch-secrets-key"
"""Name of the systemd credential (LoadCredential=, systemd.exec(5)) that holds the key: any 16 bytes or more."""

KEY_FILE: Final = "secrets.key"
SECRETS_FILE: Final = "secrets.json"

_VALUE_LIMIT: Final = 64 * 1024
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_TIMEOUT: Final = 10.0
_SECRETS_BUS_NAME: Final = "org.freedesktop.secrets"
_SECRETS_PATH: Final = "/org/freedesktop/secrets"

T = TypeVar("T")


class EncryptedFile(KeyringBackend):  # type: ignore[misc]  # keyring has no types in Debian 12
    """A keyring backend: one file in *state_dir*, sealed as a whole with AES-256-GCM.

    The key comes from the credential :data:`CREDENTIAL` in ``$CREDENTIALS_DIRECTORY``, or else from a file of mode 0600
    in *config_dir*, made when the first secret is stored. A file that was sealed with the one is still read with it
    once there is the other, and sealed anew at the next change. All methods block; errors are :class:`CcorchError`.
    """

    priority = 0  # never keyring's own choice

    def __init__(self, state_dir: Path, config_dir: Path, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._file = state_dir / SECRETS_FILE
        self._key_file = config_dir / KEY_FILE
        folder = environment.get("CREDENTIALS_DIRECTORY", "")
        self._credential = Path(folder) / CREDENTIAL if folder.startswith("/") else None
        self._lock = threading.Lock()

    def set_properties_from_env(self) -> None:
        """keyring would let KEYRING_PROPERTY_* change any attribute."""

    def get_password(self, service: str, username: str) -> str | None:
        with self._lock:
            return self._load().get(service, {}).get(username)

    def set_password(self, service: str, username: str, password: str) -> None:
        with self._lock:
            everything = self._load()
            everything.setdefault(service, {})[username] = password
            self._store(everything)

    def delete_password(self, service: str, username: str) -> None:
        with self._lock:
            everything = self._load()
            if username not in everything.get(service, {}):
                raise PasswordDeleteError("no such secret")
            del everything[service][username]
            self._store(everything)

    def usernames(self, service: str) -> list[str]:
        with self._lock:
            return sorted(self._load().get(service, {}))

    def key_source(self) -> str:
        """Say in words where the key of the next write comes from."""
        if self._credential is not None and self._credential.exists():
            return f"a systemd credential ({CREDENTIAL})"
        return f"the key file {self._key_file}"

    # -- the file ----------------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, dict[str, str]]:
        try:
            sealed = json.loads(self._file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _failed(f"{self._file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise _failed(
                f"{self._file} is damaged", "Restore it from a backup, or remove it and store them anew."
            ) from error
        try:
            nonce, data = base64.b64decode(sealed["nonce"]), base64.b64decode(sealed["data"])
            version, key_id = int(sealed["version"]), str(sealed["key"])
        except (KeyError, TypeError, ValueError) as error:
            raise _failed(
                f"{self._file} is damaged", "Restore it from a backup, or remove it and store them anew."
            ) from error
        if version != 1:
            raise _failed(f"{self._file} was written by a later version of ccorch", "Upgrade ccorch.")
        for key in self._keys():
            if _key_id(key) == key_id:
                try:
                    opened = json.loads(AESGCM(key).decrypt(nonce, data, _associated(version, key_id)))
                except (InvalidTag, ValueError) as error:
                    raise _failed(
                        f"{self._file} is damaged", "Restore it from a backup, or remove it and store them anew."
                    ) from error
                assert isinstance(opened, dict)
                return opened
        raise _failed(
            f"the key that {self._file} was sealed with is not here",
            f"It was either the systemd credential {CREDENTIAL} or {self._key_file}. Bring it back, or remove the file "
            "and store the secrets anew.",
        )

    def _store(self, everything: dict[str, dict[str, str]]) -> None:
        key = next(self._keys(), None) or self._new_key()
        key_id, nonce = _key_id(key), os.urandom(12)
        plain = json.dumps(everything).encode()
        sealed = {
            "version": 1,
            "key": key_id,
            "nonce": base64.b64encode(nonce).decode(),
            "data": base64.b64encode(AESGCM(key).encrypt(nonce, plain, _associated(1, key_id))).decode(),
        }
        _write(self._file, json.dumps(sealed).encode() + b"\n")

    # -- the key -----------------------------------------------------------------------------------------------------

    def _keys(self) -> Iterator[bytes]:
        """Yield the keys there are, the one to write with first."""
        if self._credential is not None:
            try:
                material = self._credential.read_bytes()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _failed(f"the credential {CREDENTIAL} cannot be read: {error.strerror}") from error
            else:
                if len(material) < 16:
                    raise _failed(
                        f"the credential {CREDENTIAL} is too short for a key", "Make one with: openssl rand -hex 32"
                    )
                yield _derive(material)
        try:
            descriptor = os.open(self._key_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(f"the key file {self._key_file} cannot be read: {error.strerror}") from error
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
                raise _failed(
                    f"the key file {self._key_file} is open to others", f"Close it with: chmod 600 {self._key_file}"
                )
            material = file.read(4096)
        if len(material) < 16:
            raise _failed(f"the key file {self._key_file} is damaged", "Restore it from a backup.")
        yield _derive(material)

    def _new_key(self) -> bytes:
        material = base64.b64encode(os.urandom(32)) + b"\n"
        _write(self._key_file, material)
        return _derive(material)


class Secrets:
    """The secrets of one installation, by name. Values never appear in errors, logs or representations."""

    def __init__(
        self,
        state_dir: Path,
        config_dir: Path,
        *,
        service: str = "ccorch",
        bus: Bus | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """*service* keeps installations apart in the desktop's keyring; *bus* is the session bus, if there is one."""
        self._service = service
        self._bus = bus
        self._file = EncryptedFile(state_dir, config_dir, environment)
        self._order = asyncio.Lock()

    def rebind(self, bus: Bus) -> None:
        """Look for the desktop's keyring on *bus* from now on."""
        self._bus = bus

    async def get(self, name: str) -> str | None:
        """Return a secret, or None; raise ``NotReady`` if it lies in a keyring that is locked."""
        check_secret_name(name)
        async with self._order:
            if await self._desktop_unlocked():
                value = await self._call(lambda: SecretService.Keyring().get_password(self._service, name))
                if value is not None:
                    return str(value)
            stored = await self._call(lambda: self._file.get_password(self._service, name))
            if stored is None:
                await self._refuse_locked(name)
            return None if stored is None else str(stored)

    async def set(self, name: str, value: str) -> None:
        """Store a secret; raise ``InvalidArgument`` for an unfit name or value, ``NotReady`` as :meth:`get` does."""
        check_secret_name(name)
        if not value or "\0" in value or len(value.encode("utf-8", "replace")) > _VALUE_LIMIT:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT,
                f"the value for the secret {name!r} is empty, too long or no text",
                f"It may have 1 to {_VALUE_LIMIT} bytes.",
            )
        async with self._order:
            if await self._desktop_unlocked():
                await self._call(lambda: SecretService.Keyring().set_password(self._service, name, value))
                await self._call(lambda: _forget(self._file, self._service, name))
            else:
                await self._refuse_locked(name)  # an older copy would come back with the keyring
                await self._call(lambda: self._file.set_password(self._service, name, value))

    async def remove(self, name: str) -> bool:
        """Remove a secret from wherever it lies; return whether there was one. ``NotReady`` as for :meth:`get`."""
        check_secret_name(name)
        async with self._order:
            removed = await self._call(lambda: _forget(self._file, self._service, name))
            if await self._desktop_unlocked():
                removed |= await self._call(lambda: _forget(SecretService.Keyring(), self._service, name))
            else:
                await self._refuse_locked(name)
            return removed

    async def names(self) -> list[str]:
        """Return the names of all secrets, locked ones too."""
        async with self._order:
            stored = await self._call(lambda: self._file.usernames(self._service))
            return sorted({*stored, *await self._desktop_names()})

    async def place(self) -> str:
        """Say in words where a secret would be stored now."""
        if await self._desktop_unlocked():
            return "the desktop's keyring"
        return f"an encrypted file, with {await self._call(self._file.key_source)}"

    # -- the desktop -------------------------------------------------------------------------------------------------

    async def _ask(self, path: str, interface: str, member: str, signature: str, *arguments: object) -> list[Any]:
        assert self._bus is not None
        return await self._bus.call(_SECRETS_BUS_NAME, path, interface, member, signature, *arguments, timeout=_TIMEOUT)

    async def _desktop_running(self) -> bool:
        """Tell whether a Secret Service runs. It is not started: on a server that would leave an odd daemon behind."""
        if self._bus is None:
            return False
        try:
            reply = await self._bus.call(
                "org.freedesktop.DBus",
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "NameHasOwner",
                "s",
                _SECRETS_BUS_NAME,
                timeout=_TIMEOUT,
            )
        except (DBusCallError, CcorchError):
            return False
        return bool(reply[0])

    async def _desktop_unlocked(self) -> bool:
        """Tell whether the desktop's default collection is there and open; asking further would open a dialog."""
        if not hasattr(SecretService, "secretstorage") or not await self._desktop_running():
            return False
        try:
            reply = await self._ask(
                f"{_SECRETS_PATH}/aliases/default",
                "org.freedesktop.DBus.Properties",
                "Get",
                "ss",
                "org.freedesktop.Secret.Collection",
                "Locked",
            )
        except (DBusCallError, CcorchError):
            return False
        return reply[0] is False

    async def _refuse_locked(self, name: str) -> None:
        if name in await self._desktop_names() and not await self._desktop_unlocked():
            raise CcorchError(
                ErrorCode.NOT_READY,
                f"the secret {name!r} lies in the desktop's keyring, which is locked",
                "Unlock it, for example by logging in to the desktop.",
            )

    async def _desktop_names(self) -> frozenset[str]:
        """Return the names in the desktop's keyring, which can be read while it is locked."""
        if not await self._desktop_running():
            return frozenset()
        found = []
        try:
            reply = await self._ask(
                _SECRETS_PATH,
                "org.freedesktop.Secret.Service",
                "SearchItems",
                "a{ss}",
                {"service": self._service, "application": SecretService.Keyring.appid},
            )
            for path in [*reply[0], *reply[1]]:
                attributes = await self._ask(
                    path, "org.freedesktop.DBus.Properties", "Get", "ss", "org.freedesktop.Secret.Item", "Attributes"
                )
                found.append(str(attributes[0].get("username", "")))
        except (DBusCallError, CcorchError):
            return frozenset()
        return frozenset(name for name in found if _NAME.match(name))

    async def _call(self, work: Callable[[], T]) -> T:
        """Run blocking *work* in a thread; keyring's errors become ours, without what they may quote."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await asyncio.to_thread(work)
        except KeyringError as error:
            raise _failed(f"the keyring refused ({type(error).__name__})") from None
        except TimeoutError:
            raise CcorchError(
                ErrorCode.TIMEOUT, f"the keyring did not answer within {_TIMEOUT:g} s", "Is it waiting for a password?"
            ) from None


def check_secret_name(name: str) -> str:
    """Return *name* if it may name a secret, else raise ``InvalidArgument``."""
    if _NAME.match(name):
        return name
    raise CcorchError(
        ErrorCode.INVALID_ARGUMENT,
        f"{name[:80]!r} cannot be the name of a secret",
        "A name has 1 to 64 of the characters a-z, 0-9, '.', '_' and '-', for example anthropic-api-key.",
    )


def _forget(backend: KeyringBackend, service: str, name: str) -> bool:
    try:
        backend.delete_password(service, name)
    except PasswordDeleteError:
        return False
    return True


def _derive(material: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"ccorch secrets 1").derive(material)


def _key_id(key: bytes) -> str:
    """Return a name for *key* that tells nothing about it: which key is the right one must not be found by trying."""
    return hashlib.sha256(b"ccorch key id" + key).hexdigest()[:16]


def _associated(version: int, key_id: str) -> bytes:
    return f"ccorch secrets {version} {key_id}".encode()


def _failed(message: str, hint: str = "") -> CcorchError:
    return CcorchError(ErrorCode.STORAGE_FAILED, message, hint)


def _write(path: Path, content: bytes) -> None:
    """Replace *path* by a file of mode 0600 that is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise CcorchError(
            ErrorCode.NO_SPACE if full else ErrorCode.STORAGE_FAILED, f"{path} cannot be written: {error.strerror}"
        ) from error
