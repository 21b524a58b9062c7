# SPDX-License-Identifier: LGPL-2.1-or-later
"""A scripted stand-in for the Anthropic API on 127.0.0.1, so that the real Claude Code runs whole turns offline.

It answers ``HEAD /`` and ``POST /v1/messages`` (as server-sent events, or as one JSON document when the request does
not stream). What it answers is decided by directives in the last prompt of the conversation:

=====================  ==================================================================================
``[say TEXT]``         a text answer
``[bash COMMAND]``     a ``tool_use`` block for the Bash tool, then, once its result is there, a text answer
``[write NAME TEXT]``  a ``tool_use`` block for the Write tool (NAME relative to the worktree)
``[ask QUESTION]``     a ``tool_use`` block for AskUserQuestion
``[slow N]``           a text answer whose N pieces come 0.1 s apart
``[recall]``           a text answer that repeats every earlier prompt of the conversation
``[429 SECONDS]``      HTTP 429 with ``retry-after: SECONDS`` (without end)
``[500]``              HTTP 500 (without end)
=====================  ==================================================================================

Several directives are played one after another; a prompt without any is answered with ``done: <its first line>``.
Each request is kept in :attr:`FakeApi.requests`, so that a test can prove what a conversation
carried. Standard library only.

Run as a program it prints its URL, and one line of JSON per request to ``--log FILE``.
"""

from __future__ import annotations

import argparse
import http.server
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DIRECTIVE = re.compile(r"\[(say|bash|write|ask|slow|recall|429|500)(?: ([^\]]*))?\]")

Block = dict[str, Any]


def _texts(content: object) -> list[str]:
    """Return the texts of a message's content, without what Claude Code itself puts in (``<system-reminder>`` …)."""
    if isinstance(content, str):
        parts = [content]
    elif isinstance(content, list):
        parts = [str(block.get("text", "")) for block in content if block.get("type") == "text"]
    else:
        parts = []
    cleaned = (re.sub(r"<(system-reminder|command-[a-z]+)>.*?</\1>", "", part, flags=re.DOTALL) for part in parts)
    return [text.strip() for text in cleaned if text.strip() and not text.startswith("[Request interrupted")]


def _is_tool_result(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)


def prompts(body: dict[str, Any]) -> list[str]:
    """Return what the user has said so far in a conversation, oldest first."""
    return [
        "\n".join(texts)
        for message in body.get("messages", [])
        if message.get("role") == "user" and (texts := _texts(message.get("content")))
    ]


def tool_results(body: dict[str, Any]) -> list[Block]:
    """Return the ``tool_result`` blocks of a conversation, oldest first."""
    return [
        block
        for message in body.get("messages", [])
        if isinstance(message.get("content"), list)
        for block in message["content"]
        if block.get("type") == "tool_result"
    ]


class FakeApi:
    """The server and what it has seen. Use it as a context manager; :attr:`url` is what ANTHROPIC_BASE_URL wants."""

    def __init__(self, port: int = 0, log: Path | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        """Bodies of the ``/v1/messages`` requests, oldest first; ``_headers`` holds their headers in small letters."""
        self._log = log
        self._arrived = threading.Condition()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def record(self, body: dict[str, Any]) -> None:
        with self._arrived:
            self.requests.append(body)
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(body) + "\n")
            self._arrived.notify_all()

    def conversations(self) -> list[dict[str, Any]]:
        """Return the requests of the conversation itself: Claude Code also asks small side questions without tools."""
        return [body for body in self.requests if body.get("tools")]

    def wait_for(self, text: str, timeout: float = 30) -> dict[str, Any]:
        """Wait for a request whose last prompt holds *text* and return it; TimeoutError after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while True:
                for body in self.conversations():
                    if (said := prompts(body)) and text in said[-1]:
                        return body
                if not self._arrived.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no request whose last prompt holds {text!r} within {timeout:g} s")


def _script(body: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the directives of the last prompt that are still to be played, and all prompts."""
    said = prompts(body)
    if not said:
        return [], said
    steps = [(match[1], match[2] or "") for match in _DIRECTIVE.finditer(said[-1])]
    played = 0
    for message in reversed(body.get("messages", [])):
        if message.get("role") == "user" and _texts(message.get("content")):
            break  # a result beside the prompt belongs to the turn before, which was interrupted
        played += _is_tool_result(message)
    return steps[played:], said


