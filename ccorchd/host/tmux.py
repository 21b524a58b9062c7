# SPDX-License-Identifier: LGPL-2.1-or-later
"""One tmux server per instance, with a socket of its own: windows, screens, text and keys. Owner of libtmux.

Every call runs a tmux client (3 to 7 ms) in a thread. A server that does not answer, because its scope is frozen for
example, must not keep that thread for ever: its client is killed when the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import libtmux
import libtmux.exc

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.host import pidfd

# libtmux 0.21 decodes what tmux prints by the encoding of the daemon's standard output, whatever that is.
_compat = sys.modules.get("libtmux._compat")
if hasattr(_compat, "console_encoding"):
    setattr(_compat, "console_encoding", "utf-8")  # noqa: B010 - unknown to the types of newer versions
# It logs whole screens.
logging.getLogger("libtmux").setLevel(logging.CRITICAL)

SESSION: Final = "ccorch"
AGENT: Final = "agent"
SHELL: Final = "shell"
_AGENT_PANE: Final = "%0"
"""The first pane of a server. Unlike the window's name, which whoever is attached can change, this stays."""
_SIZE: Final = ("200", "50")
_UNREACHABLE_BUS: Final = "unix:path=/nonexistent"
_BUS_VARIABLE: Final = "DBUS_SESSION_BUS_ADDRESS"
_SOCKET_LIMIT: Final = 107
"""sun_path of unix(7), without the closing NUL."""
_CALL_SECONDS: Final = 5.0

_CONTROL: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")

CONFIG: Final = r"""# Written anew at each start of this instance. Neither /etc/tmux.conf nor ~/.tmux.conf is read.
set -s  escape-time 0
set -s  exit-empty on
set -s  exit-unattached off
set -s  focus-events on
# A selection in copy mode reaches the clipboard of whoever is attached; what the agent prints does not.
set -s  set-clipboard external
set -s  default-terminal "@TERMINAL@"

set -g  destroy-unattached off
set -g  detach-on-destroy on
# A client that attaches brings its size, never its environment.
set -g  update-environment ""
set -g  default-size @WIDTH@x@HEIGHT@
set -gw window-size latest
set -gw aggressive-resize off
set -g  history-limit 50000
set -g  mouse on
set -g  renumber-windows off
set -gw allow-rename off
set -gw automatic-rename off
set -gw monitor-activity off
set -gw monitor-bell off
set -g  bell-action none

# How the agent ended is read from its dead pane, and its last screen too: the message that tmux would write there
# scrolls a line away. Every other pane goes when its program ends.
set -g  remain-on-exit on
set -g  remain-on-exit-format ""
set-hook -g after-new-window   "set-option -w remain-on-exit off"
set-hook -g after-split-window "set-option -p remain-on-exit off"

bind-key c new-window -c "#{pane_current_path}"
bind-key '"' split-window -c "#{pane_current_path}"
bind-key % split-window -h -c "#{pane_current_path}"

set -g  set-titles on
set -g  set-titles-string "@TITLE@ #{window_name}"
set -g  status on
set -g  status-interval 0
set -g  status-style "bg=colour236,fg=colour250"
set -g  status-left "#[bold] @TITLE@ #[nobold] "
set -g  status-left-length 90
set -gw window-status-format " #{window_name}#{?pane_dead, (ended),} "
set -gw window-status-current-format "#[reverse] #{window_name}#{?pane_dead, (ended),} #[noreverse]"
set -g  status-right "#{?client_readonly,read-only  ,}#{prefix} d: detach "
set -g  status-right-length 40
"""


@dataclass(frozen=True, slots=True)
class Pane:
    """One pane. *exit_status* and *exit_signal* are None while it lives, and when that is not known (yet)."""

    window: str
    pid: int
    dead: bool
    exit_status: int | None
    exit_signal: int | None
    title: str


def program() -> str:
    """Return the path of tmux, one for servers and clients (versions don't mix); raise ``MissingProgram``."""
    found = shutil.which("tmux")
    if found is None:
        raise CcorchError(ErrorCode.MISSING_PROGRAM, "tmux is not installed, or not in PATH", "apt install tmux")
    return os.path.abspath(found)


def terminal() -> str:
    """Return the best value for TERM in a pane that this host has a description of (terminfo(5))."""
    folders = [Path("/etc/terminfo"), Path("/lib/terminfo"), Path("/usr/share/terminfo"), Path("/usr/lib/terminfo")]
    for name in ("tmux-256color", "screen-256color"):
        if any((folder / sub / name).exists() for folder in folders for sub in (name[0], f"{ord(name[0]):x}")):
            return name
    return "screen"


