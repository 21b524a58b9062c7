# SPDX-License-Identifier: LGPL-2.1-or-later
"""The object tree on the bus, kept in step with projects and instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ccorchd.bus.guard import Guard, property_values
from ccorchd.bus.instance import InstanceInterface
from ccorchd.bus.manager import ManagerInterface
from ccorchd.bus.project import ProjectInterface
from ccorchd.contract import INSTANCE_INTERFACE, MANAGER_PATH, PROJECT_INTERFACE
from ccorchd.events import Broadcast
from ccorchd.host.dbus import Bus, ServiceInterface
from ccorchd.model import Event, InstanceRecord
from ccorchd.orchestrator import Orchestrator
from ccorchd.records import instance_path, project_path

_OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"


class Server:
    """Exports the manager, and one object for each project and instance, on one connection."""

    def __init__(
        self,
        bus: Bus,
        orchestrator: Orchestrator,
        guard: Guard,
        manager: ManagerInterface,
        changed: Broadcast[InstanceRecord],
        events: Broadcast[Event],
    ) -> None:
        self._bus = bus
        self._orchestrator = orchestrator
        self._guard = guard
        self._manager = manager
        self._changed = changed
        self._events = events
        self._instances: dict[int, InstanceInterface] = {}
        self._projects: dict[int, ProjectInterface] = {}
        self._cancels: list[Callable[[], None]] = []

    async def start(self, name: str) -> None:
        """Export everything and take the bus name; raise ``HostFailed`` if another daemon has it."""
        self._bus.export(MANAGER_PATH, self._manager)
        self._sync_projects(None)
        for record in self._orchestrator.instances.records.values():
            self._show_instance(record)
        self._cancels = [
            self._changed.subscribe(self._show_instance),
            self._orchestrator.removed.subscribe(self._hide_instance),
            self._orchestrator.projects_changed.subscribe(self._sync_projects),
            self._events.subscribe(self._manager.announce),
        ]
        await self._bus.request_name(name)

    def detach(self) -> None:
        """Tell the bus nothing more, since it is gone. Calls that are under way go on to their end."""
        for cancel in self._cancels:
            cancel()

    async def stop(self, name: str, *, drain: float) -> None:
        """Take no new calls, let running ones finish for *drain* seconds, and leave the bus quietly."""
        self.detach()
        if not self._bus.closed.is_set():
            await self._bus.release_name(name)
        await self._guard.drain(drain)

    def _show_instance(self, record: InstanceRecord) -> None:
        known = self._instances.get(record.id)
        if known is not None:
            known.update(record)
            return
        interface = InstanceInterface(self._orchestrator, self._guard, record)
        self._instances[record.id] = interface
        self._export(instance_path(record.id), interface)

    def _hide_instance(self, record: InstanceRecord) -> None:
        if self._instances.pop(record.id, None) is not None:
            self._unexport(instance_path(record.id), INSTANCE_INTERFACE)

    def _sync_projects(self, _: None) -> None:
        projects = self._orchestrator.projects
        for project_id in set(self._projects) - set(projects):
            del self._projects[project_id]
            self._unexport(project_path(project_id), PROJECT_INTERFACE)
        for project in projects.values():
            if project.id not in self._projects:
                interface = ProjectInterface(self._orchestrator, self._guard, project)
                self._projects[project.id] = interface
                self._export(project_path(project.id), interface)

    def _export(self, path: str, interface: ServiceInterface) -> None:
        """Export and say so from the manager's path, as the specification has it (D-Bus, ObjectManager)."""
        self._bus.export(path, interface)
        shown = property_values(interface)
        self._bus.emit(MANAGER_PATH, _OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", path, {interface.name: shown})

    def _unexport(self, path: str, name: str) -> None:
        self._bus.unexport(path)
        self._bus.emit(MANAGER_PATH, _OBJECT_MANAGER, "InterfacesRemoved", "oas", path, [name])
