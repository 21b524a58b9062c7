# SPDX-License-Identifier: LGPL-2.1-or-later
"""Agent profiles: one file per kind of agent."""

from __future__ import annotations

from typing import Any, Protocol

from ccorchd.agents.base import Agent
from ccorchd.agents.claude import ClaudeAgent
from ccorchd.agents.command import CommandAgent
from ccorchd.agents.demo import DemoAgent


class Settings(Protocol):
    """What the profiles need of :class:`ccorchd.config.Config`."""

    def __getitem__(self, key: str, /) -> Any: ...


def registry(settings: Settings) -> dict[str, Agent]:
    """Return all agent profiles by kind, made from *settings*; make them anew after a reload."""
    limit = int(settings["events.text_limit"])
    agents: tuple[Agent, ...] = (
        ClaudeAgent(
            command=str(settings["claude.command"]),
            permission_mode=str(settings["claude.permission_mode"]),
            model=str(settings["claude.model"]),
            config_dir=str(settings["claude.config_dir"]),
            text_limit=limit,
        ),
        DemoAgent(text_limit=limit),
        CommandAgent(text_limit=limit),
    )
    return {agent.kind: agent for agent in agents}
