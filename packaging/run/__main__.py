# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 packaging/run run|stop|attach|ctl``: what ``make run`` and its companions call.

Everything else comes through the environment, so that no shell splits a path or a prompt: REPO, N, AGENT, MACHINE,
I, ARGS.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine.errors import MachineError, NotPossibleHere
from run import daemon, places, requirements, team
from run import repository as repositories
from run.places import CHECKOUT, Here, Inside, Place, Virtual
from run.problem import Problem


def say(text: str) -> None:
    print(text, flush=True)


def _wishes() -> tuple[int, str]:
    number, agent = os.environ.get("N") or "5", os.environ.get("AGENT") or "demo"
    if not number.isdigit() or not 1 <= int(number) <= team.MOST:
        raise Problem(f"N={number} must be a number from 1 to {team.MOST}.")
    if agent not in ("demo", "claude"):
        raise Problem(f"AGENT={agent} is neither demo nor claude.")
    return int(number), agent


def _make(target: str) -> str:
    """Return the make line that works from where the user stands."""
    return f"make {target}" if Path.cwd() == CHECKOUT else f"make -C {shlex.quote(str(CHECKOUT))} {target}"


def _prepare(place: Place, agent: str) -> None:
    """Look for everything a place needs and install what is missing."""
    if isinstance(place, Virtual):
        if agent == "claude":
            raise Problem(
                "AGENT=claude does not work with MACHINE=vm: your log-in stays outside of the virtual machine."
            )
        requirements.check_space(Path.home() / ".cache", 3 << 30)
        missing = [*requirements.missing_packages(requirements.VIRTUAL)]
        if os.geteuid() != 0:
            missing += requirements.missing_packages(["uidmap"])
        if shutil.which("git") is None:
            missing.append("git")
    else:
        session = requirements.MACHINE if isinstance(place, Inside) else requirements.SESSION
        missing = requirements.missing_runtime(place.python) + requirements.missing_packages(session)
    if missing:
        requirements.install(sorted(set(missing)), say)
    if agent == "claude" and shutil.which("claude") is None:
        raise Problem("AGENT=claude needs Claude Code: 'claude' is not on your PATH.")


def _repository() -> Path:
    """Return the repository to work in; the sample is only made when all that a run needs is there."""
    wish = os.environ.get("REPO", "")
    if shutil.which("git") is None:
        requirements.install(["git"], say)
    if wish:
        return repositories.find(wish)
    return places.data_folder() / "sample"


def _place(repository: Path) -> tuple[Place, bool]:
    """Return the place for this run, and whether it is up already."""
    wish = os.environ.get("MACHINE", "")
    present = places.current()
    if isinstance(present, Virtual) and present.switched_off:
        raise Problem(
            f"The virtual machine of an earlier run was switched off with its work. Fetch it: {_make('stop')}"
        )
    if present is not None and places.up(present):
        same = present.host_repository == repository
        if isinstance(present, Here):
            if daemon.is_active(present):
                if wish not in ("", "host"):
                    raise Problem(f"A run is up on this host. To try MACHINE={wish}, end it first: {_make('stop')}")
                present.host_repository = repository
                return present, True
        elif same and wish in ("", present.kind):
            return present, True
        else:
            raise Problem(
                f"A run with {present.host_repository} is up, and its machine sees no other repository. "
                f"End it first: {_make('stop')}"
            )
    return places.choose(wish, repository), False


def run() -> int:
    number, agent = _wishes()
    requirements.check_python()
    requirements.check_space(places.data_folder())
    repository = _repository()
    place, present = _place(repository)
    if not present:
        _prepare(place, agent)
    if not os.environ.get("REPO"):
        if not repository.exists():
            say(f"sample repository: {repository}")
        repositories.sample(repository)
    if not present:
        try:
            _up(place)
        except NotPossibleHere as error:
            if not isinstance(place, Inside) or os.environ.get("MACHINE"):
                raise
            say(f"{error} Taking a virtual machine instead.")
            place = Virtual(repository)
            _prepare(place, agent)
            _up(place)
    place.remember()
    say(f"ccorch runs {place.label}")
    for note in place.notes:
        say(f"  {note}")
    try:
        if not daemon.is_active(place):
            daemon.start(place)
        project = daemon.register(place)
    except BaseException:
        if not present:  # what was brought up for this and never worked must not stay
            daemon.stop(place)
            place.stop()
            _clean_up(place)
        raise
    say(f"\n{number} {agent} agent{'s' if number > 1 else ''} in {repository}:")
    attach = _make("attach I={name}")
    try:
        names = team.launch(place, project, number, agent, say)
        say("")
        patience = 300 * place.slow if agent == "demo" else 3600
        rows = team.follow(place, project, names, limit=patience)
    except KeyboardInterrupt:
        say(f"\nThey go on without you. Look: {_make('ctl')} ARGS='instance list'; end: {_make('stop')}")
        return 130
    team.report(place, rows, attach)
    busy = [row["name"] for row in rows if row["state"] not in ("idle", "waiting")]
    team.prove(place, project, names, say)
    for sentence in place.collect():
        say(f"  {sentence}")
    say(f"\nThe daemon stays up.  {_make('ctl')} ARGS='instance list'   {_make('stop')}")
    kept = repositories.branches(repository)
    say(f"Branches in {repository}: {', '.join(sorted(kept)) or 'none'}")
    if busy:
        raise Problem(f"Not every agent came to rest: {', '.join(busy)}. See: {_make('ctl')} ARGS='why {busy[0]}'")
    return 0


