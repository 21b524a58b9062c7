# SPDX-License-Identifier: LGPL-2.1-or-later
"""A small service with the interfaces of the contract, in a thread of its own, for tests of the command line alone.

It keeps everything in memory and remembers what it was asked; the real daemon has tests of its own.
"""

# mypy: ignore-errors
# The annotations of methods are D-Bus signatures, not types.
# No `from __future__ import annotations` here: dbus-next reads the signatures from the annotations themselves.

import asyncio
import json
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from ccorchctl.client import _QuietWriter as QuietWriter
from ccorchd import contract
from ccorchd.contract import ERROR_PREFIX, INSTANCE_FIELDS, PROJECT_FIELDS, ErrorCode, Naming, State, pack_error

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from dbus_next import Message, PropertyAccess, Variant
    from dbus_next.aio import MessageBus
    from dbus_next.errors import DBusError
    from dbus_next.service import ServiceInterface, dbus_property, method, signal

Record = dict[str, Any]
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
NOW = 1_790_000_000_000_000


def refuse(code: ErrorCode, message: str, hint: str = "") -> DBusError:
    return DBusError(ERROR_PREFIX + code, pack_error(message, hint))


def packed(record: Record, fields: dict[str, str]) -> dict[str, Any]:
    return {key: Variant(fields[key], value) for key, value in record.items() if value is not None and key in fields}


def unpacked(options: dict[str, Any]) -> Record:
    return {key: value.value for key, value in options.items()}


class Calls(list[tuple[str, tuple[Any, ...]]]):
    """What the service was asked, in order; a test can wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def append(self, call: tuple[str, tuple[Any, ...]]) -> None:
        with self._changed:
            super().append(call)
            self._changed.notify_all()

    def wait(self, member: str, number: int = 1) -> None:
        """Return when *member* has been called *number* times."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(name == member for name, _ in self) >= number, 20)


class World:
    """What the service knows. Tests fill it, and read ``calls``."""

    def __init__(self) -> None:
        self.projects: dict[int, Record] = {}
        self.instances: dict[int, Record] = {}
        self.events: list[Record] = []
        self.calls = Calls()
        self.secrets: dict[str, str] = {}
        self.fail: dict[str, DBusError] = {}
        self.checks: list[Record] = [{"name": "tmux", "result": "ok", "message": "tmux 3.3a", "hint": ""}]
        self.changes: list[str] = ["Turned on lingering: instances survive a log-out."]
        self.status: Record = {
            "version": ("s", "0.1.0"),
            "pid": ("u", 4242),
            "started": ("t", NOW),
            "deployment": ("s", "personal"),
            "max_instances": ("u", 10),
            "host_memory": ("t", 16 * 1024**3),
            "memory_available": ("t", 9 * 1024**3),
            "memory_pressure": ("d", 0.0),
            "load": ("d", 0.42),
            "enforced": ("as", ["cpu", "pids"]),
            "unenforced": ("as", ["memory"]),
            "linger": ("b", True),
            "enabled": ("b", False),
            "config_dir": ("s", "/home/u/.config/ccorch"),
            "state_dir": ("s", "/home/u/.local/state/ccorch"),
            "data_dir": ("s", "/home/u/.local/share/ccorch"),
            "runtime_dir": ("s", "/run/user/1000/ccorch"),
            "slice": ("s", "ccorch.slice"),
            "unit": ("s", "ccorchd.service"),
        }
        self.settings: list[Record] = [
            {"key": "instances.max", "value": "12", "default": "10", "source": "/etc/x.toml", "help": "most at once"},
            {"key": "claude.model", "value": "", "default": "", "source": "default", "help": "model to use"},
            {"key": "instances.agent", "value": "demo", "default": "claude", "source": "CCORCH_X", "help": "the agent"},
        ]
        self.argv = ["/bin/true"]
        self.diff = " a.txt | 2 +-\n 1 file changed\n"
        self.commits = [["0123456789abcdef", "Add the parser"]]
        self.dirty: set[str] = set()
        self.terminals = 2
        self.delay = 0.0
        """Seconds that GetStatus takes: for time-outs."""

    def project(self, name: str, repository: str, **more: Any) -> Record:
        number = len(self.projects) + 1
        record = {
            "name": name,
            "repository": repository,
            "created": NOW,
            "instances": 0,
            "setup": [],
            "setup_hash": "",
            "setup_agreed": True,
            "object": f"{contract.PROJECT_PATH}/p{number}",
        } | more
        self.projects[number] = record
        return record

    def instance(self, project: str, name: str, state: str = "idle", **more: Any) -> Record:
        number = len(self.instances) + 1
        record = {
            "name": name,
            "project": project,
            "address": f"{project}/{name}",
            "state": state,
            "reason": "",
            "reason_text": "",
            "since": int(time.time() * 1e6) - 180_000_000,
            "doing": "",
            "agent": "demo",
            "session_id": "b7c2",
            "branch": f"ccorch/{name}",
            "base": "main",
            "worktree": f"/home/u/.local/share/ccorch/{project}/{name}",
            "unit": Naming().scope(project, name),
            "pid": 4711 if State(state).running else None,
            "port": 42000,
            "created": NOW,
            "restarts": 0,
            "memory_current": 300 * 1024**2 if State(state).running else None,
            "memory_peak": 400 * 1024**2,
            "cpu_usage_seconds": 12.5,
            "tasks_current": 7 if State(state).running else None,
            "limits": {"MemoryMax": str(1024**3), "TasksMax": "1024", "CPUQuota": "infinity"},
            "prompt": "do it",
            "object": f"{contract.INSTANCE_PATH}/i{number}",
            "measured": "cgroup",
        } | more
        self.instances[number] = record
        return record

    def event(self, message: str, *, instance: str = "", kind: str = "agent.tool", **more: Any) -> Record:
        project, _, name = instance.partition("/")
        record = {
            "id": len(self.events) + 1,
            "time": NOW + len(self.events) * 1_000_000,
            "kind": kind,
            "project": project,
            "instance": name,
            "actor": "ccorchd",
            "priority": 6,
            "message": message,
            "data": json.dumps({}),
        } | more
        self.events.append(record)
        return record

    def by_address(self, address: str) -> Record:
        for record in self.instances.values():
            if record["address"] == address:
                return record
        raise refuse(ErrorCode.NO_SUCH_INSTANCE, f"there is no instance {address}", "Did you mean shop/api?")

    def called(self, member: str) -> list[tuple[Any, ...]]:
        return [arguments for name, arguments in self.calls if name == member]


