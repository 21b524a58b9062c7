# SPDX-License-Identifier: LGPL-2.1-or-later
"""``org.ccorch1.Manager`` at ``/org/ccorch1``: the way in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ccorchd import __version__
from ccorchd.bus.guard import Guard, guarded
from ccorchd.bus.options import Options
from ccorchd.bus.project import describe
from ccorchd.contract import (
    API_VERSION,
    CHECK_FIELDS,
    EVENT_FIELDS,
    INSTANCE_FIELDS,
    MANAGER_INTERFACE,
    SETTING_FIELDS,
    WORKTREE_FIELDS,
    ErrorCode,
    State,
)
from ccorchd.doctor import Doctor
from ccorchd.errors import CcorchError
from ccorchd.host.dbus import PropertyAccess, ServiceInterface, Variant, dbus_property, method, signal, variants
from ccorchd.host.secrets import Secrets
from ccorchd.model import Address, Event
from ccorchd.orchestrator import Orchestrator, Wish
from ccorchd.records import event_fields, instance_fields, instance_path, project_path
from ccorchd.storage import Store

_MOST_EVENTS = 10_000
_STATUS_FIELDS = {
    "version": "s",
    "pid": "u",
    "started": "t",
    "deployment": "s",
    "projects": "u",
    "instances": "u",
    "states": "a{su}",
    "max_instances": "u",
    "host_memory": "t",
    "memory_available": "t",
    "memory_pressure": "d",
    "cpu_pressure": "d",
    "cpus": "u",
    "load": "d",
    "enforced": "as",
    "unenforced": "as",
    "linger": "b",
    "enabled": "b",
    "config_dir": "s",
    "state_dir": "s",
    "data_dir": "s",
    "runtime_dir": "s",
    "slice": "s",
    "unit": "s",
}


class ManagerInterface(ServiceInterface):  # type: ignore[misc]
    """Everything that is not a verb of one project or instance."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        guard: Guard,
        doctor: Doctor,
        secrets: Secrets,
        reload: Callable[[], Awaitable[None]],
        quit_soon: Callable[[], None],
    ) -> None:
        super().__init__(MANAGER_INTERFACE)
        self.guard = guard
        self._orchestrator = orchestrator
        self._doctor = doctor
        self._secrets = secrets
        self._reload = reload
        self._quit_soon = quit_soon

    def subject(self) -> str:
        return ""

    @dbus_property(access=PropertyAccess.READ)
    def Version(self) -> "s":  # type: ignore[name-defined]  # noqa: F821
        return __version__

    @dbus_property(access=PropertyAccess.READ)
    def ApiVersion(self) -> "u":  # type: ignore[name-defined]  # noqa: F821
        return API_VERSION

    @dbus_property(access=PropertyAccess.READ)
    def Suffix(self) -> "s":  # type: ignore[name-defined]  # noqa: F821
        return self._orchestrator.naming.suffix

    @signal()
    def EventAdded(self, event) -> "a{sv}":  # type: ignore[no-untyped-def]  # noqa: F722
        return event

    def announce(self, event: Event) -> None:
        """Signal a new event row."""
        self.EventAdded(variants(EVENT_FIELDS, event_fields(event)))

    # -- projects --------------------------------------------------------------------------------------------------

    @method()
    @guarded(mutating=True)
    async def RegisterProject(self, repository: "s", options: "a{sv}") -> "o":  # type: ignore[name-defined]  # noqa: F722, F821
        given = Options(options, {"name": "s"})
        project = await self._orchestrator.register(repository, given.text("name"), actor=await self.guard.actor())
        return project_path(project.id)

    @method()
    @guarded(mutating=False)
    async def ListProjects(self) -> "aa{sv}":  # noqa: F722
        projects = sorted(self._orchestrator.projects.values(), key=lambda project: project.name)
        return [describe(self._orchestrator, project) for project in projects]

    @method()
    @guarded(mutating=False)
    async def GetProject(self, name: "s") -> "o":  # type: ignore[name-defined]  # noqa: F821
        return project_path(self._orchestrator.project(name).id)

    @method()
    @guarded(mutating=False)
    async def FindProject(self, path: "s") -> "a{sv}":  # type: ignore[name-defined]  # noqa: F722, F821
        project, instance = await self._orchestrator.find(path)
        found = describe(self._orchestrator, project)
        if instance:
            found["instance"] = Variant("s", instance)
        return found

    # -- instances -------------------------------------------------------------------------------------------------

    @method()
    @guarded(mutating=True)
    async def CreateInstance(self, project: "s", name: "s", options: "a{sv}") -> "o":  # type: ignore[name-defined]  # noqa: F722, F821
        given = Options(
            options,
            {
                "agent": "s",
                "prompt": "s",
                "base": "s",
                "branch": "s",
                "limits": "a{ss}",
                "environment": "a{ss}",
                "options": "a{ss}",
                "start": "b",
            },
        )
        wish = Wish(
            agent=given.text("agent"),
            prompt=given.text("prompt"),
            base=given.text("base"),
            branch=given.text("branch"),
            limits=given.mapping("limits"),
            environment=given.mapping("environment"),
            options=given.mapping("options"),
            start=given.flag("start", True),
        )
        record = await self._orchestrator.create(project, name, wish, actor=await self.guard.actor())
        return instance_path(record.id)

    @method()
    @guarded(mutating=False)
    async def ListInstances(self, filters: "a{sv}") -> "aa{sv}":  # noqa: F722
        given = Options(filters, {"project": "s", "states": "as"})
        if project := given.text("project"):
            self._orchestrator.project(project)
        states = given.texts("states")
        unknown = [state for state in states if state not in set(State)]
        if unknown:
            raise CcorchError(
                ErrorCode.INVALID_ARGUMENT, f"{unknown[0]!r} is no state", f"States are: {', '.join(State)}."
            )
        instances = self._orchestrator.instances
        return [
            variants(INSTANCE_FIELDS, instance_fields(record, instances.unit(record), instances.usage(record.id)))
            for record in sorted(instances.records.values(), key=lambda record: (record.project, record.name))
            if (not project or record.project == project) and (not states or record.state in states)
        ]

    @method()
    @guarded(mutating=False)
    async def GetInstance(self, address: "s") -> "o":  # type: ignore[name-defined]  # noqa: F821
        return instance_path(self._orchestrator.instance(address).id)

    @method()
    @guarded(mutating=False)
    async def ListWorktrees(self, project: "s") -> "aa{sv}":  # type: ignore[name-defined]  # noqa: F722, F821
        rows = await self._orchestrator.list_worktrees(project)
        return [variants(WORKTREE_FIELDS, row) for row in rows]

    # -- events ----------------------------------------------------------------------------------------------------

    @method()
    @guarded(mutating=False)
    async def ListEvents(self, filters: "a{sv}") -> "aa{sv}":  # noqa: F722
        given = Options(
            filters,
            {
                "instance": "s",
                "project": "s",
                "kinds": "as",
                "after": "t",
                "limit": "u",
                "audit": "b",
                "newest": "b",
            },
        )
        if instance := given.text("instance"):
            Address.parse(instance)
        limit = min(given.number("limit", 1000), _MOST_EVENTS)

        def work(store: Store) -> list[Event]:
            return store.events(
                address=instance or None,
                project=given.text("project") or None,
                kinds=given.texts("kinds") or None,
                after=given.number("after"),
                limit=limit,
                newest_first=given.flag("newest"),
                audit=given.flag("audit"),
            )

        events = await self._orchestrator.storage.run(work)
        return [variants(EVENT_FIELDS, event_fields(event)) for event in events]

    # -- the host and the daemon -----------------------------------------------------------------------------------

    @method()
    @guarded(mutating=False)
    async def GetStatus(self) -> "a{sv}":  # noqa: F722
        return variants(_STATUS_FIELDS, await self._doctor.status())

    @method()
    @guarded(mutating=False)
    async def Doctor(self) -> "aa{sv}":  # noqa: F722
        return [variants(CHECK_FIELDS, finding) for finding in await self._doctor.examine()]

    @method()
    @guarded(mutating=True)
    async def PrepareHost(self) -> "as":  # type: ignore[name-defined]  # noqa: F821
        return await self._doctor.prepare_host()

    @method()
    @guarded(mutating=False)
    async def GetSettings(self) -> "aa{sv}":  # noqa: F722
        return [variants(SETTING_FIELDS, row) for row in self._orchestrator.config.rows()]

    @method()
    @guarded(mutating=True)
    async def Reload(self) -> None:
        await self._reload()

    @method()
    @guarded(mutating=True)
    async def Shutdown(self) -> None:
        await self._orchestrator.shutdown(why="ccorchctl shutdown")
        self._quit_soon()

    # -- secrets ---------------------------------------------------------------------------------------------------

    @method()
    @guarded(mutating=True)
    async def SetSecret(self, name: "s", value: "s") -> None:  # type: ignore[name-defined]  # noqa: F821
        await self._secrets.set(name, value)

    @method()
    @guarded(mutating=True)
    async def RemoveSecret(self, name: "s") -> None:  # type: ignore[name-defined]  # noqa: F821
        await self._secrets.remove(name)

    @method()
    @guarded(mutating=False)
    async def ListSecrets(self) -> "as":  # type: ignore[name-defined]  # noqa: F821
        return await self._secrets.names()
