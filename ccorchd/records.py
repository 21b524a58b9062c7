# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records as clients see them: the fields of ``contract.*_FIELDS`` with plain values, the same for every face."""

from __future__ import annotations

import json

from ccorchd.contract import INSTANCE_PATH, PROJECT_PATH
from ccorchd.model import Event, InstanceRecord, ProjectRecord, Usage


def instance_path(instance_id: int) -> str:
    """Return the object path of an instance."""
    return f"{INSTANCE_PATH}/i{instance_id}"


def project_path(project_id: int) -> str:
    """Return the object path of a project."""
    return f"{PROJECT_PATH}/p{project_id}"


def microseconds(seconds: float) -> int:
    """Return a time of the record as the API has it: microseconds since the epoch."""
    return int(seconds * 1_000_000)


def instance_fields(record: InstanceRecord, unit: str, usage: Usage | None) -> dict[str, object]:
    """Return an instance's record; what is not known is None."""
    fields: dict[str, object] = {
        "name": record.name,
        "project": record.project,
        "address": str(record.address),
        "state": record.state,
        "reason": record.reason,
        "reason_text": record.reason_text,
        "since": microseconds(record.since),
        "doing": record.doing,
        "agent": record.agent,
        "session_id": record.session_id,
        "branch": record.branch,
        "base": record.base,
        "worktree": record.worktree,
        "unit": unit,
        "pid": record.pid or None,
        "port": record.port,
        "created": microseconds(record.created),
        "restarts": record.restarts,
        "limits": record.limits.strings(),
        "prompt": record.prompt,
        "object": instance_path(record.id),
    }
    if usage is not None:
        fields.update(
            {
                "memory_current": usage.memory if record.state.running else None,
                "memory_peak": usage.memory_peak,
                "cpu_usage_seconds": usage.cpu_seconds,
                "tasks_current": usage.tasks if record.state.running else None,
                "oom_kills": usage.oom_kills,
                "memory_pressure": usage.memory_pressure,
                "cpu_pressure": usage.cpu_pressure,
                "measured": usage.source,
            }
        )
    return fields


def project_fields(
    project: ProjectRecord, instances: int, setup: list[str], digest: str, agreed: bool
) -> dict[str, object]:
    """Return a project's record."""
    return {
        "name": project.name,
        "repository": project.repository,
        "created": microseconds(project.created),
        "instances": instances,
        "setup": setup,
        "setup_hash": digest,
        "setup_agreed": agreed,
        "object": project_path(project.id),
    }


def event_fields(event: Event) -> dict[str, object]:
    """Return an event's record."""
    return {
        "id": event.id,
        "time": microseconds(event.time),
        "kind": event.kind,
        "project": event.project,
        "instance": event.instance,
        "actor": event.actor,
        "priority": event.priority,
        "message": event.message,
        "data": json.dumps(event.data, ensure_ascii=False),
    }