class ManagerInterface(ServiceInterface):
    def __init__(self, world: World, server: "Server") -> None:
        super().__init__(contract.MANAGER_INTERFACE)
        self.world = world
        self.server = server

    def note(self, member: str, *arguments: Any) -> None:
        self.world.calls.append((member, arguments))
        if member in self.world.fail:
            raise self.world.fail[member]

    @dbus_property(access=PropertyAccess.READ)
    def Version(self) -> "s":
        return "0.1.0"

    @dbus_property(access=PropertyAccess.READ)
    def ApiVersion(self) -> "u":
        return contract.API_VERSION

    @dbus_property(access=PropertyAccess.READ)
    def CallerVariables(self) -> "as":
        return ["PATH", "LANG", "LC_*", "SSH_AUTH_SOCK"]

    @dbus_property(access=PropertyAccess.READ)
    def Suffix(self) -> "s":
        return ""

    @signal()
    def EventAdded(self, event) -> "a{sv}":
        return event

    @method()
    async def GetStatus(self) -> "a{sv}":
        self.note("GetStatus")
        await asyncio.sleep(self.world.delay)
        states: dict[str, int] = {}
        for record in self.world.instances.values():
            states[record["state"]] = states.get(record["state"], 0) + 1
        status = {key: Variant(*value) for key, value in self.world.status.items()}
        status["states"] = Variant("a{su}", states)
        status["projects"] = Variant("u", len(self.world.projects))
        status["instances"] = Variant("u", len(self.world.instances))
        return status

    @method()
    def RegisterProject(self, repository: "s", options: "a{sv}") -> "o":
        self.note("RegisterProject", repository, unpacked(options))
        name = unpacked(options).get("name") or repository.rsplit("/", 1)[-1]
        return self.world.project(name, repository)["object"]

    @method()
    def ListProjects(self) -> "aa{sv}":
        return [packed(record, PROJECT_FIELDS) for record in self.world.projects.values()]

    @method()
    def GetProject(self, name: "s") -> "o":
        for record in self.world.projects.values():
            if record["name"] == name:
                return record["object"]
        raise refuse(ErrorCode.NO_SUCH_PROJECT, f"there is no project {name!r}")

    @method()
    def FindProject(self, path: "s") -> "a{sv}":
        self.note("FindProject", path)
        for record in self.world.instances.values():
            if path == record["worktree"]:
                project = next(p for p in self.world.projects.values() if p["name"] == record["project"])
                return packed(project, PROJECT_FIELDS) | {"instance": Variant("s", record["name"])}
        for project in self.world.projects.values():
            if (path + "/").startswith(project["repository"] + "/"):
                return packed(project, PROJECT_FIELDS)
        raise refuse(ErrorCode.NO_SUCH_PROJECT, f"{path} is in no registered project")

    @method()
    def CreateInstance(self, project: "s", name: "s", options: "a{sv}") -> "o":
        given = unpacked(options)
        self.note("CreateInstance", project, name, given)
        if any(record["address"] == f"{project}/{name}" for record in self.world.instances.values()):
            raise refuse(ErrorCode.INSTANCE_EXISTS, f"{project}/{name} exists already", "Choose another name.")
        for record in self.world.projects.values():
            if record["name"] == project and not record["setup_agreed"]:
                raise refuse(ErrorCode.SETUP_NOT_AGREED, f"the set-up steps of {project} are not agreed to")
        state = "idle" if given.get("start", True) else "stopped"
        record = self.world.instance(project, name or "brisk-otter", state)
        self.server.export_instance(record)
        return record["object"]

    @method()
    def ListInstances(self, wanted: "a{sv}") -> "aa{sv}":
        given = unpacked(wanted)
        return [
            packed(record, INSTANCE_FIELDS)
            for record in self.world.instances.values()
            if given.get("project", record["project"]) == record["project"]
            and record["state"] in given.get("states", list(State))
        ]

    @method()
    def GetInstance(self, address: "s") -> "o":
        self.note("GetInstance", address)
        return self.world.by_address(address)["object"]

    @method()
    def ListWorktrees(self, project: "s") -> "aa{sv}":
        return [
            packed(
                {
                    "project": record["project"],
                    "instance": record["name"],
                    "path": record["worktree"],
                    "branch": record["branch"],
                    "head": "abc",
                    "base": "main",
                    "ahead": 3,
                    "behind": 1,
                    "dirty": record["address"] in self.world.dirty,
                    "missing": False,
                    "state": record["state"],
                },
                contract.WORKTREE_FIELDS,
            )
            for record in self.world.instances.values()
            if project in ("", record["project"])
        ]

    @method()
    def ListEvents(self, wanted: "a{sv}") -> "aa{sv}":
        given = unpacked(wanted)
        self.note("ListEvents", given)
        rows = [
            row
            for row in self.world.events
            if row["id"] > given.get("after", 0)
            and given.get("project", row["project"]) == row["project"]
            and given.get("instance", f"{row['project']}/{row['instance']}") == f"{row['project']}/{row['instance']}"
            and row["kind"] in given.get("kinds", [row["kind"]])
            and row["kind"].startswith("audit.") == given.get("audit", False)
        ]
        limit = min(given.get("limit", 1000), 10_000)
        rows = rows[::-1][:limit] if given.get("newest") else rows[:limit]
        return [packed(row, contract.EVENT_FIELDS) for row in rows]

    @method()
    def Doctor(self) -> "aa{sv}":
        self.note("Doctor")
        return [packed(check, contract.CHECK_FIELDS) for check in self.world.checks]

    @method()
    def GetSettings(self) -> "aa{sv}":
        return [packed(row, contract.SETTING_FIELDS) for row in self.world.settings]

    @method()
    def PrepareHost(self) -> "as":
        self.note("PrepareHost")
        return self.world.changes

    @method()
    def Reload(self):
        self.note("Reload")

    @method()
    def Shutdown(self):
        self.note("Shutdown")

    @method()
    def SetSecret(self, name: "s", value: "s"):
        self.note("SetSecret", name)
        self.world.secrets[name] = value

    @method()
    def RemoveSecret(self, name: "s"):
        self.note("RemoveSecret", name)
        del self.world.secrets[name]

    @method()
    def ListSecrets(self) -> "as":
        return list(self.world.secrets)