def _up(place: Place) -> None:
    if not isinstance(place, Here):
        say("starting the machine")
    try:
        place.start(say)
    except BaseException:
        place.stop()
        raise


def stop() -> int:
    place = places.current()
    if place is None:
        say("Nothing is running.")
        return 0
    if isinstance(place, Virtual) and place.switched_off:
        say("The virtual machine was switched off; starting it to fetch its branches")
        place.switch_on()
    if places.up(place):
        try:
            if not daemon.is_active(place):
                daemon.start(place)
            _remove_instances(place)
        except Problem as error:
            say(f"The instances cannot be removed one by one: {error}")
        for sentence in place.collect():
            say(sentence)
        daemon.stop(place)
        left = daemon.leftovers(place)
        place.stop()
        if left:
            raise Problem(f"These units are still there: {', '.join(left)}")
    _clean_up(place)
    if place.host_repository is not None and place.host_repository.exists():
        repositories.git(place.host_repository, "worktree", "prune")
        kept = repositories.branches(place.host_repository)
        if kept:
            say(f"Branches with work in {place.host_repository}:")
            for branch in sorted(kept):
                count = repositories.ahead(place.host_repository, branch)
                say(f"  {branch}  {count} commit{'' if count == 1 else 's'} ahead of the checkout")
    say("Stopped. Nothing is left running.")
    return 0


def _remove_instances(place: Place) -> None:
    """Remove every instance; one with uncommitted work keeps its worktree, and that is said."""
    for row in daemon.instances(place):
        address = f"{row['project']}/{row['name']}"
        done = daemon.ctl(place, "--yes", "instance", "remove", address, timeout=60)
        if done.returncode:
            sentence = (done.stderr.strip().splitlines() or ["could not be removed"])[0]
            daemon.ctl(place, "--yes", "instance", "stop", address, timeout=60)
            if isinstance(place, Virtual):
                # The machine's disk goes, so what is not committed is saved under a ref, which is fetched as a branch.
                forced = daemon.ctl(place, "--yes", "instance", "remove", "--force", address, timeout=60)
                say(f"{address}: {sentence} {forced.stdout.strip()}")
            else:
                say(f"{address}: {sentence} Its worktree stays: {row.get('worktree')}")


def _clean_up(place: Place) -> None:
    """Remove the trial's own folders, except worktrees with uncommitted work and the sample repository."""
    state, data = places.state_folder(), places.data_folder()
    (state / "run.json").unlink(missing_ok=True)
    kept = False
    for folder, names, files in os.walk(data, topdown=False):
        if Path(folder) == data / "sample" or (data / "sample") in Path(folder).parents:
            continue
        if not files and not names:
            os.rmdir(folder)
        elif Path(folder) != data and any((Path(folder) / name).exists() for name in [*names, *files]):
            kept = True
        else:
            try:
                os.rmdir(folder)
            except OSError:
                continue
    if not kept and state.is_dir():
        shutil.rmtree(state)


def _present() -> Place:
    place = places.current()
    if place is None or not places.up(place):
        raise Problem(f"No trial run is up: {_make('run')}")
    return place


def attach() -> int:
    name = os.environ.get("I", "")
    place = _present()
    if not name:
        names = [row["name"] for row in daemon.instances(place)]
        raise Problem(f"Which one? {_make('attach I=NAME')}, and NAME is one of: {', '.join(names)}")
    if "/" not in name:
        rows = [row for row in daemon.instances(place) if row["name"] == name]
        if len(rows) == 1:
            name = f"{rows[0]['project']}/{name}"
    return place.interactive(daemon.ctl_command(place, "instance", "attach", name))


def ctl() -> int:
    try:
        words = shlex.split(os.environ.get("ARGS", ""))
    except ValueError as error:
        raise Problem(f"ARGS cannot be read as words: {error}.") from None
    return _present().interactive(daemon.ctl_command(_present(), *words))


def main() -> int:
    verbs = {"run": run, "stop": stop, "attach": attach, "ctl": ctl}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        print(f"usage: python3 packaging/run {'|'.join(verbs)}", file=sys.stderr)
        return 2
    try:
        return verbs[sys.argv[1]]()
    except (Problem, MachineError) as error:
        print(f"{error}", file=sys.stderr)
    except subprocess.TimeoutExpired as error:
        print(f"No answer within {error.timeout:.0f} seconds from: {shlex.join(map(str, error.cmd))}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
