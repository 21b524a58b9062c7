# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo agent: a terminal program that works on a git repository like a coding agent, without any account.

    python3 -I demo_agent.py (--session-id ID | --resume ID) [--name NAME] [-- PROMPT]

It runs in the worktree. For each prompt it reads the repository, edits real files, runs a command, and commits; what
it does follows from the prompt's words (:mod:`ccorchd.agents.demo_work`). It reports through the hook helper as Claude
Code does, keeps its session in the worktree's git directory, and goes on with it after ``--resume``. A prompt
``continue`` takes up what was not finished. ``/exit`` (or Ctrl-D) ends it, Ctrl-C ends the turn.

Words in a prompt that make it do something special first:

==================  ====================================================================================================
``#permission``     asks for a permission at the keyboard (y or n) and does nothing when it is refused
``#question``       asks a question and waits for a line
``#sleep SECONDS``  waits
``#balloon [SIZE]`` a child allocates SIZE (like 300M; by default more than the memory limit) until the kernel kills it
``#orphan``         leaves a process behind that has no parent and a session of its own
``#port``           listens on $PORT, until the agent ends
``#stash``          puts an edit aside as ``git stash`` does, and takes it back
``#gc``             runs ``git gc``
``#crash``          dies by SIGSEGV
``#exit N``         exits with status N
==================  ====================================================================================================

A prompt of nothing but such words does no further work. CCORCH_DEMO_PACE is the time between two steps in seconds
(0.5).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    # -I keeps the script's folder out of sys.path, on purpose; our own package comes last, so it shadows nothing.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from ccorchd.agents import demo_misbehaviour
from ccorchd.agents.demo_terminal import Interrupted, Terminal, Terminated
from ccorchd.agents.demo_work import Commit, Plan, Read, Repository, Run, Step, Write, make_plan

_HOOK: Final = Path(__file__).resolve().with_name("hook.py")
_SESSION_FILE: Final = "ccorch-demo-session.json"
_DIRECTIVE: Final = re.compile(
    r"(?<!\S)#(permission|question|orphan|port|stash|gc|crash|balloon|exit|sleep)\b(?:[ \t]+([0-9][0-9.]*[KMGkmg]?))?"
)
_VALUED: Final = frozenset({"balloon", "exit", "sleep"})
_ORPHAN_SECONDS: Final = 3600


class Failed(Exception):
    """The turn cannot go on; the text says why."""