class ProjectInterface(ServiceInterface):
    def __init__(self, world: World, record: Record) -> None:
        super().__init__(contract.PROJECT_INTERFACE)
        self.world, self.record = world, record

    @method()
    def AgreeSetup(self, digest: "s"):
        self.world.calls.append(("AgreeSetup", (digest,)))
        self.record["setup_agreed"] = True

    @method()
    def Remove(self, options: "a{sv}"):
        self.world.calls.append(("RemoveProject", (self.record["name"],)))
        if any(record["project"] == self.record["name"] for record in self.world.instances.values()):
            raise refuse(ErrorCode.PROJECT_IN_USE, f"{self.record['name']} has instances", "Remove them first.")


class InstanceInterface(ServiceInterface):
    def __init__(self, world: World, record: Record, server: "Server") -> None:
        super().__init__(contract.INSTANCE_INTERFACE)
        self.world, self.record, self.server = world, record, server

    def note(self, member: str, *arguments: Any) -> None:
        self.world.calls.append((member, (self.record["address"], *arguments)))
        for key in (member, f"{member} {self.record['address']}"):
            if key in self.world.fail:
                raise self.world.fail[key]

    @dbus_property(access=PropertyAccess.READ)
    def State(self) -> "s":
        return self.record["state"]

    @method()
    def Describe(self) -> "a{sv}":
        self.note("Describe")
        return packed(self.record, INSTANCE_FIELDS)

    @method()
    def Start(self, options: "a{sv}"):
        self.note("Start", unpacked(options))
        if State(self.record["state"]).running:
            raise refuse(ErrorCode.WRONG_STATE, f"{self.record['address']} is running already")
        self.record["state"] = "working"

    @method()
    def Stop(self, options: "a{sv}"):
        self.note("Stop")
        if not State(self.record["state"]).running:
            raise refuse(ErrorCode.WRONG_STATE, f"{self.record['address']} is not running")
        self.record["state"] = "stopped"

    @method()
    def Restart(self, options: "a{sv}"):
        self.note("Restart", unpacked(options))

    @method()
    def Remove(self, options: "a{sv}") -> "a{sv}":
        force = unpacked(options).get("force", False)
        self.note("Remove", force)
        dirty = self.record["address"] in self.world.dirty
        if dirty and not force:
            raise refuse(ErrorCode.WORKTREE_DIRTY, f"{self.record['address']} has uncommitted changes", "Commit them.")
        self.server.remove_instance(self.record)
        return {
            "branch": Variant("s", self.record["branch"]),
            "branch_deleted": Variant("b", not dirty),
            "kept_ref": Variant("s", "refs/ccorch/removed/x" if dirty else ""),
        }

    @method()
    def Send(self, text: "s", options: "a{sv}") -> "b":
        self.note("Send", text)
        return self.record["state"] != "working"

    @method()
    def Interrupt(self):
        self.note("Interrupt")

    @method()
    def Attach(self, read_only: "b", window: "s") -> "asa{ss}":
        self.note("Attach", read_only, window)
        return [self.world.argv, {"CCORCH_TEST": "1"}]

    @method()
    def Detach(self) -> "u":
        self.note("Detach")
        return self.world.terminals

    @method()
    def Screen(self) -> "s":
        return "\x1b[31m$ make\x07\n\nok\n\n\n"

    @method()
    def Diff(self, options: "a{sv}") -> "s":
        self.note("Diff", unpacked(options))
        return self.world.diff

    @method()
    def Commits(self) -> "a(ss)":
        return self.world.commits

    @method()
    def Merge(self) -> "s":
        self.note("Merge")
        return "fedcba9876543210"


