# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ccorchctl asks and shows on a terminal, and how it follows a daemon that comes and goes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ccorch_test_service import Server, refuse  # type: ignore[import-not-found]

from ccorchctl.client import Client
from ccorchctl.commands.events import follow
from ccorchctl.commands.instance import settle
from ccorchctl.context import Context, Target
from ccorchctl.failures import Failure
from ccorchctl.output import Output
from ccorchctl.parser import parse
from ccorchd.contract import ErrorCode, State

Open = Callable[..., Any]
needs_server = pytest.mark.usefixtures("server")


# ---------------------------------------------------------------- questions


@needs_server
@pytest.mark.parametrize("answer", ["\n", "\x04", "NO\n"])
def test_enter_and_the_end_of_input_are_a_no(terminal: Open, world: Any, answer: str) -> None:
    screen = terminal("remove", "shop/api")
    screen.until(r"\[y/N\]")
    screen.type(answer)
    assert screen.end() == 6
    assert "nothing was done" in screen.text
    assert not world.called("Remove")


@needs_server
@pytest.mark.parametrize("answer", ["\n", "\x04"])
def test_a_secret_that_is_not_given(terminal: Open, world: Any, answer: str) -> None:
    screen = terminal("secret", "set", "token")
    screen.until("Value of token:")
    screen.type(answer)
    assert screen.end() == 6
    assert "no value given; nothing was done" in screen.text
    assert world.secrets == {}


@needs_server
def test_a_prompt_is_typed(terminal: Open, world: Any) -> None:
    screen = terminal("create", "shop/new", "--prompt", "-")
    screen.until("end with Ctrl-D")
    screen.type("write it\n\x04")
    assert screen.end() == 0
    assert world.called("CreateInstance")[0][2]["prompt"] == "write it"


@needs_server
def test_send_without_a_text_asks_for_one(terminal: Open, world: Any) -> None:
    screen = terminal("send", "shop/api")
    assert screen.end() == 2
    assert "what should be sent?" in screen.text
    assert not world.called("Send")


@needs_server
@pytest.mark.parametrize(("words", "status"), [(("create", "shop/new"), 6), (("project", "agree", "shop"), 6)])
def test_not_agreed(terminal: Open, world: Any, words: tuple[str, ...], status: int) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    screen = terminal(*words)
    screen.until(r"in each new worktree\? \[y/N\]")
    screen.type("n\n")
    assert screen.end() == status
    assert "not agreed; nothing was" in screen.text
    assert not world.called("AgreeSetup")
    assert len(world.called("CreateInstance")) == (words[0] == "create")


@needs_server
def test_init_goes_on_without_agreement(terminal: Open, world: Any, project_folder: Path) -> None:
    world.projects[1] |= {"setup": ["make deps"], "setup_hash": "h1", "setup_agreed": False}
    screen = terminal("init", str(project_folder))
    screen.until(r"in each new worktree\? \[y/N\]")
    screen.type("n\n")
    assert screen.end() == 0
    assert "Agreed." not in screen.text
    assert "Next: ccorchctl project agree shop" in screen.text
    assert not world.called("AgreeSetup")


@needs_server
def test_try_that_changed_nothing_yet(terminal: Open, world: Any, project_folder: Path) -> None:
    world.commits, world.diff = [], ""
    screen = terminal("try", "x", cwd=project_folder)
    screen.until(r"It has changed nothing yet\. What now\? \[keep\]")
    screen.type("\x03")
    assert screen.end() == 130
    assert "shop/brisk-otter is as it was." in screen.text
    assert not world.called("Remove")


@needs_server
def test_try_without_tmux(terminal: Open, world: Any, project_folder: Path) -> None:
    world.argv = ["/nonexistent/tmux", "attach"]
    screen = terminal("try", "x", cwd=project_folder)
    assert screen.end() == 1
    assert "/nonexistent/tmux cannot be run: No such file or directory" in screen.text
    assert "The agent goes on: ccorchctl attach shop/brisk-otter" in screen.text


# ---------------------------------------------------------------- a terminal handed over


