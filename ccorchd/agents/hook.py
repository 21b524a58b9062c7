# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook helper: an agent runs it to tell the daemon what just happened. Standalone; nothing imports it.

    python3 -I -S hook.py EVENT [--wait SECONDS] < payload.json
    python3 -I -S hook.py EVENT --ask-secret NAME

It finds its instance by CCORCH_SOCKET and CCORCH_SPOOL. One seqpacket message goes out:

    {"id": "<32 hex digits>", "event": EVENT, "time": <seconds>, "payload": {...}}

and one comes back, once the daemon has committed it: {"ok": true}, perhaps with "output", which is printed for the
agent. Any other answer, or none within 5 seconds, and the message goes into the spool folder as <time>-<id>.json, where
the daemon finds it; it drops ids that it has seen before, so nothing is lost and nothing counts twice. An answer with
"drop": true says that the daemon will never want it. A message above 128 KiB is written to <time>-<id>.large first and
announced by {"id": ..., "spool": true}.

A secret is printed when the answer has "secret"; it is asked for in the payload and never spooled.

Each tool call of each agent waits for this program, so it imports what is built into the interpreter and nothing else:
json alone would double its time (12 ms instead of 6).
"""

import _socket
import posix
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE_LIMIT = 128 * 1024
PAYLOAD_LIMIT = 32 * 1024 * 1024
STDIN_SECONDS = 10.0
STDIN_PAUSE = 0.3
CONNECT_SECONDS = 2


class Context:
    """What json.JSONDecoder hands to the C scanner."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - one process, one use


def scanner() -> "tuple[Callable[[str, int], tuple[object, int]], Callable[[str], str]]":
    """Return scan(text, index) -> (value, end) and quote(text) -> JSON string, without importing json if possible."""
    try:
        from _json import encode_basestring_ascii, make_scanner

        return make_scanner(Context()), encode_basestring_ascii  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError):
        import json

        return json.JSONDecoder(strict=False).raw_decode, json.dumps


def parse(scan: "Callable[[str, int], tuple[object, int]]", text: str) -> dict[str, object] | None:
    """Return the object that *text* is, or None."""
    text = text.strip(" \t\r\n")
    try:
        value, end = scan(text, 0)
    except (StopIteration, ValueError, RecursionError, SystemError):  # the last: 3.11, for want of json.decoder
        return None
    return value if end == len(text) and isinstance(value, dict) else None


def read_input(scan: "Callable[[str, int], tuple[object, int]]") -> bytes:
    """Read the payload. An agent that leaves the pipe open, or gives its terminal, must not hang; a slow one may."""
    if posix.isatty(0):
        return b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    chunks: list[bytes] = []
    size, deadline = 0, time.monotonic() + STDIN_SECONDS
    while size <= PAYLOAD_LIMIT:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        if not poll.poll(min(left, STDIN_PAUSE if chunks else left) * 1000):
            if chunks and parse(scan, b"".join(chunks).decode("utf-8", "replace")) is not None:
                break  # all is said, though the pipe is open
            continue
        try:
            chunk = posix.read(0, 1 << 20)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[posix.write(descriptor, view) :]


def make_folder(path: bytes) -> None:
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_folder(path.rpartition(b"/")[0])
        posix.mkdir(path, 0o700)


def store(folder: bytes, name: bytes, message: bytes) -> None:
    """Write *message* so that it is there whole or not at all, and on the disk."""
    temporary = folder + b"/" + name + b".tmp"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    try:
        descriptor = posix.open(temporary, flags, 0o600)
    except FileNotFoundError:
        make_folder(folder)
        descriptor = posix.open(temporary, flags, 0o600)
    try:
        try:
            write_all(descriptor, message)
            posix.fsync(descriptor)
        finally:
            posix.close(descriptor)
        posix.rename(temporary, folder + b"/" + name)
    except OSError:
        posix.unlink(temporary)
        raise


def exchange(path: bytes, message: bytes, seconds: float) -> bytes:
    """Return the daemon's answer as bytes; OSError if there is none in time.

    Time-outs are the kernel's: a non-blocking connect(2) fails at once when the queue is full, a blocking one waits.
    """

    def timeval(value: float) -> bytes:
        width = 8 if sys.maxsize > 2**32 else 4
        whole = int(value)
        return b"".join(part.to_bytes(width, sys.byteorder) for part in (whole, int((value - whole) * 1e6)))

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(None)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval(CONNECT_SECONDS))
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeval(seconds))
        connection.connect(path)
        connection.send(message)
        return connection.recv(1 << 18)
    finally:
        connection.close()


def report(arguments: list[str]) -> int:
    event, secret, seconds = arguments[0], "", 5.0
    for index, word in enumerate(arguments):
        if word == "--ask-secret":
            secret = arguments[index + 1]
        elif word == "--wait":
            seconds = float(arguments[index + 1])
    scan, quote = scanner()
    raw = b"" if secret else read_input(scan)
    path, spool = posix.environ.get(b"CCORCH_SOCKET"), posix.environ.get(b"CCORCH_SPOOL")
    if not path and not spool:
        return 1 if secret else 0

    fields: dict[str, object] | None = {}
    if secret:
        payload = '{"secret": ' + quote(secret) + "}"
    else:
        payload = raw.decode("utf-8", "replace").strip() or "{}"
        fields = parse(scan, payload) if len(raw) <= PAYLOAD_LIMIT else None
        if fields is None:
            payload = '{"text": ' + quote(payload[:16384]) + "}"
    now, uid = time.time(), posix.urandom(16).hex()
    head = '{"id": "' + uid + '", "event": ' + quote(event) + ', "time": ' + repr(now)
    message = (head + ', "payload": ' + payload + "}").encode("utf-8", "surrogatepass")
    stem = f"{now:017.6f}-{uid}".encode()

    large = b""
    if len(message) > MESSAGE_LIMIT:
        try:
            store(spool or b"", stem + b".large", message)
            large = stem + b".large"
        except OSError:  # a full disk, for example: that it happened matters more than every word of it
            words = [
                (key, value) for key, value in (fields or {}).items() if isinstance(value, str) and len(value) < 512
            ]
            short = [quote(key) + ": " + quote(text) for key, text in words[:32]]
            message = (head + ', "payload": {' + ", ".join([*short, '"truncated": true']) + "}}").encode()
    try:
        answer = exchange(path, (head + ', "spool": true}').encode() if large else message, seconds) if path else b""
    except OSError:
        answer = b""
    found = parse(scan, answer.decode("utf-8", "replace")) or {}
    output = found.get("secret" if secret else "output")
    if found.get("ok") is True and isinstance(output, str) and output:
        write_all(1, (output + "\n").encode("utf-8", "replace"))
    if secret:
        return 0 if found.get("ok") is True and output else 1
    if found.get("ok") is not True and found.get("drop") is not True and spool:
        if large:
            posix.rename(spool + b"/" + large, spool + b"/" + stem + b".json")
        else:
            store(spool, stem + b".json", message)
    return 0


def main() -> None:
    """Agents take a hook that fails for a veto, and what it prints for a wish: whatever goes wrong, end well."""
    try:
        status = report(sys.argv[1:])
    except BaseException:
        status = 1 if "--ask-secret" in sys.argv else 0
    posix._exit(status)


main()
