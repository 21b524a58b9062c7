# SPDX-License-Identifier: LGPL-2.1-or-later
"""Any program as an agent. It works while it runs; what its exit status says is all there is to know."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import ClassVar, Final

from ccorchd.agents.arguments import prompt_argument
from ccorchd.agents.base import Agent, Launch, Paths, find_program
from ccorchd.agents.wording import cut, one_line
from ccorchd.contract import ErrorCode, Reason, State
from ccorchd.errors import CcorchError
from ccorchd.model import Change, InstanceRecord, Report

PROMPT_VARIABLE: Final = "CCORCH_PROMPT"
PLACEHOLDER: Final = "{prompt}"


class CommandAgent(Agent):
    """Runs the command line in the option ``command``, split as a shell would, without a shell.

    A prompt is in CCORCH_PROMPT, and takes the place of ``{prompt}`` wherever that stands in an argument; it is never
    split or interpreted there. A program that wants to say more may run the hook helper with the event ``Status`` and
    ``{"state": "working" | "waiting" | "idle", "message": "..."}``.
    """

    kind: ClassVar[str] = "command"
    takes_prompts: ClassVar[bool] = False
    confirms_prompts: ClassVar[bool] = False

    def __init__(self, *, text_limit: int = 16384) -> None:
        self._text_limit = text_limit

    def check(self, environment: Mapping[str, str], options: Mapping[str, str]) -> None:
        find_program(_split(options)[0], environment)

    def prepare(self, instance: InstanceRecord, paths: Paths, *, resume: bool, prompt: str) -> Launch:
        """A command has no session: a restart runs it once more, with the prompt it was created with."""
        prompt = prompt_argument(prompt or instance.prompt)
        argv = [word.replace(PLACEHOLDER, prompt) for word in _split(instance.options)]
        environment = paths.hook_environment()
        if prompt:
            environment[PROMPT_VARIABLE] = prompt
        return Launch(argv, environment)

    def interpret(self, instance: InstanceRecord, report: Report) -> Change:
        if report.event != "Status":
            return Change()
        message = str(report.payload.get("message", ""))
        states = {"working": State.WORKING, "waiting": State.WAITING, "idle": State.IDLE}
        state = states.get(str(report.payload.get("state", "")))
        return Change(
            state=state,
            reason=Reason.ANSWER if state is State.WAITING else Reason.NONE,
            reason_text=(one_line(message, 200) or "an answer") if state is State.WAITING else "",
            doing=one_line(message, 120) if state is State.WORKING else "" if state else None,
            kind="agent.status" if message else "",
            message=one_line(message),
            data={"text": cut(message, self._text_limit)} if message else {},
        )


def _split(options: Mapping[str, str]) -> list[str]:
    command = options.get("command", "")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            f"the command line {one_line(command, 80)!r} cannot be split into words: {error}",
            "Quote it as for a shell.",
        ) from error
    if not words or not words[0]:
        raise CcorchError(
            ErrorCode.INVALID_ARGUMENT,
            "an agent of the kind 'command' needs a command line",
            "Give it with the option command, for example command='make test'.",
        )
    return words