@needs_server
def test_create_and_attach(terminal: Open, world: Any) -> None:
    world.argv = ["sh", "-c", "echo at work"]
    screen = terminal("create", "shop/new", "--attach")
    assert screen.end() == 0
    assert screen.text.endswith("at work\n")
    assert "Next:" not in screen.text
    assert world.called("Attach") == [("shop/new", False, "agent")]


@needs_server
def test_create_and_attach_without_tmux(terminal: Open, world: Any) -> None:
    world.argv = ["/nonexistent/tmux", "attach"]
    screen = terminal("create", "shop/new", "--attach", TMUX="/nonexistent/other,1,0")
    assert screen.end() == 1
    assert "shop/new started" in screen.text
    assert "/nonexistent/tmux cannot be run" in screen.text


@needs_server
def test_merging_what_is_still_at_work_keeps_it(terminal: Open, world: Any, server: Any, project_folder: Path) -> None:
    world.argv = ["sh", "-c", "echo at work; read line"]
    screen = terminal("try", "x", cwd=project_folder)
    screen.until("at work")
    server.becomes("shop/brisk-otter", "working")
    screen.type("\n")
    screen.until("What shall become of it")
    screen.type("merge\n")
    assert screen.end() == 0
    assert "shop/brisk-otter is still at work, so it is kept." in screen.text
    assert world.called("Merge")
    assert not world.called("Remove")


@needs_server
def test_following_in_json_gives_an_object_a_line(terminal: Open, world: Any, server: Any) -> None:
    """An array that never ends would be no JSON."""
    world.event("before", instance="shop/api")
    screen = terminal("events", "-f", "-o", "json")
    screen.until(r'"before".*\n')
    server.happens("after", instance="shop/api")
    screen.until(r'"after".*\n')
    screen.type("\x03")
    assert screen.end() == 130
    rows = [json.loads(line) for line in screen.text.splitlines() if line.startswith("{")]
    assert [row["message"] for row in rows] == ["before", "after"]


@needs_server
def test_attach_needs_to_know_the_terminal(terminal: Open, world: Any) -> None:
    screen = terminal("attach", "shop/api", TERM="")
    assert screen.end() == 2
    assert "TERM is not set" in screen.text
    assert not world.called("Attach")


@needs_server
def test_a_diff_is_coloured_and_cannot_steer_the_terminal(terminal: Open, world: Any) -> None:
    world.diff = (
        "diff --git a/x b/x\nindex 1..2\n--- a/x\n+++ b/x\n@@ -1 +1 @@ f\n-old\x1b]0;owned\x07\n+\tnew\n same\n"
    )
    screen = terminal("diff", "shop/api")
    assert screen.end() == 0
    assert "\x1b]0;" not in screen.raw
    assert "\x07" not in screen.raw
    lines = screen.raw.replace("\r\n", "\n").splitlines()
    starts = [line.split("m", 1)[0] if line.startswith("\x1b[") else "" for line in lines]
    assert len(lines) == 8
    heads, (hunk, old, new, same) = set(starts[:4]), starts[4:]
    assert len(heads) == 1
    assert same == ""
    assert len({*heads, hunk, old, new, same}) == 5
    assert "\tnew" in screen.text


# ---------------------------------------------------------------- a daemon that comes and goes


async def _connected() -> tuple[Client, Context]:
    context = Context(parse(["wait", "shop/web"]), Output(quiet=True))
    return await context.client(), context