class Server:
    """Runs the service in a thread; every method may be called from any other thread."""

    def __init__(self, address: str, world: World, *, name: str = Naming().bus_name) -> None:
        self.world = world
        self._address = address
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="service")
        self._bus: Any = None
        self._manager: Any = None
        self._instances: dict[str, Any] = {}

    def __enter__(self) -> "Server":
        self._thread.start()
        self._wait(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._bus = MessageBus(bus_address=self._address)
        self._bus._writer.sock = QuietWriter(self._bus._writer.sock)
        await self._bus.connect()
        self._manager = ManagerInterface(self.world, self)
        self._bus.export(contract.MANAGER_PATH, self._manager)
        for record in self.world.projects.values():
            self._bus.export(record["object"], ProjectInterface(self.world, record))
        for record in self.world.instances.values():
            self.export_instance(record)
        await self._bus.request_name(self._name)

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._bus.disconnect()
        await self._bus.wait_for_disconnect()
        self._loop.remove_reader(self._bus._fd)
        self._loop.remove_writer(self._bus._fd)
        self._bus._stream.close()
        self._bus._sock.close()

    def export_instance(self, record: Record) -> None:
        interface = InstanceInterface(self.world, record, self)
        self._instances[record["object"]] = interface
        self._bus.export(record["object"], interface)

    def remove_instance(self, record: Record) -> None:
        path = record["object"]
        self.world.instances = {key: value for key, value in self.world.instances.items() if value is not record}
        self._bus.unexport(path, self._instances.pop(path))
        self._bus.send(
            Message.new_signal(
                contract.MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [contract.INSTANCE_INTERFACE]]
            )
        )

    # ------------------------------------------------------------ from the test's thread

    def run(self, work: Callable[[], Any]) -> Any:
        """Call *work* in the service's thread."""

        async def call() -> Any:
            return work()

        return self._wait(call())

    def becomes(self, address: str, state: str, **more: Any) -> None:
        """Put an instance into *state* and signal it."""

        def work() -> None:
            record = self.world.by_address(address)
            record |= {"state": state, **more}
            self._instances[record["object"]].emit_properties_changed({"State": state})

        self.run(work)

    def remove(self, address: str) -> None:
        self.run(lambda: self.remove_instance(self.world.by_address(address)))

    def happens(self, message: str, **more: Any) -> None:
        """Add an event and signal it."""

        def work() -> None:
            record = self.world.event(message, **more)
            self._manager.EventAdded(packed(record, contract.EVENT_FIELDS))

        self.run(work)