def _answer(body: dict[str, Any]) -> tuple[list[Block], float]:
    """Return the content blocks of the answer to *body*, and the pause between the pieces of a text in seconds."""
    steps, said = _script(body)
    last = said[-1].splitlines()[0] if said else ""
    for verb, rest in steps:
        match verb:
            case "say":
                return [{"type": "text", "text": rest}], 0.0
            case "slow":
                return [{"type": "text", "text": " ".join(f"piece{number}" for number in range(int(rest or 50)))}], 0.1
            case "recall":
                return [{"type": "text", "text": "earlier: " + " | ".join(said[:-1])}], 0.0
            case "bash":
                return [_tool("Bash", {"command": rest, "description": "scripted"})], 0.0
            case "write":
                name, _, text = rest.partition(" ")
                path = f"{_working_directory(body)}/{name}"
                return [_tool("Write", {"file_path": path, "content": text + "\n"})], 0.0
            case "ask":
                options = [{"label": label, "description": label} for label in ("yes", "no")]
                question = {"question": rest, "header": "Scripted", "options": options, "multiSelect": False}
                return [_tool("AskUserQuestion", {"questions": [question]})], 0.0
            case _:
                pass
    return [{"type": "text", "text": f"done: {last}"}], 0.0


def _working_directory(body: dict[str, Any]) -> str:
    """The system prompt tells the model where it works; the fake reads it there as a model would."""
    match = re.search(r"[Ww]orking directory: (\S+)", json.dumps(body).replace("\\n", "\n"))
    return match[1] if match else "/tmp"


def _tool(name: str, arguments: dict[str, Any]) -> Block:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": name, "input": arguments}


def _events(model: str, blocks: list[Block]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the event stream of a message, as https://docs.anthropic.com/en/api/messages-streaming describes it."""
    message = _message(model, [], None)
    yield "message_start", {"message": message}
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            yield "content_block_start", {"index": index, "content_block": {"type": "text", "text": ""}}
            for piece in re.findall(r"\S+\s*", block["text"]) or [""]:
                yield "content_block_delta", {"index": index, "delta": {"type": "text_delta", "text": piece}}
        else:
            yield "content_block_start", {"index": index, "content_block": {**block, "input": {}}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield "content_block_delta", {"index": index, "delta": delta}
        yield "content_block_stop", {"index": index}
    stop = {"stop_reason": _stop_reason(blocks), "stop_sequence": None}
    yield "message_delta", {"delta": stop, "usage": {"output_tokens": 10}}
    yield "message_stop", {}


def _stop_reason(blocks: list[Block]) -> str:
    return "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"


def _message(model: str, blocks: list[Block], stop_reason: str | None) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex[:24]}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 1},
    }


def _handler(api: FakeApi) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._plain(200, b"")

        def do_GET(self) -> None:
            self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "scripted"}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))) or b"{}")
            if not self.path.startswith("/v1/messages"):
                self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "scripted"}})
                return
            if self.path.startswith("/v1/messages/count_tokens"):
                self._json(200, {"input_tokens": 10})
                return
            body["_headers"] = {name.lower(): value for name, value in self.headers.items()}
            api.record(body)
            steps, _ = _script(body)
            if body.get("tools") and steps and steps[0][0] in ("429", "500"):
                self._refuse(*steps[0])
                return
            blocks, pause = _answer(body) if body.get("tools") else ([{"type": "text", "text": "scripted"}], 0.0)
            model = str(body.get("model", "scripted"))
            if not body.get("stream"):
                self._json(200, _message(model, blocks, _stop_reason(blocks)))
                return
            self._stream(model, blocks, pause)

        def _stream(self, model: str, blocks: list[Block], pause: float) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                for name, data in _events(model, blocks):
                    self.wfile.write(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode())
                    self.wfile.flush()
                    if pause and name == "content_block_delta":
                        time.sleep(pause)
            except OSError:
                pass  # the program was killed or interrupted in the middle of an answer: that is what some tests do

        def _refuse(self, verb: str, rest: str) -> None:
            if verb == "429":
                error = {"type": "rate_limit_error", "message": "scripted rate limit"}
                self._json(429, {"type": "error", "error": error}, {"retry-after": rest or "1"})
            else:
                self._json(500, {"type": "error", "error": {"type": "api_error", "message": "scripted failure"}})

        def _json(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
            self._plain(status, json.dumps(document).encode(), {"content-type": "application/json", **(headers or {})})

        def _plain(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    with FakeApi(arguments.port, arguments.log) as api:
        print(api.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
