# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the launch script reports of a project's set-up steps, before the agent takes its place."""

from __future__ import annotations

from ccorchd.agents.base import Agent
from ccorchd.contract import Reason, State
from ccorchd.instances.launch import SETUP_DONE, SETUP_FAILED, SETUP_STEP
from ccorchd.instances.live import Live
from ccorchd.model import Change, InstanceRecord, Report


def setup_change(report: Report, live: Live, agent: Agent) -> Change | None:
    """Return what *report* says of the set-up, None if it is no report of the launch script."""
    payload = report.payload
    if report.event == SETUP_STEP:
        text = f"{payload.get('number')} of {payload.get('of')}: {payload.get('step')}"
        return Change(
            state=State.STARTING,
            reason=Reason.SETUP,
            reason_text=text,
            doing=f"set-up {text}",
            kind="setup.step",
            message=f"set-up {text}",
        )
    if report.event == SETUP_DONE:
        state = State.STARTING if agent.confirms_prompts else State.WORKING
        return Change(state=state, doing="", kind="setup.step", message="set-up done")
    if report.event == SETUP_FAILED:
        live.setup_failure = f"set-up step {payload.get('number')} ended with status {payload.get('status')}"
        return Change(kind="setup.failed", message=live.setup_failure, priority=3)
    return None


def setup_columns(report: Report, record: InstanceRecord) -> dict[str, object]:
    """Return what is kept of *report*: that the set-up is done, and that the agent has a session from here on."""
    done = report.event == SETUP_DONE
    return {"options": {**record.options, "setup": "done"}, "started": True} if done else {}
