# SPDX-License-Identifier: LGPL-2.1-or-later
"""The D-Bus API of the running daemon: objects, signals, named errors, and the audit trail of every mutating method."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable
from typing import Any

import pytest

from ccorchd.bus.instance import InstanceInterface
from ccorchd.bus.manager import ManagerInterface
from ccorchd.bus.project import ProjectInterface
from ccorchd.contract import (
    INSTANCE_FIELDS,
    INSTANCE_INTERFACE,
    MANAGER_INTERFACE,
    MANAGER_PATH,
    PROJECT_INTERFACE,
    ErrorCode,
    unpack_error,
)
from ccorchd.host.dbus import Bus, DBusCallError, Message, Variant
from daemons import Daemon, eventually, run


def methods(interface: type) -> dict[str, tuple[str, bool]]:
    """Return name to input signature, and whether it mutates, of every method."""
    found = {}
    for name in dir(interface):
        member = getattr(interface, name)
        described = getattr(member, "__dict__", {}).get("__DBUS_METHOD")
        if described is not None:
            found[name] = (described.in_signature, bool(member.__dict__.get("ccorch_mutating")))
    return found


WRONG: dict[str, list[Any]] = {
    # Manager
    "RegisterProject": ["/nonexistent", {}],
    "CreateInstance": ["nowhere", "x", {}],
    "PrepareHost": [],
    "Reload": [],
    "SetSecret": ["", "value"],
    "RemoveSecret": ["no-such-secret"],
    # Project
    "AgreeSetup": ["not-the-digest"],
    # Instance (of an agent that takes no prompts, stopped)
    "Start": [{"nonsense": Variant("s", "x")}],
    "Stop": [{"nonsense": Variant("s", "x")}],
    "Restart": [{"nonsense": Variant("s", "x")}],
    "Remove": [{"nonsense": Variant("s", "x")}],
    "Send": ["text", {}],
    "Interrupt": [],
    "Attach": [False, "no-such-window"],
    "Detach": [],
    "Merge": [],
}
"""Arguments with which each mutating method refuses, or does no harm."""


async def outcome(call: Awaitable[Any]) -> str:
    """Return what the audit trail should say of *call*: nothing for success, else a known code and its sentence."""
    refused: DBusCallError | None = None
    try:
        await call
    except DBusCallError as error:
        refused = error
    if refused is None:
        return ""
    assert refused.name.startswith("org.ccorch1.Error."), refused
    code = refused.name.rpartition(".")[2]
    message, _ = unpack_error(refused.text)
    assert code in set(ErrorCode)
    assert message
    assert "Traceback" not in refused.text
    return f"{code}: {message}"


async def test_every_mutating_method_is_audited_refusals_too(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/quiet", "--no-start")
    bus = await Bus.connect()
    try:
        name = daemon.naming.bus_name
        [instance] = await bus.call(name, MANAGER_PATH, MANAGER_INTERFACE, "GetInstance", "s", "sample/quiet")
        [owner] = await bus.call(name, MANAGER_PATH, MANAGER_INTERFACE, "GetProject", "s", "sample")
        tried = []
        for path, interface, kind in (
            (MANAGER_PATH, MANAGER_INTERFACE, ManagerInterface),
            (owner, PROJECT_INTERFACE, ProjectInterface),
            (instance, INSTANCE_INTERFACE, InstanceInterface),
        ):
            for member, (signature, mutating) in methods(kind).items():
                if not mutating or member == "Shutdown":
                    continue
                arguments = WRONG[member] if interface != PROJECT_INTERFACE or member != "Remove" else [{}]
                call = bus.call(name, path, interface, member, signature, *arguments)
                tried.append((member, await outcome(call)))
    finally:
        await bus.close()
    trail = [
        (json.loads(event["data"]) if isinstance(event["data"], str) else event["data"], event["actor"])
        for event in json.loads(daemon.ok("audit", "-o", "json", "-n", "1000"))
    ]
    ours = [(data["method"], data["error"]) for data, actor in trail if f"pid {os.getpid()} " in actor]
    assert sorted(ours) == sorted(tried)
    assert all(f"uid {os.getuid()}," in actor for _, actor in trail)
    assert len(tried) >= 15


async def test_secrets_never_reach_the_trail(daemon: Daemon) -> None:
    bus = await Bus.connect()
    try:
        await bus.call(
            daemon.naming.bus_name,
            MANAGER_PATH,
            MANAGER_INTERFACE,
            "SetSecret",
            "ss",
            "sample-token",
            "hush-hush-12345",
        )
        names = await bus.call(daemon.naming.bus_name, MANAGER_PATH, MANAGER_INTERFACE, "ListSecrets")
        assert "sample-token" in names[0]
    finally:
        await bus.close()
    assert "hush-hush-12345" not in daemon.ok("audit", "-o", "json")
    assert "hush-hush-12345" not in daemon.journal()
    for path in daemon.naming.state_dir.rglob("*"):
        if path.is_file():
            assert b"hush-hush-12345" not in path.read_bytes(), path


async def test_objects_and_signals_follow_an_instance(daemon: Daemon, project: str) -> None:
    bus = await Bus.connect()
    seen: list[tuple[str, Any]] = []
    idle = asyncio.Event()
    removed = asyncio.Event()

    def note(message: Message) -> None:
        seen.append((message.member, message.body))
        changed = message.body[1] if message.member == "PropertiesChanged" else {}
        if "State" in changed and changed["State"].value == "idle":
            idle.set()
        if message.member == "InterfacesRemoved":
            removed.set()

    try:
        name = daemon.naming.bus_name
        bus.on_signal(sender=name, path_namespace=MANAGER_PATH, callback=note)
        [path] = await bus.call(
            name, MANAGER_PATH, MANAGER_INTERFACE, "CreateInstance", "ssa{sv}", "sample", "watched", {}, timeout=60
        )
        async with asyncio.timeout(30):
            await idle.wait()
        [objects] = await bus.call(name, MANAGER_PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        assert objects[path][INSTANCE_INTERFACE]["State"] == "idle"
        [record] = await bus.call(name, path, INSTANCE_INTERFACE, "Describe")
        assert set(record) <= set(INSTANCE_FIELDS)
        await bus.call(name, path, INSTANCE_INTERFACE, "Remove", "a{sv}", {}, timeout=60)
        async with asyncio.timeout(30):
            await removed.wait()
    finally:
        await bus.close()
    members = [member for member, _ in seen]
    assert members.index("InterfacesAdded") < members.index("PropertiesChanged")
    added = next(body for member, body in seen if member == "InterfacesAdded")
    assert added[0] == path
    kinds = [body[0]["kind"].value for member, body in seen if member == "EventAdded"]
    assert kinds[0] == "instance.created"
    assert "instance.removed" in kinds


@pytest.mark.parametrize(
    ("member", "signature", "arguments", "code"),
    [
        ("GetInstance", "s", ["sample/none"], "NoSuchProject"),
        ("GetInstance", "s", ["no-slash"], "InvalidName"),
        ("GetProject", "s", ["none"], "NoSuchProject"),
        ("ListInstances", "a{sv}", [{"states": Variant("as", ["happy"])}], "InvalidArgument"),
        ("ListInstances", "a{sv}", [{"stats": Variant("as", [])}], "InvalidArgument"),
        ("ListInstances", "a{sv}", [{"project": Variant("u", 1)}], "InvalidArgument"),
        ("FindProject", "s", ["/"], "NoSuchProject"),
        ("ListEvents", "a{sv}", [{"instance": Variant("s", "A/B")}], "InvalidName"),
        ("ListWorktrees", "s", ["none"], "NoSuchProject"),
    ],
)
async def test_wrong_questions_get_named_errors(
    daemon: Daemon, member: str, signature: str, arguments: list[Any], code: str
) -> None:
    bus = await Bus.connect()
    try:
        with pytest.raises(DBusCallError) as caught:
            await bus.call(daemon.naming.bus_name, MANAGER_PATH, MANAGER_INTERFACE, member, signature, *arguments)
    finally:
        await bus.close()
    assert caught.value.name == f"org.ccorch1.Error.{code}"


def test_busctl_can_follow(daemon: Daemon, project: str) -> None:
    daemon.ok("instance", "create", "sample/shown")
    tree = run("busctl", "--user", "--list", "tree", daemon.naming.bus_name).stdout
    assert "/org/ccorch1/instance/i" in tree
    [path] = [line.strip() for line in tree.splitlines() if "/instance/i" in line]
    shown = run("busctl", "--user", "introspect", daemon.naming.bus_name, path).stdout
    assert ".Describe" in shown
    assert ".State" in shown


def test_loss_of_the_bus_is_survived(daemon: Daemon, project: str) -> None:
    """The broker is restarted: the daemon connects again, as the same process, and no instance notices."""
    daemon.ok("instance", "create", "sample/stays", "--prompt", "#sleep 600")
    before, daemon_pid = daemon.wait_state("sample/stays", "working"), daemon.pid
    assert run("systemctl", "--user", "restart", "dbus.service").returncode == 0
    eventually("the API is back", lambda: daemon.ctl("status").returncode == 0)
    assert daemon.pid == daemon_pid
    assert daemon.instance("sample/stays")["pid"] == before["pid"]
    # Scopes are followed again over the new connection.
    daemon.ok("instance", "create", "sample/later")
    daemon.wait_state("sample/later", "idle")
    run("systemctl", "--user", "stop", daemon.naming.scope("sample", "stays"))
    daemon.wait_state("sample/stays", "failed")