def write_config(path: Path, title: str) -> None:
    """Write the configuration of a server, whose status line shows *title*; raise OSError."""
    plain = "".join(character for character in title if character.isprintable() and character not in "\"'\\$`~{}")
    values = {
        "TERMINAL": terminal(),
        "WIDTH": _SIZE[0],
        "HEIGHT": _SIZE[1],
        "TITLE": plain.replace("#", "##").replace("%", "%%"),
    }
    path.write_text(re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], CONFIG), encoding="utf-8")


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return *environment* as a server must get it, and every pane with it.

    Newer tmux moves panes into scopes of their own when it reaches the user bus, so the bus's address leads nowhere
    (:meth:`TmuxServer.launch_argv` can give the agent the real one). Outside a UTF-8 locale programs in it would draw
    underscores, so the variable that decides about characters becomes C.UTF-8 there.
    """
    result = {name: value for name, value in environment.items() if name not in ("TMUX", "TMUX_PANE", "TMUX_TMPDIR")}
    result[_BUS_VARIABLE] = _UNREACHABLE_BUS
    effective = next((result[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if result.get(name)), "")
    if not re.search(r"\.utf-?8", effective, re.IGNORECASE):
        result["LC_ALL" if result.get("LC_ALL") else "LC_CTYPE"] = "C.UTF-8"
    return result


def clean_text(text: str) -> str:
    """Return *text* without what a terminal would take for a key: control characters except newline and tab.

    An escape sequence in a prompt could end the bracketed paste and press Enter.
    """
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).encode("utf-8", "replace").decode()


class TmuxServer:
    """The tmux server on *socket*.

    Its methods raise :class:`CcorchError`: ``MissingProgram`` without tmux, ``Timeout`` when the server does not answer
    within 5 s, ``HostFailed`` for everything tmux complains about, such as a server that is not there. *window* is
    ``agent``, ``shell`` or the name of another window.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._server = libtmux.Server(socket_path=str(socket))
        self._one_at_a_time = asyncio.Lock()

    @staticmethod
    def launch_argv(
        socket: Path,
        *,
        cwd: Path,
        command: Sequence[str],
        config: Path,
        environment: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return what starts the server, detached, with *command* in the window ``agent``; it exits once that runs.

        The caller executes it in the scope, with :func:`server_environment`. *environment* is for the agent's pane
        alone; it shows in the argument vector, so it is no place for secrets.
        """
        if len(os.fsencode(socket)) > _SOCKET_LIMIT:
            raise CcorchError(
                ErrorCode.HOST_FAILED,
                f"the path of the tmux socket is too long: {socket}",
                f"A socket's path has at most {_SOCKET_LIMIT} bytes; use a shorter XDG_RUNTIME_DIR.",
            )
        extra = [word for name, value in (environment or {}).items() for word in ("-e", f"{name}={value}")]
        # tmux hands a single word to a shell, several to exec(3).
        words = list(command) if len(command) > 1 else ["env", *command]
        argv = [program(), "-S", str(socket), "-f", str(config), "-u", "new-session", "-d", "-s", SESSION, "-n", AGENT]
        return [*argv, "-x", _SIZE[0], "-y", _SIZE[1], "-c", str(cwd), *extra, "--", *map(_literal, words)]

    def attach_argv(self, *, read_only: bool, window: str = AGENT) -> list[str]:
        """Return what attaches a terminal.

        There is a session for each window and way of attaching, in the group of ours: who looks at the shell turns no
        page for who looks at the agent, nor does anybody who only reads. These sessions stay until the server ends:
        tmux 3.3a crashes when destroy-unattached takes one out of a group.
        """
        view = f"{SESSION}-{window}{'-read-only' if read_only else ''}"
        argv = [program(), "-S", str(self.socket), "new-session", "-A", "-s", view, "-t", f"={SESSION}"]
        if read_only:
            argv += ["-f", "read-only"]
        return [*argv, ";", "select-window", "-t", _window(window)]

    async def server_alive(self) -> bool:
        """Tell whether the server is there and answers; raise ``Timeout`` if it is there and does not."""
        try:
            await self.server_pid()
        except CcorchError as error:
            if error.code is ErrorCode.HOST_FAILED:
                return False
            raise
        return True

    async def server_pid(self) -> int:
        """Return the process id of the server."""
        lines = await self._run("display-message", "-p", "-t", f"={SESSION}:", "#{pid}")
        if len(lines) != 1 or not lines[0].isdigit():
            raise CcorchError(ErrorCode.HOST_FAILED, f"tmux does not tell its process id: {lines}")
        return int(lines[0])

    async def panes(self) -> list[Pane]:
        """Return all panes, the agent's first while it is there."""
        # The title is free text, so it stands last; the window's name is too, so it loses the separator.
        words = "#{pane_id}|#{pane_pid}|#{pane_dead}|#{pane_dead_status}|#{pane_dead_signal}|#{s/[|]/_/:window_name}"
        found = []
        for line in await self._run("list-panes", "-s", "-t", f"={SESSION}:", "-F", f"{words}|#{{pane_title}}"):
            pane, pid, dead, status, number, window, title = line.split("|", 6)
            found.append(
                Pane(
                    window=AGENT if pane == _AGENT_PANE else window,
                    pid=int(pid),
                    dead=dead == "1",
                    exit_status=int(status) if status.isdigit() else None,
                    exit_signal=_signal_number(number),
                    title=title,
                )
            )
        return sorted(found, key=lambda pane: pane.window != AGENT)

    async def pane(self, window: str = AGENT) -> Pane:
        """Return the (first) pane of *window*."""
        for pane in await self.panes():
            if pane.window == window:
                return pane
        raise CcorchError(ErrorCode.HOST_FAILED, f"tmux has no window {window!r}")

    async def exit_of(self, window: str = AGENT, *, timeout: float = 2) -> tuple[int | None, int | None]:
        """Return exit status and signal of the program in *window*, which has just died; (None, None) if that is lost.

        tmux reaps it a moment after a pidfd reports the death: wait at most *timeout* seconds for that. In one case of
        ten or so tmux 3.3a misses the kernel's SIGCHLD when the terminal is closed at the same time, and the program
        stays a zombie for good; another SIGCHLD has it look.
        """
        pause = 0.005
        with contextlib.suppress(TimeoutError, CcorchError):
            async with asyncio.timeout(timeout):
                while True:
                    pane = await self.pane(window)
                    if pane.dead and (pane.exit_status is not None or pane.exit_signal is not None):
                        return pane.exit_status, pane.exit_signal
                    await asyncio.sleep(pause)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(await self.server_pid(), signal.SIGCHLD)
                    pause = min(pause * 2, 0.2)
        return None, None

    async def new_window(self, name: str, cwd: Path) -> Pane:
        """Open a window with the user's shell in *cwd*, unless there is one of that name; nobody is moved to it."""
        for pane in await self.panes():
            if pane.window == name:
                return pane
        await self._run("new-window", "-d", "-t", f"={SESSION}:", "-n", name, "-c", str(cwd))
        return await self.pane(name)

    async def paste(self, window: str, text: str, *, enter: bool) -> None:
        """Paste *text* exactly, but for control characters (:func:`clean_text`), as one bracketed paste; then Enter."""
        text = clean_text(text)
        if text:
            # A file, because a command line could not hold it, and send-keys loses a semicolon at its end.
            folder, name = self.socket.parent, "ccorch-prompt"
            try:
                with tempfile.NamedTemporaryFile(
                    "w", prefix="paste-", dir=folder, encoding="utf-8", newline=""
                ) as file:
                    file.write(text)
                    file.flush()
                    load = ("load-buffer", "-b", name, file.name)
                    await self._run(*load, ";", "paste-buffer", "-p", "-d", "-b", name, "-t", _pane(window))
            except OSError as error:
                raise CcorchError(ErrorCode.HOST_FAILED, f"text cannot be pasted: {error.strerror}") from error
        if enter:
            await self.keys(window, "Enter")

    async def keys(self, window: str, *keys: str) -> None:
        """Press *keys*, by tmux' names for them (``Escape``, ``C-c``, ``Enter``)."""
        await self._run("send-keys", "-t", _pane(window), "--", *map(_literal, keys))

    async def capture(self, window: str, *, lines: int = 0, colours: bool = False) -> str:
        """Return the screen of *window*, with *lines* lines of history before it, as text or with escape sequences."""
        flags = (["-S", str(-lines)] if lines > 0 else []) + (["-e"] if colours else [])
        return "\n".join(await self._run("capture-pane", "-p", *flags, "-t", _pane(window)))

    async def clients(self) -> int:
        """Return how many terminals are attached."""
        return len(await self._clients())

    async def _clients(self) -> list[str]:
        lines = await self._run("list-clients", "-F", "#{client_control_mode} #{client_name}")
        return [line[2:] for line in lines if line.startswith("0 ")]

    async def detach_all(self) -> int:
        """Detach every terminal and return how many there were."""
        clients = await self._clients()
        for client in clients:
            with contextlib.suppress(CcorchError):  # it went by itself
                await self._run("detach-client", "-t", client)
        return len(clients)

    async def kill(self) -> None:
        """End the server and wait until its process is gone, and its panes' programs have their SIGHUP; quiet if none.

        Raises ``Timeout`` when it does not end.
        """
        try:
            pid = await self.server_pid()
            gone = asyncio.Event()
            watch = pidfd.PidWatch(pid, gone.set)
            try:
                await self._run("kill-server")
                async with asyncio.timeout(_CALL_SECONDS):
                    await gone.wait()
            finally:
                watch.close()
        except TimeoutError:
            raise CcorchError(ErrorCode.TIMEOUT, f"the tmux server {pid} does not end") from None
        except CcorchError as error:
            if error.code is not ErrorCode.HOST_FAILED:
                raise

    async def recreate_socket(self, pid: int, *, timeout: float = 2) -> bool:
        """Have the server *pid* make its lost socket anew (tmux(1): SIGUSR1); False if it is no server of ours.

        The process is checked first: SIGUSR1 ends any other program.
        """
        try:
            watch = pidfd.PidWatch(pid, lambda: None)
        except ValueError:
            return False
        try:
            if not self._is_server(pid):
                return False
            self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not watch.send_signal(signal.SIGUSR1):
                return False
            async with asyncio.timeout(timeout):
                while not self.socket.exists() or not await self.server_alive():  # noqa: ASYNC110 - it has to be asked
                    await asyncio.sleep(0.01)
            return True
        except OSError:  # TimeoutError too
            return False
        finally:
            watch.close()

    def _is_server(self, pid: int) -> bool:
        """Raise OSError if there is no such process."""
        process = Path("/proc") / str(pid)
        words = (process / "cmdline").read_bytes().split(b"\0")
        return (process / "comm").read_bytes().startswith(b"tmux: server") and os.fsencode(self.socket) in words

    async def _run(self, *words: str) -> list[str]:
        """Run one tmux command and return the lines that it prints."""
        caller = _Caller(self._server, words)
        async with self._one_at_a_time:
            work = asyncio.ensure_future(asyncio.to_thread(caller.run))
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    return await asyncio.shield(work)
            except TimeoutError:
                caller.kill()
                raise CcorchError(
                    ErrorCode.TIMEOUT, f"tmux did not answer {words[0]} within {_CALL_SECONDS:g} s"
                ) from None
            finally:
                # Cancelled or too late: the thread ends when its client does.
                if not work.done():
                    caller.kill()
                    work.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Caller:
    """One libtmux call in a thread, and the means to cut it short."""

    def __init__(self, server: libtmux.Server, words: Sequence[str]) -> None:
        self._server = server
        self._words = words
        self._thread = 0
        self._late = False

    def run(self) -> list[str]:
        self._thread = threading.get_native_id()
        if self._late:  # it waited for a thread all the time
            return []
        try:
            # -u: the client prints UTF-8 whatever the daemon's locale; without it every umlaut is an underscore.
            result = self._server.cmd("-u", *self._words)
        except libtmux.exc.TmuxCommandNotFound:
            program()
            raise CcorchError(ErrorCode.MISSING_PROGRAM, "tmux is not installed, or not in PATH") from None
        except (libtmux.exc.LibTmuxException, OSError) as error:
            raise CcorchError(ErrorCode.HOST_FAILED, f"tmux {self._words[0]} failed: {error}") from error
        finally:
            self._thread = 0
        if result.returncode:
            complaint = " ".join(result.stderr) or f"exit status {result.returncode}"
            raise CcorchError(ErrorCode.HOST_FAILED, f"tmux {self._words[0]} failed: {complaint}")
        return list(result.stdout)

    def kill(self) -> None:
        """Kill the tmux client that the thread waits for; it is the only child which that thread has started."""
        self._late = True
        thread = self._thread
        if not thread:
            return
        children = Path(f"/proc/self/task/{thread}/children")
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, children.read_text().split()):
                descriptor = os.pidfd_open(pid)
                try:
                    # Looked at again: between reading and opening the number could have changed hands.
                    if str(pid) in children.read_text().split():
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)


def _literal(word: str) -> str:
    """Return *word* so that tmux does not take a semicolon at its end for the end of the command."""
    return f"{word[:-1]}\\;" if word.endswith(";") else word


def _window(window: str) -> str:
    return ":@0" if window == AGENT else f":={window}"


def _pane(window: str) -> str:
    return _AGENT_PANE if window == AGENT else f"={SESSION}:={window}"


def _signal_number(text: str) -> int | None:
    """Read ``#{pane_dead_signal}``: a number on Linux, a name where the C library has names."""
    if text.isdigit():
        return int(text) or None
    with contextlib.suppress(KeyError):
        return int(signal.Signals[f"SIG{text.removeprefix('SIG').upper()}"])
    return None