async def test_settle_sees_what_happened_while_the_daemon_was_away(
    dbus_session: str, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CCORCH_SUFFIX", raising=False)
    web, api = world.by_address("shop/web"), world.by_address("shop/api")
    targets = [Target("shop/web", web["object"]), Target("shop/api", api["object"])]
    client, context = await _connected()
    try:
        with Server(dbus_session, world):
            # A daemon that is about to stop has no news of web, and that is no reason to give up.
            world.fail["Describe shop/web"] = refuse(ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
            waiting = asyncio.create_task(settle(context, client, targets, (State.IDLE, State.WAITING)))
            await asyncio.to_thread(world.calls.wait, "Describe", 2)
            await client.status()  # so both answers have arrived
            assert not waiting.done()
        world.fail.clear()
        web |= {"state": "idle", "doing": ""}
        with Server(dbus_session, world):
            records = await asyncio.wait_for(waiting, 20)
        assert [record["state"] for record in records] == ["idle", "waiting"]
    finally:
        await context.close()


@pytest.mark.parametrize("done_before", [False, True])
async def test_settle_notices_a_removal_only_of_what_it_waits_for(
    dbus_session: str, world: Any, server: Any, done_before: bool
) -> None:
    web, api = world.by_address("shop/web"), world.by_address("shop/api")
    client, context = await _connected()
    try:
        targets = [Target("shop/web", web["object"]), Target("shop/api", api["object"])]
        waiting = asyncio.create_task(settle(context, client, targets, (State.IDLE, State.WAITING)))
        await asyncio.to_thread(world.calls.wait, "Describe", 2)  # it has subscribed before that
        await client.status()
        if done_before:
            await asyncio.to_thread(server.becomes, "shop/api", "working")
            await asyncio.to_thread(server.remove, "blog/api")
            await asyncio.to_thread(server.becomes, "shop/web", "idle")
            records = await asyncio.wait_for(waiting, 20)
            assert [record["state"] for record in records] == ["idle", "waiting"]
        else:
            await asyncio.to_thread(server.remove, "shop/web")
            with pytest.raises(Failure, match="shop/web was removed meanwhile") as caught:
                await asyncio.wait_for(waiting, 20)
            assert caught.value.code == ErrorCode.NO_SUCH_INSTANCE
    finally:
        await context.close()


async def test_follow_takes_each_row_once_and_only_the_wanted(dbus_session: str, world: Any, server: Any) -> None:
    world.event("before")
    client, context = await _connected()
    try:
        rows = follow(client, 0, lambda row: row["message"] != "other")
        assert (await asyncio.wait_for(anext(rows), 20))["message"] == "before"
        following = asyncio.ensure_future(anext(rows))
        await asyncio.to_thread(world.calls.wait, "ListEvents", 2)
        await client.status()  # the second page, an empty one, has been read
        for message in ("other", "one", "two"):
            await asyncio.to_thread(server.happens, message)
        assert (await asyncio.wait_for(following, 20))["message"] == "one"
        assert (await asyncio.wait_for(anext(rows), 20))["message"] == "two"
        await rows.aclose()  # type: ignore[attr-defined]
    finally:
        await context.close()


async def test_follow_survives_a_daemon_that_is_stopping_but_no_other_refusal(dbus_session: str, world: Any) -> None:
    client, context = await _connected()
    try:
        world.fail["ListEvents"] = refuse(ErrorCode.SHUTTING_DOWN, "the daemon is stopping")
        rows = follow(client, 0, lambda _: True)
        with Server(dbus_session, world):
            following = asyncio.ensure_future(anext(rows))
            await asyncio.to_thread(world.calls.wait, "ListEvents")
            await client.status()
            assert not following.done()
        world.fail.clear()
        world.event("while away")
        with Server(dbus_session, world):
            assert (await asyncio.wait_for(following, 20))["message"] == "while away"
            await rows.aclose()  # type: ignore[attr-defined]
            world.fail["ListEvents"] = refuse(ErrorCode.STORAGE_FAILED, "the store is gone")
            with pytest.raises(Failure, match="the store is gone"):
                await anext(follow(client, 0, lambda _: True))
    finally:
        await context.close()


async def test_a_start_hands_over_nothing_that_is_not_given(world: Any, server: Any) -> None:
    client, context = await _connected()
    try:
        await client.start(world.by_address("blog/api")["object"])
        assert world.called("Start") == [("blog/api", {})]
    finally:
        await context.close()


async def test_a_bus_that_hangs_up_in_the_middle_of_the_greeting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "bus"))
        listener.listen()

        def greet() -> None:
            with listener.accept()[0] as bus:
                with bus.makefile("rb") as lines:
                    assert lines.readline().endswith(b"\r\n")
                bus.sendall(b"OK 12")

        greeting = asyncio.create_task(asyncio.to_thread(greet))
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
        with pytest.raises(Failure, match=r"no session bus: .*\(the bus closed the connection\)"):
            await asyncio.wait_for(_connected(), 20)
        await greeting
