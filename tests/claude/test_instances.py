# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real Claude Code under the installed daemon, driven by the installed command line, in a booted machine.

The API is the scripted one on loopback, the key is made up, and Claude Code's configuration is a folder of the test's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "system"))

from fake_api import FakeApi, prompts, tool_results
from fetch import binary

from daemons import INSTALLED_UNIT, Daemon, eventually, make_repository, run, suffix_for

pytestmark = pytest.mark.skipif(
    not INSTALLED_UNIT.exists() or "XDG_RUNTIME_DIR" not in os.environ,
    reason="needs the installed package and a user manager: packaging/test run claude",
)

BYPASS = ("--option", "permission_mode=bypassPermissions")


class Desk:
    """A daemon with the project ``sample``, Claude Code as its agent, and the API that this talks to."""

    def __init__(self, daemon: Daemon, api: FakeApi, root: Path, key: str) -> None:
        self.daemon = daemon
        self.api = api
        self.config = root / "claude"
        self.repository = make_repository(root / "sample")
        self.key = key

    def create(self, name: str, prompt: str = "", *words: str) -> str:
        address = f"sample/{name}"
        given = ["--prompt", prompt] if prompt else []
        self.daemon.ok("instance", "create", address, *given, "--env", f"ANTHROPIC_BASE_URL={self.api.url}", *words)
        return address

    def send(self, address: str, text: str) -> bool:
        """Send a prompt by standard input, as it holds more than an argument may; return whether it is confirmed."""
        ended = subprocess.run(
            ["ccorchctl", "instance", "send", address, "-", "-o", "json"],
            input=text,
            text=True,
            capture_output=True,
            env={**os.environ, "CCORCH_SUFFIX": self.daemon.naming.suffix},
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr + self.screen(address)
        taken: bool = json.loads(ended.stdout)["taken"]
        return taken

    def keys(self, address: str, *keys: str) -> None:
        """Press keys in the agent's pane, as somebody attached to it does."""
        ended = run("tmux", "-S", str(self.tmux_socket(address)), "send-keys", "-t", "%0", *keys)
        assert ended.returncode == 0, ended.stderr

    def screen(self, address: str) -> str:
        return run("tmux", "-S", str(self.tmux_socket(address)), "capture-pane", "-p", "-t", "%0").stdout

    def tmux_socket(self, address: str) -> Path:
        number = self.daemon.instance(address)["object"].rpartition("i")[2]
        return self.daemon.naming.runtime_dir / "i" / number / "tmux.sock"

    def status(self) -> str:
        """Return what the live session files hold."""
        return "".join(file.read_text() for file in (self.config / "sessions").glob("*.json"))

    def worktree(self, address: str) -> Path:
        return Path(self.daemon.instance(address)["worktree"])

    def idle(self, address: str) -> dict[str, Any]:
        """Wait until the instance is idle and return its record."""
        ended = self.daemon.ctl("instance", "wait", address, "--until", "idle", "--timeout", "40s")
        assert ended.returncode == 0, ended.stderr + self.screen(address) + self.daemon.journal()
        return self.daemon.instance(address)

    def events(self, address: str, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.daemon.events(address) if event["kind"] == kind]

    def answers(self, address: str, count: int) -> None:
        """Wait until *count* turns are over, and recorded as such."""
        self.idle(address)
        eventually(f"{address} has answered", lambda: len(self.events(address, "agent.answer")) >= count)
        self.idle(address)

    def written(self, text: str) -> None:
        """Wait until *text* is in a transcript, which a resumed session reads; it comes up to 0.4 s after Stop."""
        folder = self.config / "projects"
        eventually(f"{text} is remembered", lambda: any(text in file.read_text() for file in folder.rglob("*.jsonl")))


@contextlib.contextmanager
def set_up(name: str, root: Path, **variables: str) -> Iterator[Desk]:
    """Run a daemon with a secret and a project; afterwards nothing of it is left."""
    program = binary() or binary(Path("/opt/claude-test"))
    if program is None:
        pytest.skip("Claude Code is not there: run tests/claude/fetch.py")
    daemon = Daemon(suffix_for(name), root)
    with FakeApi() as api:
        desk = Desk(daemon, api, root, f"sk-ant-made-up-{uuid.uuid4()}")
        settings = {
            "CCORCH_INSTANCES_AGENT": "claude",
            "CCORCH_CLAUDE_COMMAND": str(program),
            "CCORCH_CLAUDE_CONFIG_DIR": str(desk.config),
            "CCORCH_AGENTS_ENVIRONMENT": "ANTHROPIC_BASE_URL,HOME",
        }
        daemon.start(**{**settings, **variables})
        try:
            stored = subprocess.run(
                ["ccorchctl", "secret", "set", "anthropic-api-key"],
                input=desk.key,
                text=True,
                env={**os.environ, "CCORCH_SUFFIX": daemon.naming.suffix},
                timeout=60,
                check=False,
            )
            assert stored.returncode == 0
            daemon.ok("init", str(desk.repository), "--name", "sample", "--yes")
            yield desk
        finally:
            daemon.close()
            assert not daemon.scopes()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One daemon for most of the tests here: to set one up for each would take longer than they do."""
    with set_up("claude", tmp_path_factory.mktemp("office")) as desk:
        yield desk


@pytest.fixture
def desk(office: Desk) -> Iterator[Desk]:
    """The daemon, with no request yet at the API; no instance runs afterwards."""
    office.api.requests.clear()
    yield office
    office.daemon.ok("instance", "stop", "--all", "--yes")
    assert not office.daemon.scopes()


class States:
    """The states of instances as the bus announces them, each once, in order."""

    def __init__(self, daemon: Daemon, log: Path) -> None:
        self._log = log
        rule = f"type='signal',sender='{daemon.naming.bus_name}',path_namespace='/org/ccorch1'"
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                ["busctl", "--user", "--json=short", "--match", rule, "monitor"],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
            )
        # It monitors once it has given up its own name; only then is it missing from the list.
        eventually("the monitor listens", lambda: self._started(daemon))

    def _started(self, daemon: Daemon) -> bool:
        daemon.systemctl("reload")
        return f'"pid":{self._process.pid}' not in run("busctl", "--user", "--json=short", "list").stdout

    def seen(self, path: str) -> list[str]:
        """Return the states of the instance at *path*, its first one told by InterfacesAdded."""
        found: list[str] = []
        for line in self._log.read_text().splitlines():
            message = json.loads(line)
            data = message["payload"]["data"]
            if message["member"] == "InterfacesAdded" and data[0] == path:
                changed = data[1]["org.ccorch1.Instance"]
            elif message["member"] == "PropertiesChanged" and message["path"] == path:
                changed = data[1]
            else:
                continue
            if "State" in changed and found[-1:] != [changed["State"]["data"]]:
                found.append(changed["State"]["data"])
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def test_fresh_instance_is_at_its_prompt_without_a_dialog(desk: Desk) -> None:
    address = desk.create("fresh")
    record = desk.idle(address)
    assert record["pid"] in desk.daemon.processes(address)
    screen = desk.screen(address)
    assert "❯" in screen
    assert "trust" not in screen.lower()
    assert not desk.api.conversations()
    assert desk.daemon.instances().keys() >= {address}


def test_prompt_tool_answer_and_the_states_on_the_way(desk: Desk, tmp_path: Path) -> None:
    states = States(desk.daemon, tmp_path / "bus.log")
    try:
        prompt = "[bash echo made > by-bash.txt; sleep 1] [write by-write.txt hello from it]"
        address = desk.create("works", prompt, *BYPASS)
        record = desk.idle(address)
        eventually("idle is announced", lambda: states.seen(record["object"])[-1:] == ["idle"])
        # What was given a prompt to start with is never idle before it has worked on it.
        assert states.seen(record["object"]) == ["starting", "working", "idle"]
    finally:
        states.close()
    worktree = Path(record["worktree"])
    assert (worktree / "by-bash.txt").read_text() == "made\n"
    assert (worktree / "by-write.txt").read_text() == "hello from it\n"
    assert not (desk.repository / "by-write.txt").exists()
    assert len(tool_results(desk.api.conversations()[-1])) == 2
    kinds = [event["kind"] for event in desk.daemon.events(address)]
    told = [kind for kind in kinds if kind.startswith(("agent.", "instance."))]
    assert told == [
        "instance.created",
        "instance.started",
        "agent.session",
        "agent.prompt",
        "agent.tool",
        "agent.tool",
        "agent.answer",
    ]
    assert "Write: by-write.txt" in desk.events(address, "agent.tool")[1]["message"]


def test_prompts_sent_one_after_the_other_are_confirmed_and_exact(desk: Desk) -> None:
    address = desk.create("talk")
    desk.idle(address)
    texts = [
        "first",
        "second, at once after the turn",
        "Umlauts äöüß, a tree 🌲, 'quotes' \"and\" $(such);",
        "several\n\nlines\n    with indents\n- and a list",
        "/not a command",
        "!touch not-a-command",
        "0123456789abcde " * 1280 + "end",
    ]
    for number, text in enumerate(texts, start=1):
        assert desk.send(address, text), text[:80]
        desk.answers(address, number)
    said = prompts(desk.api.conversations()[-1])
    assert [text.strip() for text in said] == [text.strip() for text in texts]
    assert len(desk.events(address, "agent.prompt")) == len(texts)
    assert not (desk.worktree(address) / "not-a-command").exists()


def test_prompt_sent_while_it_starts_waits_until_it_is_ready(desk: Desk) -> None:
    address = desk.create("early")
    assert desk.send(address, "as early as can be")
    desk.answers(address, 1)
    assert prompts(desk.api.conversations()[-1]) == ["as early as can be"]


def test_two_prompts_at_the_same_time_stay_two(desk: Desk) -> None:
    """The second one meets a turn that has just begun, when Claude Code likes to swallow an Enter."""
    address = desk.create("both")
    desk.idle(address)
    wanted: set[str] = set()

    def both() -> bool:
        said = [text for body in desk.api.conversations()[-1:] for text in prompts(body)]
        return {line for text in said for line in text.splitlines()} == wanted

    for number in range(3):
        pair = [f"{name} {number} [slow 5]" for name in ("one", "two")]
        wanted |= set(pair)
        with ThreadPoolExecutor() as pool:
            assert any(pool.map(lambda text: desk.send(address, text), pair))
        eventually("both have arrived, unmixed", both)
        desk.idle(address)


def test_permission_is_asked_for_and_answered_in_the_pane(desk: Desk) -> None:
    address = desk.create("asks", "[bash touch allowed; sleep 1; touch later]")
    record = desk.daemon.wait_state(address, "waiting")
    assert record["reason"] == "permission"
    assert record["reason_text"] == "Bash touch allowed; sleep 1; touch later"
    assert not (Path(record["worktree"]) / "allowed").exists()
    said = desk.daemon.refused(6, "instance", "send", address, "go on")
    assert "waits for permission" in said
    desk.keys(address, "1")
    desk.daemon.wait_state(address, "working")
    desk.idle(address)
    assert (Path(record["worktree"]) / "later").exists()
    assert len(desk.events(address, "agent.waiting")) == 1


def test_interrupt_is_seen_at_once(desk: Desk) -> None:
    address = desk.create("long", "[slow 600]")
    desk.api.wait_for("[slow")
    desk.daemon.wait_state(address, "working")
    desk.daemon.ok("instance", "interrupt", address)
    pressed = time.monotonic()
    desk.idle(address)
    assert time.monotonic() - pressed < 3
    assert desk.send(address, "[bash sleep 600]")
    eventually("the tool runs", lambda: desk.daemon.instance(address)["doing"].endswith("sleep 600"))
    desk.daemon.ok("instance", "interrupt", address)
    desk.idle(address)
    assert desk.send(address, "still there?")
    desk.answers(address, 1)


def test_killed_one_is_named_and_resumes_with_its_memory(desk: Desk) -> None:
    address = desk.create("killed", "The word is periwinkle.")
    first = desk.idle(address)
    desk.written("done: The word is periwinkle.")
    os.kill(first["pid"], signal.SIGKILL)
    failed = desk.daemon.wait_state(address, "failed")
    assert failed["reason"] == "signal"
    assert "SIGKILL" in failed["reason_text"]
    assert not desk.daemon.scopes()
    desk.daemon.ok("instance", "start", address)
    again = desk.idle(address)
    assert again["session_id"] == first["session_id"]
    assert again["pid"] != first["pid"]
    assert desk.send(address, "Which word?")
    assert "The word is periwinkle." in prompts(desk.api.wait_for("Which word?"))[0]
    # Stopped and started with a prompt to go on with.
    desk.answers(address, 2)
    desk.daemon.ok("instance", "stop", address)
    desk.daemon.ok("instance", "start", address, "--prompt", "And now?")
    assert "The word is periwinkle." in prompts(desk.api.wait_for("And now?"))[0]
    desk.answers(address, 3)


def test_daemon_killed_in_a_turn_loses_and_doubles_nothing(desk: Desk) -> None:
    steps = " ".join(f"[bash sleep 0.7; echo step-{number}]" for number in range(5))
    address = desk.create("turn", steps, *BYPASS)
    pid = eventually("it has a process", lambda: desk.daemon.instance(address)["pid"])
    for number in (1, 3):
        eventually("it is at work", lambda number=number: len(desk.events(address, "agent.tool")) >= number)
        desk.daemon.kill()
        eventually("the daemon answers", lambda: desk.daemon.ctl("status").returncode == 0)
    desk.answers(address, 1)
    assert desk.idle(address)["pid"] == pid
    tools = [event["message"] for event in desk.events(address, "agent.tool")]
    assert [f"step-{number}" in message for number, message in enumerate(tools)] == [True] * 5
    assert len(desk.events(address, "agent.prompt")) == len(desk.events(address, "agent.answer")) == 1
    assert desk.send(address, "and after that")
    desk.answers(address, 2)


def test_turn_that_ends_while_nobody_listens_is_told_afterwards(desk: Desk) -> None:
    address = desk.create("unheard", "[slow 20]")
    desk.api.wait_for("[slow")
    desk.daemon.wait_state(address, "working")
    os.kill(desk.daemon.pid, signal.SIGSTOP)
    spool = desk.daemon.naming.state_dir / "spool"
    eventually("its hook has given up", lambda: list(spool.rglob("*.json")))
    desk.daemon.kill()
    eventually("the daemon answers", lambda: desk.daemon.ctl("status").returncode == 0)
    desk.answers(address, 1)
    answers = desk.events(address, "agent.answer")
    assert [event["message"].startswith("answer: piece0 piece1") for event in answers] == [True]
    assert not list(spool.rglob("*.json"))


def test_interrupt_while_the_daemon_is_away_is_seen_afterwards(desk: Desk) -> None:
    address = desk.create("escaped", "[slow 600]")
    desk.api.wait_for("[slow")
    desk.daemon.wait_state(address, "working")
    terminal = desk.tmux_socket(address)
    os.kill(desk.daemon.pid, signal.SIGSTOP)
    run("tmux", "-S", str(terminal), "send-keys", "-t", "%0", "Escape")
    eventually("it is idle", lambda: '"status":"idle"' in desk.status())
    desk.daemon.kill()
    desk.idle(address)


def test_restart_of_the_daemon_leaves_an_idle_one_usable(desk: Desk) -> None:
    address = desk.create("stays")
    before = desk.idle(address)
    assert desk.daemon.systemctl("restart").returncode == 0
    after = desk.idle(address)
    assert after["pid"] == before["pid"]
    assert len(desk.events(address, "instance.adopted")) == 1
    assert desk.send(address, "[slow 600]")
    desk.api.wait_for("[slow")
    # The session file, which alone tells of this, is watched again.
    desk.daemon.ok("instance", "interrupt", address)
    desk.idle(address)
    os.kill(after["pid"], signal.SIGKILL)
    assert desk.daemon.wait_state(address, "failed")["reason"] == "signal"


def test_key_reaches_the_api_and_nothing_else(desk: Desk) -> None:
    address = desk.create("secret", "[bash env > seen; sleep 2]", *BYPASS)
    eventually("the tool runs", lambda: (desk.worktree(address) / "seen").exists())
    unit = desk.daemon.instance(address)["unit"]
    needle = desk.key.encode()
    processes = {*desk.daemon.processes(address), desk.daemon.pid}
    assert len(processes) > 3
    for pid in processes:
        for name in ("environ", "cmdline"):
            with contextlib.suppress(FileNotFoundError):  # it has ended
                assert needle not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
    for name in (unit, desk.daemon.naming.daemon_unit, desk.daemon.naming.slice):
        assert desk.key not in run("systemctl", "--user", "show", "--all", name).stdout
    desk.idle(address)
    headers = desk.api.conversations()[0]["_headers"]
    assert desk.key in (headers.get("x-api-key", ""), headers.get("authorization", "").removeprefix("Bearer "))
    naming = desk.daemon.naming
    for folder in (naming.state_dir, naming.runtime_dir, naming.data_dir, naming.config_dir, desk.config):
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                assert needle not in file.read_bytes(), file
    assert desk.key not in desk.daemon.ok("events", "-n", "5000", "-o", "json")
    assert desk.key not in run("journalctl", "--user", "--no-pager", "-o", "export").stdout
    assert desk.key not in desk.screen(address)


def test_five_at_once_all_get_ready(desk: Desk) -> None:
    names = [f"n{number}" for number in range(5)]
    with ThreadPoolExecutor() as pool:
        addresses = list(pool.map(desk.create, names))
        for address in addresses:
            desk.idle(address)
        assert all(pool.map(lambda address: desk.send(address, f"I am {address}"), addresses))
    for address in addresses:
        desk.answers(address, 1)
    said = sorted(prompts(body)[-1] for body in desk.api.conversations())
    assert said == [f"I am sample/{name}" for name in names]
    # None of them has spoilt the file that they share.
    trusted = json.loads((desk.config / ".claude.json").read_text())["projects"][str(desk.repository)]
    assert trusted["hasTrustDialogAccepted"] is True


def test_users_own_configuration_is_only_added_to(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".claude").mkdir(parents=True)
    own = {
        "theme": "light",
        "customApiKeyResponses": {"approved": [], "rejected": ["0123456789-987654321"]},
        "mcpServers": {"mine": {"command": "/bin/true", "args": ["--größe"]}},
        "projects": {"/somewhere/else": {"hasTrustDialogAccepted": False, "allowedTools": ["Bash(ls)"]}},
        "somethingOfTheirOwn": {"kept": [1, 2, 3]},
    }
    file = home / ".claude.json"
    file.write_text(json.dumps(own))
    file.chmod(0o600)
    (home / ".claude/settings.json").write_text('{"theme": "light"}')
    with set_up("guest", tmp_path, CCORCH_CLAUDE_CONFIG_DIR="") as desk:
        address = desk.create("guest", "[bash touch made]", "--env", f"HOME={home}", *BYPASS)
        desk.idle(address)
        desk.daemon.ok("instance", "stop", address)
        repository = str(desk.repository)
    kept = json.loads(file.read_text())
    assert kept["hasCompletedOnboarding"] is True
    assert kept["projects"][repository]["hasTrustDialogAccepted"] is True
    for key in ("theme", "customApiKeyResponses", "mcpServers", "somethingOfTheirOwn"):
        assert kept[key] == own[key]
    assert kept["projects"]["/somewhere/else"].items() >= own["projects"]["/somewhere/else"].items()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (home / ".claude/settings.json").read_text() == '{"theme": "light"}'


def test_project_may_say_where_its_configuration_is(tmp_path: Path) -> None:
    config = tmp_path / "elsewhere"
    with set_up("where", tmp_path, CCORCH_CLAUDE_CONFIG_DIR="") as desk:
        (desk.repository / ".ccorch.toml").write_text(
            f'[environment]\nCLAUDE_CONFIG_DIR = "{config}"\nANTHROPIC_BASE_URL = "{desk.api.url}"\n'
        )
        desk.daemon.ok("project", "agree", "sample", "--yes")
        desk.daemon.ok("instance", "create", "sample/there", "--prompt", "[slow 600]")
        desk.api.wait_for("[slow")
        desk.daemon.wait_state("sample/there", "working")
        desk.daemon.ok("instance", "interrupt", "sample/there")
        desk.idle("sample/there")
    assert (config / ".claude.json").exists()