class Session:
    """What was said so far, in a file that a resumed process reads. *made* are files of the unfinished prompt."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.identity = identity
        self.prompts: list[dict[str, Any]] = []
        self.unfinished = ""
        self.made: list[str] = []

    @classmethod
    def open(cls, path: Path, identity: str, *, resume: bool) -> Session:
        """Raise :class:`Failed` if a session to be resumed is not there, or a new one is there already."""
        session = cls(path, identity)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = stored["session_id"] == identity
            prompts, unfinished, made = list(stored["prompts"]), str(stored["unfinished"]), list(stored["made"])
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if resume and not known:
            raise Failed(f"demo agent: no session {identity} to resume")
        if not resume and known:
            raise Failed(f"demo agent: no session can be started, as {identity} is there already")
        if resume:
            session.prompts, session.unfinished, session.made = prompts, unfinished, made
        else:
            session.save()
        return session

    def save(self) -> None:
        document = {
            "session_id": self.identity,
            "prompts": self.prompts,
            "unfinished": self.unfinished,
            "made": self.made,
        }
        new = self._path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)

    @property
    def cache(self) -> Path:
        """A folder for byte code that goes with the worktree; one in /tmp could be made by somebody else."""
        return self._path.with_name("ccorch-demo-cache")

    @property
    def said(self) -> list[str]:
        return [str(entry["prompt"]) for entry in self.prompts]


class DemoAgent:
    """One run of the program."""

    def __init__(self, terminal: Terminal, session: Session, root: Path, name: str) -> None:
        self._terminal = terminal
        self._session = session
        self._root = root
        self._name = name
        self._pace = _pace()
        self._listening: socket.socket | None = None
        self._identity: list[str] | None = None

    # -- the life of the program -------------------------------------------------------------------------------------

    def run(self, first_prompt: str, *, resumed: bool) -> int:
        """Take prompts until something ends the program; return its exit status."""
        terminal = self._terminal
        terminal.say(f"demo agent {self._name}, session {self._session.identity}, in {self._root}")
        if resumed:
            terminal.say(f"I remember {len(self._session.prompts)} earlier prompts:")
            for said in self._session.said[-5:]:
                terminal.say(f"  - {_first_line(said)}")
            if self._session.unfinished:
                terminal.say(f"Not finished: {_first_line(self._session.unfinished)} (say 'continue')")
        if first_prompt:
            terminal.submitted.append(first_prompt)
        self._report(
            "SessionStart",
            source="resume" if resumed else "startup",
            prompts=len(self._session.prompts),
            has_prompt=bool(first_prompt),
        )
        try:
            while True:
                try:
                    terminal.title(f"demo {self._name}: idle")
                    terminal.ready()
                    prompt = terminal.next_prompt()
                except Interrupted:
                    terminal.forget_line()
                    continue
                if prompt.strip() in ("/exit", "/quit"):
                    return self._end("exit")
                self._turn(prompt)
        except Terminated as ended:
            return self._end(ended.reason)
        except SystemExit as ended:
            self._end(f"exit {ended.code}")
            raise

    def _end(self, reason: str) -> int:
        if self._listening is not None:
            self._listening.close()
        self._terminal.say(f"Session ends ({reason}).")
        self._report("SessionEnd", reason=reason)
        return 0

    def _turn(self, prompt: str) -> None:
        terminal, session = self._terminal, self._session
        terminal.title(f"demo {self._name}: working")
        terminal.say(f"\nprompt: {prompt}")
        task = prompt
        if prompt.strip().lower() in ("continue", "go on") and session.unfinished:
            # Without what made it end: a crash that was asked for would come again.
            task = _DIRECTIVE.sub("", session.unfinished).strip()
            terminal.say(f"Taking up: {_first_line(task)}")
        else:
            session.made = []
        session.unfinished = task
        session.save()
        # Only now: a prompt that is confirmed must be remembered, whatever happens next.
        self._report("UserPromptSubmit", prompt=prompt)
        try:
            answer = self._work(task)
        except Interrupted:
            terminal.say("Interrupted.")
            self._report("Interrupted")
            return
        except (Failed, OSError) as error:
            terminal.say(f"error: {error}")
            self._report("Error", message=str(error))
            answer = f"I could not finish: {error}"
        session.prompts.append({"time": time.time(), "prompt": task, "answer": answer})
        session.unfinished, session.made = "", []
        session.save()
        terminal.say(f"answer: {answer}")
        self._report("Stop", last_assistant_message=answer)

    def _work(self, prompt: str) -> str:
        directives = [(match[1], match[2] or "") for match in _DIRECTIVE.finditer(prompt)]
        rest = _DIRECTIVE.sub(lambda match: "" if match[1] in _VALUED or not match[2] else match[2], prompt).strip()
        remarks = []
        for name, value in directives:
            remark, go_on = self._special(name, value, rest or prompt)
            remarks.append(remark)
            if not go_on:
                return " ".join(remarks)
        if rest:
            remarks.append(self._do(rest))
        return " ".join(filter(None, remarks)) or "Nothing to do."

    def _do(self, prompt: str) -> str:
        self._terminal.pump(self._pace)
        plan: Plan = make_plan(Repository.read(self._root, self._session.made), prompt, self._session.said)
        self._terminal.say(f"plan: {plan.kind}, {len(plan.steps)} steps")
        commits = 0
        for step in plan.steps:
            self._terminal.pump(self._pace)
            commits += self._step(step)
        return f"{plan.summary} {commits} {'commit' if commits == 1 else 'commits'}."

    # -- steps -------------------------------------------------------------------------------------------------------

    def _step(self, step: Step) -> int:
        """Do *step*; return how many commits it made."""
        match step:
            case Read(path):
                with self._tool("Read", path) as result:
                    text = (self._root / path).read_bytes()
                    result["output"] = f"{text.count(10)} lines"
            case Write(path, text, new):
                with self._tool("Write" if new else "Edit", path) as result:
                    target = self._root / path
                    if not new and target.is_symlink():
                        raise Failed(f"{path} has become a link")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if new:
                        self._session.made.append(path)
                        self._session.save()
                    target.write_text(text, encoding="utf-8")
                    result["output"] = f"{text.count(chr(10))} lines"
            case Run(argv, shown, needed):
                status, output = self._command(argv, shown or " ".join(argv))
                if status and needed:
                    raise Failed(f"{shown or ' '.join(argv)} ended with status {status}: {_last_line(output)}")
            case Commit(paths, subject, body):
                return self._commit(paths, subject, body)
        return 0

    def _commit(self, paths: list[str], subject: str, body: str) -> int:
        self._git("add", "--", *paths)
        if (
            subprocess.run(
                ["git", "diff", "--cached", "--quiet", "--", *paths], cwd=self._root, stdin=subprocess.DEVNULL
            ).returncode
            == 0
        ):
            return 0  # an earlier process had got this far already
        argv = ["git", *self._author(), "-c", "commit.gpgSign=false", "commit", "-q", "-m", subject]
        argv += [*(["-m", body] if body else []), "--", *paths]
        status, output = self._command(argv, f'git commit -m "{subject}"')
        if status:
            raise Failed(f"git commit ended with status {status}: {_last_line(output)}")
        return 1

    def _author(self) -> list[str]:
        """Return options that name an author, only where the user has set none."""
        if self._identity is None:
            known = all(
                os.environ.get(variable) or self._git("config", "--get", key, check=False).strip()
                for variable, key in (("GIT_AUTHOR_NAME", "user.name"), ("GIT_AUTHOR_EMAIL", "user.email"))
            )
            self._identity = [] if known else ["-c", "user.name=ccorch demo agent", "-c", "user.email=demo@localhost"]
        return self._identity

    def _git(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            process_group=0,
        )
        if check and done.returncode:
            raise Failed(f"git {arguments[0]} ended with status {done.returncode}: {_last_line(done.stderr)}")
        return done.stdout

    def _command(self, argv: list[str], shown: str) -> tuple[int, str]:
        """Run a command as a tool call and return its status and output; a signal to the agent ends it too."""
        with self._tool("Bash", shown) as result:
            status, output = self._child(argv)
            if status:
                result["outcome"] = f"failed: exit code {status}" if status > 0 else f"killed: {_signal(-status)}"
            result["output"] = output
            return status, output

    def _child(self, argv: list[str]) -> tuple[int, str]:
        with tempfile.TemporaryFile() as out:
            # A group of its own: Ctrl-C is for the agent, which passes on what is meant for the child.
            with subprocess.Popen(
                argv,
                cwd=self._root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                process_group=0,
                env=_environment(self._session.cache),
            ) as child:
                try:
                    while child.poll() is None:
                        self._terminal.pump(0.02)
                except (Interrupted, Terminated):
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGTERM)
                    raise
            out.seek(0)
            return child.returncode, out.read(65536).decode("utf-8", "replace")

    @contextmanager
    def _tool(self, name: str, detail: str) -> Iterator[dict[str, Any]]:
        """Report a tool call around the block; what the block puts into the mapping goes into the second report."""
        self._report("PreToolUse", tool_name=name, detail=detail)
        result: dict[str, Any] = {"outcome": "ok"}
        began = time.monotonic()
        try:
            yield result
        except Interrupted:
            result["outcome"] = "interrupted"
            raise
        except (Failed, OSError) as error:
            result["outcome"] = f"failed: {error}"
            raise
        finally:
            took = time.monotonic() - began
            self._terminal.say(f"  {name} {detail} ({took:.1f} s, {result['outcome']})")
            self._report("PostToolUse", tool_name=name, detail=detail, duration_ms=round(took * 1000), **result)

    # -- directives --------------------------------------------------------------------------------------------------

    def _special(self, name: str, value: str, task: str) -> tuple[str, bool]:
        """Carry out a directive; return a remark for the answer and whether the turn goes on."""
        terminal = self._terminal
        match name:
            case "permission":
                call = {"tool_name": "Bash", "detail": f"git commit, for: {_first_line(task)}"}
                terminal.say(f"May I run: {call['tool_name']} {call['detail']}? (y/n)")
                self._report("PermissionRequest", **call)
                granted = terminal.key("yn") == "y"
                terminal.say("granted" if granted else "refused")
                self._report("PermissionResult", granted=granted, **call)
                return "" if granted else "Refused, so I did nothing.", granted
            case "question":
                question = "How shall I go about it?"
                terminal.say(f"{question} (answer and press Enter)")
                self._report("Question", question=question)
                answer = terminal.answer()
                self._report("Answer", answer=answer)
                return f"You said: {_first_line(answer)}.", True
            case "sleep":
                with self._tool("Bash", f"sleep {value or '1'}"):
                    terminal.pump(float(value or 1))
                return "", True
            case "balloon":
                return self._balloon(value), True
            case "orphan":
                argv = [sys.executable, "-I", __file__, "--child", "orphan", str(_ORPHAN_SECONDS)]
                _, output = self._command(argv, f"setsid sleep {_ORPHAN_SECONDS} &")
                return f"Left process {output.strip()} behind.", True
            case "port":
                return self._listen(), True
            case "stash":
                return self._stash(), True
            case "gc":
                status, output = self._command(["git", "gc", "--quiet"], "git gc")
                return "Collected garbage." if status == 0 else f"git gc: {_last_line(output)}.", True
            case "crash":
                terminal.say("crashing")
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGSEGV, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGSEGV)
        raise SystemExit(int(float(value or 0)) & 255)

    def _balloon(self, value: str) -> str:
        limit = demo_misbehaviour.memory_limit()
        if value:
            size = _size(value)
        elif limit is not None:
            size = limit * 5 // 4
        else:
            raise Failed("there is no memory limit here, so a balloon needs a size, like #balloon 300M")
        text = f"{size / 1024**2:.0f} MiB"
        argv = [sys.executable, "-I", __file__, "--child", "balloon", str(size)]
        status, _ = self._command(argv, f"balloon of {text}")
        if status >= 0:
            return f"A child had {text} in use and let go of them."
        message = f"my child demo-balloon was killed by {_signal(-status)} on its way to {text}"
        self._terminal.say(f"error: {message}")
        self._report("Error", message=message, signal=-status)
        return f"{message[0].upper()}{message[1:]}; I go on."

    def _listen(self) -> str:
        number = os.environ.get("PORT") or os.environ.get("CCORCH_PORT") or ""
        if not number.isdigit():
            raise Failed("PORT is not set")
        with self._tool("Bash", f"listen on port {number}"):
            if self._listening is None:
                try:
                    self._listening = socket.create_server(("127.0.0.1", int(number)))
                except OSError as error:
                    raise Failed(f"port {number} cannot be had: {error.strerror}") from error
                threading.Thread(target=self._serve, args=(self._listening,), daemon=True).start()
        return f"Listening on port {number}."

    def _serve(self, listening: socket.socket) -> None:
        body = f"demo agent {self._name}\n"
        answer = f"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(answer)

    def _stash(self) -> str:
        """Stash and pop an edit; under refs/worktree, as all worktrees of a repository share refs/stash."""
        listed = Repository.read(self._root).files
        if not listed:
            raise Failed("there is no file to edit")
        path = self._root / listed[0]
        with self._tool("Bash", "git stash"):
            before = path.read_bytes()
            path.write_bytes(before + b"\nstashed\n")
            commit = self._git(*self._author(), "stash", "create").strip()
            self._git("update-ref", "refs/worktree/ccorch-demo-stash", commit)
            self._git("checkout", "-q", "--", listed[0])
        self._terminal.pump(self._pace)
        with self._tool("Bash", "git stash pop"):
            self._git("stash", "apply", "-q", "refs/worktree/ccorch-demo-stash")
            self._git("update-ref", "-d", "refs/worktree/ccorch-demo-stash")
            if path.read_bytes() != before + b"\nstashed\n":
                raise Failed("the stash that came back is not mine")
            path.write_bytes(before)
        return "Stashed an edit and took it back."

    # -- reports -----------------------------------------------------------------------------------------------------

    def _report(self, event: str, **payload: Any) -> None:
        if not os.environ.get("CCORCH_SOCKET") and not os.environ.get("CCORCH_SPOOL"):
            return
        payload["session_id"] = self._session.identity
        with suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                [sys.executable, "-I", "-S", str(_HOOK), event],
                input=json.dumps(payload).encode(),
                stdout=subprocess.DEVNULL,
                timeout=30,
                process_group=0,  # Ctrl-C at the terminal must not take a report with it
            )


def _environment(cache: Path) -> dict[str, str]:
    """Commands leave no byte code in the worktree and ask nothing."""
    return {**os.environ, "PYTHONPYCACHEPREFIX": str(cache), "GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true"}


def _pace() -> float:
    try:
        return min(max(float(os.environ.get("CCORCH_DEMO_PACE", "0.5")), 0.0), 3600.0)
    except ValueError:
        return 0.5


def _size(text: str) -> int:
    factors = {"K": 1024, "M": 1024**2, "G": 1024**3}
    factor = factors.get(text[-1].upper(), 1)
    return max(4096, int(float(text.rstrip("KMGkmg")) * factor))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:100]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")[:200]


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo_agent.py", description=(__doc__ or "").splitlines()[0])
    session = parser.add_mutually_exclusive_group(required=True)
    session.add_argument("--session-id", metavar="ID")
    session.add_argument("--resume", metavar="ID")
    session.add_argument("--child", nargs=2, metavar=("WHAT", "VALUE"), help=argparse.SUPPRESS)
    parser.add_argument("--name", default="demo")
    parser.add_argument("prompt", nargs="?", default="")
    arguments = parser.parse_args()
    if arguments.child:
        what, value = arguments.child
        if what == "balloon":
            demo_misbehaviour.balloon(int(value))
        else:
            demo_misbehaviour.orphan(float(value))
        return 0
    git = subprocess.run(
        ["git", "rev-parse", "--show-toplevel", "--absolute-git-dir"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if git.returncode:
        print(f"demo agent: {_last_line(git.stderr)}", file=sys.stderr)
        return 1
    root, git_dir = git.stdout.splitlines()
    identity = arguments.resume or arguments.session_id
    try:
        session_file = Session.open(Path(git_dir) / _SESSION_FILE, identity, resume=bool(arguments.resume))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    with Terminal() as terminal:
        agent = DemoAgent(terminal, session_file, Path(root), arguments.name)
        return agent.run(arguments.prompt, resumed=bool(arguments.resume))


if __name__ == "__main__":
    sys.exit(main())
