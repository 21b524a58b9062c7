# SPDX-License-Identifier: LGPL-2.1-or-later
"""Worktrees on real repositories: what create makes, what remove keeps, what merge refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.process import Answer, failure
from ccorchd.worktrees import Removed, Worktrees

ROOT = Path(__file__).resolve().parents[2]


def git(where: Path, *arguments: str, check: bool = True) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(where: Path, name: str, text: str, message: str = "") -> str:
    (where / name).parent.mkdir(parents=True, exist_ok=True)
    (where / name).write_text(text)
    git(where, "add", "--", name)
    git(where, "commit", "-q", "-m", message or f"Change {name}")
    return git(where, "rev-parse", "HEAD")


def refs(repository: Path) -> list[str]:
    return git(repository, "for-each-ref", "--format=%(refname)").split()


def everything(repository: Path) -> tuple[str, ...]:
    """What must be the same before and after something that leaves no trace."""
    status = git(repository, "status", "--porcelain", "--branch")
    registered = repository / ".git/worktrees"
    listed = sorted(path.name for path in registered.iterdir()) if registered.exists() else []
    return (status, git(repository, "for-each-ref"), git(repository, "worktree", "list", "--porcelain"), *listed)


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    configuration = home / "gitconfig"
    configuration.write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
        '[protocol "file"]\n\tallow = always\n'
    )
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "main checkout"
    root.mkdir()
    git(root, "init", "-q")
    commit(root, "a.txt", "one\n")
    commit(root, "src/b.txt", "two\n")
    return root


@pytest.fixture
def worktrees(tmp_path: Path) -> Worktrees:
    return Worktrees(tmp_path / "data")


Place = tuple[Path, str, str]


@pytest.fixture
async def place(worktrees: Worktrees, repository: Path) -> Place:
    """A worktree with its branch and the commit it started from."""
    path = worktrees.path_for("demo", "amber")
    return path, "ccorch/amber", await worktrees.create(repository, path, "ccorch/amber", "")


def hook(repository: Path, name: str, body: str) -> None:
    file = repository / ".git/hooks" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


# Finding the repository


async def test_repository_is_found_from_anywhere_inside(worktrees: Worktrees, repository: Path, place: Place) -> None:
    head = git(repository, "rev-parse", "HEAD")
    linked = place[0]
    for inside in (repository, repository / "src", repository / ".git", linked, linked / "src"):
        found = await worktrees.repository(inside)
        assert (found.root, found.head, found.branch) == (repository, head, "main")
    link = repository.parent / "link"
    link.symlink_to(repository)
    assert (await worktrees.repository(link)).root == repository
    git(repository, "switch", "-q", "--detach")
    assert (await worktrees.repository(repository)).branch is None


async def test_repository_with_its_git_folder_elsewhere(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    separate = tmp_path / "separate"
    separate.mkdir()
    git(separate, "init", "-q", f"--separate-git-dir={tmp_path / 'elsewhere'}")
    commit(separate, "x", "x")
    assert (await worktrees.repository(separate)).root == separate
    await worktrees.create(separate, worktrees.path_for("s", "one"), "ccorch/one", "")

    git(repository, "submodule", "--quiet", "add", str(separate), "sub")
    assert (await worktrees.repository(repository / "sub")).root == repository / "sub"


@pytest.mark.parametrize("kind", ["nothing", "file", "missing", "bare", "empty", "foreign", "forbidden"])
async def test_what_is_no_repository_is_refused(
    worktrees: Worktrees, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / kind
    code, words = ErrorCode.NOT_A_REPOSITORY, "no git repository"
    if kind == "file":
        path.touch()
        words = "no folder"
    elif kind == "missing":
        words = "cannot be opened"
    else:
        path.mkdir()
    if kind == "bare":
        git(path, "init", "-q", "--bare")
        words = "bare repository"
    elif kind == "empty":
        git(path, "init", "-q")
        code, words = ErrorCode.NO_COMMITS, "has no commits"
    elif kind == "foreign":
        # git's own switch for its tests; the message is the real one.
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        path = repository / "src"
        code, words = ErrorCode.NOT_ALLOWED, "belongs to another user"
    elif kind == "forbidden":
        (path / ".git").write_text("gitdir: /nonexistent\n")
    with pytest.raises(CcorchError) as caught:
        await worktrees.repository(path)
    assert caught.value.code is code
    assert words in caught.value.message
    assert caught.value.hint or kind in ("file", "missing")
    if kind == "foreign":
        assert f"safe.directory {repository}" in caught.value.hint


async def test_git_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(CcorchError, match="not installed") as caught:
        await Worktrees(tmp_path).repository(repository)
    assert caught.value.code is ErrorCode.MISSING_PROGRAM
    (programs / "git").write_text("#!/bin/sh\necho git version 2.30.2\n")
    (programs / "git").chmod(0o755)
    with pytest.raises(CcorchError, match=r"git version 2\.30\.2 is too old") as caught:
        await Worktrees(tmp_path).repository(repository)
    assert caught.value.code is ErrorCode.MISSING_PROGRAM


# Create


async def test_create(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, base = place
    assert base == git(repository, "rev-parse", "HEAD") == git(path, "rev-parse", "HEAD")
    assert git(path, "branch", "--show-current") == branch
    assert (path / "src/b.txt").read_text() == "two\n"
    assert git(path, "status", "--porcelain") == ""
    assert path.parent.parent.parent.stat().st_mode & 0o777 == 0o700


async def test_create_from_other_bases(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    first = git(repository, "rev-parse", "HEAD~1")
    git(repository, "tag", "-a", "v1", "-m", "v1", first)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    for number, (root, base) in enumerate(
        [(repository, "v1"), (repository, first[:10]), (repository, "HEAD^"), (clone, "origin/main~1")]
    ):
        path = worktrees.path_for("demo", f"n{number}")
        assert await worktrees.create(root, path, f"ccorch/n{number}", base) == first
    # A branch that tracks another makes a plain `git push` go astray.
    assert git(clone, "config", "--get-regexp", r"^branch\.ccorch", check=False) == ""
    git(repository, "pack-refs", "--all")
    with pytest.raises(CcorchError) as caught:
        await worktrees.create(repository, worktrees.path_for("demo", "again"), "ccorch/n0", "")
    assert caught.value.code is ErrorCode.BRANCH_IN_USE


@pytest.mark.parametrize(
    ("branch", "base", "code"),
    [
        ("ccorch/x", "nowhere", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "deadbeef" * 5, ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "HEAD:a.txt", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "--force", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "-", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "main..HEAD", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", ":/one", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "main\nmain", ErrorCode.INVALID_ARGUMENT),
        ("ccorch/x", "\udcff", ErrorCode.INVALID_ARGUMENT),
        ("-b", "", ErrorCode.INVALID_ARGUMENT),
        ("a..b", "", ErrorCode.INVALID_ARGUMENT),
        ("x.lock", "", ErrorCode.INVALID_ARGUMENT),
        ("a//b", "", ErrorCode.INVALID_ARGUMENT),
        ("HEAD", "", ErrorCode.INVALID_ARGUMENT),
        ("a b", "", ErrorCode.INVALID_ARGUMENT),
        ("main", "", ErrorCode.BRANCH_IN_USE),
        ("main/below", "", ErrorCode.BRANCH_IN_USE),
    ],
)
async def test_create_refuses_and_leaves_nothing(
    worktrees: Worktrees, repository: Path, branch: str, base: str, code: ErrorCode
) -> None:
    before = everything(repository)
    path = worktrees.path_for("demo", "x")
    with pytest.raises(CcorchError) as caught:
        await worktrees.create(repository, path, branch, base)
    assert caught.value.code is code
    assert everything(repository) == before
    assert not path.parent.exists()


async def test_create_without_commits(worktrees: Worktrees, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "-q")
    with pytest.raises(CcorchError) as caught:
        await worktrees.create(empty, worktrees.path_for("empty", "x"), "ccorch/x", "")
    assert caught.value.code is ErrorCode.NO_COMMITS
    assert "--allow-empty" in caught.value.hint


async def test_create_never_touches_what_is_there(worktrees: Worktrees, repository: Path) -> None:
    path = worktrees.path_for("demo", "x")
    path.mkdir(parents=True)
    (path / "mine").write_text("mine")
    with pytest.raises(CcorchError, match="there already") as caught:
        await worktrees.create(repository, path, "ccorch/x", "")
    assert caught.value.code is ErrorCode.WRONG_STATE
    assert (path / "mine").read_text() == "mine"
    (path / "mine").unlink()
    await worktrees.create(repository, path, "ccorch/x", "")


async def test_create_takes_up_an_existing_branch(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, base = place
    own = commit(path, "own", "own")
    await worktrees.remove(repository, path, branch, base)
    commit(repository, "later", "later")
    assert await worktrees.create(repository, path, branch, "main", reuse=True) == base
    assert git(path, "rev-parse", "HEAD") == own
    with pytest.raises(CcorchError) as caught:
        await worktrees.create(repository, worktrees.path_for("demo", "other"), branch, "", reuse=True)
    assert caught.value.code is ErrorCode.BRANCH_IN_USE
    assert git(repository, "rev-parse", branch) == own
    assert await worktrees.create(repository, worktrees.path_for("demo", "new"), "ccorch/new", "", reuse=True)


async def test_create_after_the_folder_was_deleted_by_hand(
    worktrees: Worktrees, repository: Path, place: Place
) -> None:
    path, branch, base = place
    shutil.rmtree(path)
    assert await worktrees.create(repository, path, branch, "", reuse=True) == base
    assert (path / "a.txt").exists()


async def test_five_at_once(worktrees: Worktrees, repository: Path) -> None:
    """Other daemons and people work in the same repository, which this one's lock does not keep away."""
    names = ["a", "b", "c", "d", "e"]
    other = Worktrees(worktrees.path_for("", "").parent)

    async def one(owner: Worktrees, project: str, name: str) -> str:
        return await owner.create(repository, owner.path_for(project, name), f"{project}/{name}", "")

    async def disturb() -> None:
        for _ in range(4):
            process = await asyncio.create_subprocess_exec("git", "-C", str(repository), "pack-refs", "--all")
            await process.wait()

    *commits, _ = await asyncio.gather(
        *(one(worktrees, "ccorch", name) for name in names), *(one(other, "other", name) for name in names), disturb()
    )
    assert set(commits) == {git(repository, "rev-parse", "HEAD")}
    assert len(git(repository, "worktree", "list").splitlines()) == 11


async def test_five_at_once_with_one_name(worktrees: Worktrees, repository: Path) -> None:
    path = worktrees.path_for("demo", "x")
    results = await asyncio.gather(
        *(worktrees.create(repository, path, "ccorch/x", "") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, str) for result in results) == 1
    assert all(isinstance(result, (str, CcorchError)) for result in results)
    assert git(path, "branch", "--show-current") == "ccorch/x"


async def test_create_waits_for_a_lock(worktrees: Worktrees, repository: Path) -> None:
    lock = repository / ".git/refs/heads/ccorch/x.lock"
    lock.parent.mkdir()
    lock.touch()
    creating = asyncio.ensure_future(worktrees.create(repository, worktrees.path_for("demo", "x"), "ccorch/x", ""))
    done, _ = await asyncio.wait([creating], timeout=0.3)
    assert not done
    lock.unlink()
    await creating


async def test_hook_runs_and_sees_the_callers_path(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    git(repository, "config", "core.hooksPath", str(hooks))
    (hooks / "post-checkout").write_text('#!/bin/sh\nprintf %s "$PATH" > seen\nsleep 60 2>&1 &\necho $! > sleeper\n')
    (hooks / "post-checkout").chmod(0o755)
    path = worktrees.path_for("demo", "x")
    search = f"/somewhere:{os.environ['PATH']}"
    # The hook's background process holds git's outputs open; nobody waits for it.
    async with asyncio.timeout(30):
        await worktrees.create(repository, path, "ccorch/x", "", environment={"PATH": search, "HOME": "/nonexistent"})
    os.kill(int((path / "sleeper").read_text()), 15)
    # git puts its own folder in front.
    assert (path / "seen").read_text().endswith(search)


@pytest.mark.parametrize("way", ["hook fails", "filter fails", "too slow", "cancelled", "cancelled late"])
async def test_create_is_undone(tmp_path: Path, repository: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worktrees = Worktrees(tmp_path / "data", timeout=0.5 if way == "too slow" else 30)
    before = everything(repository)
    started = tmp_path / "started"
    os.mkfifo(started)
    if way == "hook fails":
        hook(repository, "post-checkout", "echo no such tool >&2; exit 3")
    elif way == "filter fails":
        (repository / ".git/info").mkdir(exist_ok=True)
        (repository / ".git/info/attributes").write_text("b.txt filter=broken\n")
        git(repository, "config", "filter.broken.smudge", "false")
        git(repository, "config", "filter.broken.clean", "cat")
        git(repository, "config", "filter.broken.required", "true")
    elif way in ("too slow", "cancelled"):
        hook(repository, "post-checkout", f"echo > '{started}' & exec sleep 60")
    else:
        hook(repository, "post-checkout", f"echo > '{started}'; cat '{started}'")
    path = worktrees.path_for("demo", "x")
    creating = asyncio.ensure_future(worktrees.create(repository, path, "ccorch/x", ""))
    if way.startswith("cancelled") or way == "too slow":
        await asyncio.to_thread(started.read_text)
        assert (path / "a.txt").exists()
    if way == "cancelled":
        creating.cancel()
    elif way == "cancelled late":
        # The hook ends, and with it git; the cancellation meets a create that has succeeded or just been ended.
        writing = asyncio.ensure_future(asyncio.to_thread(started.write_text, "go"))
        creating.cancel()
        await asyncio.wait([creating])
        if not writing.done():
            await asyncio.to_thread(started.read_text)
        await writing
    if way.startswith("cancelled"):
        with pytest.raises(asyncio.CancelledError):
            await creating
    else:
        with pytest.raises(CcorchError) as caught:
            await creating
        code = ErrorCode.TIMEOUT if way == "too slow" else ErrorCode.GIT_FAILED
        assert caught.value.code is code
        words = {
            "hook fails": "post-checkout hook.*status 3: no such tool",
            "filter fails": "b.txt",
            "too slow": "0.5 s",
        }
        caught.match(words[way])
    assert everything(repository) == before
    assert not path.parent.exists()
    (repository / ".git/hooks/post-checkout").unlink(missing_ok=True)
    (repository / ".git/info/attributes").unlink(missing_ok=True)
    await worktrees.create(repository, path, "ccorch/x", "")


FULL_DISK = """
import asyncio, subprocess, sys
from pathlib import Path
from ccorchd.errors import CcorchError
from ccorchd.worktrees import Worktrees
disk, repository = Path(sys.argv[1]), Path(sys.argv[2])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", disk], capture_output=True).returncode:
    sys.exit(77)
worktrees = Worktrees(disk)
path = worktrees.path_for("demo", "x")
for big in (repository / "big", repository / "wanted"):
    big.write_bytes(bytes(range(256)) * 16384)
    if big.name == "big":
        subprocess.run(["git", "-C", repository, "add", "big"], check=True)
        subprocess.run(["git", "-C", repository, "commit", "-q", "-m", "big"], check=True)
        try:
            asyncio.run(worktrees.create(repository, path, "ccorch/x", ""))
        except CcorchError as error:
            print(error.code, error.message)
        print(path.exists())
    else:
        asyncio.run(worktrees.create(repository, path, "ccorch/x", "HEAD~1"))
        try:
            asyncio.run(worktrees.include(repository, path))
        except CcorchError as error:
            print(error.code, error.message)
        print((path / "wanted").exists())
"""


async def test_full_disk(repository: Path, tmp_path: Path) -> None:
    said = "error: unable to write file big\nfatal: cannot create directory: No space left on device\n"
    assert failure(Answer(128, b"", said), tmp_path).code is ErrorCode.NO_SPACE
    # A real one needs a mount of our own, which not every machine lets an ordinary user have.
    (repository / ".worktreeinclude").write_text("wanted\n")
    disk = tmp_path / "disk"
    disk.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", FULL_DISK, disk, repository),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    output, errors = await process.communicate()
    if process.returncode == 0:
        lines = output.decode().splitlines()
        assert [line.split()[0] for line in lines] == ["NoSpace", "False", "NoSpace", "False"], lines
    else:
        assert process.returncode == 77 or errors.startswith(b"unshare:"), errors.decode()


# .worktreeinclude


async def test_include(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (repository / "linked").symlink_to(outside)
    git(repository, "add", "linked")
    git(repository, "commit", "-q", "-m", "A link to a folder outside")
    path = worktrees.path_for("demo", "x")
    await worktrees.create(repository, path, "ccorch/x", "")
    assert await worktrees.include(repository, path) == []

    (repository / ".gitignore").write_text("*.env\nnode/\n")
    (repository / ".worktreeinclude").write_text(
        "*.env\n!public.env\nconf/*\n!conf/skip\nnode/\nlinked/\na.txt\nadded\n"
    )
    for name in ("one.env", "public.env", "deep/er/two.env", "conf/use", "conf/skip", "node/m/x.js", "other"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(name)
    (repository / "one.env").chmod(0o600)
    (repository / "node/run").write_text("x")
    (repository / "node/run").chmod(0o755)
    (repository / "link.env").symlink_to("one.env")
    (repository / "dead.env").symlink_to("/nonexistent/x")
    (repository / "node").chmod(0o700)
    os.mkfifo(repository / "pipe.env")
    # In the main checkout `linked` has become a folder; in the worktree it is a link that leads outside.
    (repository / "linked").unlink()
    git(repository, "rm", "-q", "--cached", "linked")
    (repository / "linked").mkdir()
    (repository / "linked/x").write_text("x")
    # And `added` is tracked only on the worktree's branch.
    commit(path, "added", "the branch's own")
    (repository / "added").write_text("the main checkout's")
    (path / "conf").mkdir()
    (path / "conf/use").write_text("already there")

    copied = await worktrees.include(repository, path)
    assert sorted(copied) == ["dead.env", "deep/er/two.env", "link.env", "node/m/x.js", "node/run", "one.env"]
    assert (path / "one.env").stat().st_mode & 0o777 == 0o600
    assert (path / "one.env").stat().st_mtime_ns == (repository / "one.env").stat().st_mtime_ns
    assert (path / "node/run").stat().st_mode & 0o777 == 0o755
    assert (path / "node").stat().st_mode & 0o777 == 0o700
    assert os.readlink(path / "link.env") == "one.env"
    assert os.readlink(path / "dead.env") == "/nonexistent/x"
    assert (path / "added").read_text() == "the branch's own"
    assert (path / "conf/use").read_text() == "already there"
    assert list(outside.iterdir()) == []
    assert not any((path / name).exists() for name in ("public.env", "conf/skip", "other"))
    assert await worktrees.include(repository, path) == []


async def test_include_leaves_out_what_a_sparse_checkout_hides(
    worktrees: Worktrees, repository: Path, place: Place
) -> None:
    path = place[0]
    git(path, "sparse-checkout", "set", "--no-cone", "/a.txt")
    assert not (path / "src").exists()
    git(repository, "rm", "-q", "--cached", "src/b.txt")
    (repository / ".worktreeinclude").write_text("src/\n")
    assert await worktrees.include(repository, path) == []


# Looking


async def test_status_commits_and_diff(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, base = place
    clean = await worktrees.status(path, branch, base, repository)
    assert (clean.head, clean.ahead, clean.behind, clean.dirty, clean.missing) == (base, 0, 0, False, False)
    first = commit(path, "a.txt", "ONE\nmore\n", "Change a\n\nwith a body")
    second = commit(path, "c.txt", "new\n", "Add c — ünïcode")
    commit(repository, "elsewhere", "x")
    (path / "src/b.txt").write_text("TWO\n")
    (path / "untracked one.txt").write_text("1\n2\n3\n")
    index = (repository / ".git/worktrees/amber/index").read_bytes()

    status = await worktrees.status(path, branch, base, repository)
    assert (status.head, status.ahead, status.behind, status.dirty) == (second, 2, 1, True)
    assert (status.files_changed, status.insertions, status.deletions, status.branch) == (4, 7, 2, branch)
    assert (await worktrees.status(path, branch, base, repository, base=base)).behind == 0
    assert (await worktrees.status(path, branch, base, repository, base="gone")).behind == 1

    expected = [(second, "Add c — ünïcode"), (first, "Change a")]
    assert await worktrees.commits(path, base) == await worktrees.commits(repository, base, branch) == expected
    assert await worktrees.commits(repository, first, branch) == expected[:1]
    assert await worktrees.commits(path, second) == []
    with pytest.raises(CcorchError) as caught:
        await worktrees.commits(repository, base, "gone")
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT

    diff = await worktrees.diff(path, base)
    assert all(words in diff for words in ("+ONE", "+TWO", "+new", "untracked one.txt", "+3"))
    assert "4 files changed, 7 insertions(+), 2 deletions(-)" in await worktrees.diff(path, base, stat=True)
    committed = await worktrees.diff(repository, base, branch=branch)
    assert "+new" in committed
    assert "TWO" not in committed
    assert (repository / ".git/worktrees/amber/index").read_bytes() == index


async def test_a_missing_worktree_is_told_by_its_branch(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, base = place
    head = commit(path, "c.txt", "new\n")
    shutil.rmtree(path)
    status = await worktrees.status(path, branch, base, repository)
    assert (status.head, status.ahead, status.missing, status.dirty, status.files_changed) == (head, 1, True, False, 1)
    with pytest.raises(CcorchError) as caught:
        await worktrees.diff(path, base)
    assert caught.value.code is ErrorCode.WRONG_STATE
    git(repository, "worktree", "prune")
    git(repository, "branch", "-D", branch)
    assert (await worktrees.status(path, branch, base, repository)).head == ""


async def test_a_huge_diff_is_cut(worktrees: Worktrees, place: Place) -> None:
    path, _, base = place
    (path / "huge").write_text("0123456789abcdef\n" * 400_000)
    diff = await worktrees.diff(path, base)
    assert len(diff) < 4 * 1024**2 + 200
    assert diff.splitlines()[-1].startswith("… only the first 4 MiB")
    (path / "huge").write_bytes(b"\0" * 100)
    assert "Binary files" in await worktrees.diff(path, base)


# Remove


async def removal_refused(worktrees: Worktrees, repository: Path, place: Place, words: str) -> None:
    before = everything(repository)
    with pytest.raises(CcorchError, match=words) as told:
        await worktrees.check_removable(repository, place[0], place[1])
    with pytest.raises(CcorchError, match=words) as caught:
        await worktrees.remove(repository, *place)
    assert caught.value.code is told.value.code is ErrorCode.WORKTREE_DIRTY
    assert caught.value.hint
    assert everything(repository) == before


async def test_remove_clean(worktrees: Worktrees, repository: Path, place: Place, tmp_path: Path) -> None:
    before = git(repository, "worktree", "list")
    await worktrees.check_removable(repository, place[0], place[1])
    (place[0] / "cache").mkdir()
    (place[0] / ".gitignore").write_text("*\n")
    (place[0] / "cache/x").touch()
    (place[0] / "cache").chmod(0o500)
    assert await worktrees.remove(repository, *place) == Removed(branch_deleted=True, kept_ref="")
    assert git(repository, "worktree", "list") != before
    assert refs(repository) == ["refs/heads/main"]
    assert list((tmp_path / "data").rglob("*")) == [tmp_path / "data/worktrees", tmp_path / "data/worktrees/demo"] or (
        not place[0].exists() and not list((tmp_path / "data/removed").iterdir())
    )
    # What is gone already is no error.
    assert await worktrees.remove(repository, *place) == Removed(branch_deleted=False, kept_ref="")


async def test_remove_keeps_an_unmerged_branch(worktrees: Worktrees, repository: Path, place: Place) -> None:
    tip = commit(place[0], "c", "c")
    assert await worktrees.remove(repository, *place) == Removed(branch_deleted=False, kept_ref="")
    assert git(repository, "rev-parse", place[1]) == tip
    git(repository, "merge", "-q", place[1])
    assert (await worktrees.remove(repository, *place)).branch_deleted


async def test_remove_deletes_a_pushed_branch(
    worktrees: Worktrees, repository: Path, place: Place, tmp_path: Path
) -> None:
    git(tmp_path, "init", "-q", "--bare", "remote")
    git(repository, "remote", "add", "origin", str(tmp_path / "remote"))
    commit(place[0], "c", "c")
    git(place[0], "push", "-q", "-u", "origin", place[1])
    assert (await worktrees.remove(repository, *place)).branch_deleted
    assert git(repository, "config", "--get-regexp", r"^branch\.", check=False) == ""


async def test_remove_keeps_the_last_name_of_a_base(worktrees: Worktrees, repository: Path) -> None:
    git(repository, "switch", "-q", "-c", "topic")
    only = commit(repository, "topic", "topic")
    path = worktrees.path_for("demo", "x")
    base = await worktrees.create(repository, path, "ccorch/x", "topic")
    other = worktrees.path_for("demo", "y")
    await worktrees.create(repository, other, "ccorch/y", "topic")
    git(repository, "switch", "-q", "main")
    assert (await worktrees.remove(repository, other, "ccorch/y", base)).branch_deleted
    git(repository, "branch", "-q", "-D", "topic")
    assert not (await worktrees.remove(repository, path, "ccorch/x", base)).branch_deleted
    assert git(repository, "rev-parse", "ccorch/x") == only


async def test_remove_leaves_a_branch_that_is_checked_out_elsewhere(
    worktrees: Worktrees, repository: Path, place: Place
) -> None:
    git(place[0], "switch", "-q", "-c", "mine")
    git(repository, "switch", "-q", place[1])
    assert not (await worktrees.remove(repository, *place)).branch_deleted
    assert refs(repository) == [f"refs/heads/{place[1]}", "refs/heads/main", "refs/heads/mine"]


Spoil = Callable[[Path], object]

DIRTY: dict[str, Spoil] = {
    "modified": lambda path: (path / "a.txt").write_text("changed"),
    "deleted": lambda path: (path / "a.txt").unlink(),
    "staged": lambda path: ((path / "a.txt").write_text("staged"), git(path, "add", "a.txt")),
    "untracked": lambda path: (path / "new").write_text("new"),
    "untracked though hidden": lambda path: (
        git(path, "config", "status.showUntrackedFiles", "no"),
        (path / "new").write_text("new"),
    ),
}


@pytest.mark.parametrize("kind", DIRTY)
async def test_remove_refuses_uncommitted_work(worktrees: Worktrees, repository: Path, place: Place, kind: str) -> None:
    DIRTY[kind](place[0])
    await removal_refused(worktrees, repository, place, "uncommitted work: (a.txt|new)")
    result = await worktrees.remove(repository, *place, force=True)
    assert result.kept_ref.startswith(f"refs/ccorch/removed/{place[1]}-2")
    assert git(repository, "rev-parse", f"{result.kept_ref}^1") == place[2]
    assert git(repository, "diff", "--name-only", place[2], result.kept_ref) in ("a.txt", "new")
    assert result.branch_deleted
    assert not place[0].exists()


async def test_force_keeps_index_and_files_apart(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path = place[0]
    (path / ".gitignore").write_text("*.log\n")
    (path / "a.txt").write_text("staged\n")
    git(path, "add", "a.txt")
    (path / "a.txt").write_text("then changed\n")
    (path / "sub dir").mkdir()
    (path / "sub dir/-n\new").write_text("untracked\n")
    (path / "x.log").write_text("ignored\n")
    result = await worktrees.remove(repository, *place, force=True)
    kept = result.kept_ref
    assert git(repository, "show", f"{kept}:a.txt") == "then changed"
    assert git(repository, "show", f"{kept}^2:a.txt") == "staged"
    assert git(repository, "show", f"{kept}:sub dir/-n\new") == "untracked"
    assert "x.log" not in git(repository, "ls-tree", "-r", "--name-only", kept)
    git(repository, "gc", "-q", "--prune=now")
    assert git(repository, "show", f"{kept}^2:a.txt") == "staged"


async def test_force_keeps_a_half_finished_merge(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path = place[0]
    commit(repository, "a.txt", "theirs\n")
    tip = commit(path, "a.txt", "ours\n")
    git(path, "merge", "main", check=False)
    await removal_refused(worktrees, repository, place, r"a\.txt")
    result = await worktrees.remove(repository, *place, force=True)
    assert "<<<<<<<" in git(repository, "show", f"{result.kept_ref}:a.txt")
    assert git(repository, "rev-parse", place[1]) == tip == git(repository, "rev-parse", f"{result.kept_ref}^1")


@pytest.mark.parametrize("folder_gone", [False, True])
async def test_commits_on_no_branch_are_kept(
    worktrees: Worktrees, repository: Path, place: Place, folder_gone: bool
) -> None:
    git(place[0], "switch", "-q", "--detach")
    tip = commit(place[0], "c", "c")
    if folder_gone:
        shutil.rmtree(place[0])
    else:
        await removal_refused(worktrees, repository, place, "on no branch")
    result = await worktrees.remove(repository, *place, force=not folder_gone)
    assert git(repository, "rev-parse", result.kept_ref) == tip
    assert result.branch_deleted


async def test_remove_when_the_folder_was_deleted_by_hand(worktrees: Worktrees, repository: Path, place: Place) -> None:
    (place[0] / "a.txt").write_text("staged only\n")
    git(place[0], "add", "a.txt")
    shutil.rmtree(place[0])
    result = await worktrees.remove(repository, *place)
    assert git(repository, "show", f"{result.kept_ref}:a.txt") == "staged only"
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert result.branch_deleted


async def test_a_folder_git_does_not_know_is_set_aside(worktrees: Worktrees, repository: Path, place: Place) -> None:
    (place[0] / ".git").unlink()
    (place[0] / "new").write_text("new")
    await removal_refused(worktrees, repository, place, "no worktree of")
    result = await worktrees.remove(repository, *place, force=True)
    assert (Path(result.kept_folder) / "new").read_text() == "new"
    assert not place[0].exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


async def test_remove_when_the_repository_is_gone(worktrees: Worktrees, repository: Path, place: Place) -> None:
    shutil.rmtree(repository)
    with pytest.raises(CcorchError) as caught:
        await worktrees.remove(repository, *place)
    assert caught.value.code is ErrorCode.NOT_A_REPOSITORY
    result = await worktrees.remove(repository, *place, force=True)
    assert (Path(result.kept_folder) / "a.txt").read_text() == "one\n"
    assert await worktrees.remove(repository, *place) == Removed(branch_deleted=False, kept_ref="")


async def test_a_locked_worktree_needs_force(worktrees: Worktrees, repository: Path, place: Place) -> None:
    git(repository, "worktree", "lock", str(place[0]))
    with pytest.raises(CcorchError) as caught:
        await worktrees.remove(repository, *place)
    assert caught.value.code is ErrorCode.WRONG_STATE
    await worktrees.remove(repository, *place, force=True)
    assert len(git(repository, "worktree", "list").splitlines()) == 1


async def test_the_main_checkout_is_never_removed(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    for path in (repository, tmp_path, repository / "src"):
        with pytest.raises(CcorchError):
            await worktrees.remove(repository, path, "main", "", force=False)
    for path in (repository, tmp_path):
        with pytest.raises(CcorchError) as caught:
            await worktrees.remove(repository, path, "main", "", force=True)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert (repository / "src/b.txt").exists()


async def test_a_clone_inside_is_set_aside(worktrees: Worktrees, repository: Path, place: Place) -> None:
    inner = place[0] / "vendor/clone"
    inner.mkdir(parents=True)
    git(inner, "init", "-q")
    await removal_refused(worktrees, repository, place, "vendor/clone")  # has no commit even, which `git add` refuses
    tip = commit(inner, "x", "x")
    (inner / "x").write_text("changed")
    (place[0] / "new").write_text("new")
    result = await worktrees.remove(repository, *place, force=True)
    aside = Path(result.kept_folder) / "vendor/clone"
    assert git(aside, "rev-parse", "HEAD") == tip
    assert (aside / "x").read_text() == "changed"
    assert git(repository, "show", f"{result.kept_ref}:new") == "new"


async def test_a_worktree_inside_goes_with_it(worktrees: Worktrees, repository: Path, place: Place) -> None:
    inner = place[0] / ".claude/worktrees/helper"
    git(place[0], "worktree", "add", "-q", "-b", "helper", str(inner))
    (inner / "new").write_text("new")
    await removal_refused(worktrees, repository, place, "helper has uncommitted work: new")
    result = await worktrees.remove(repository, *place, force=True)
    assert git(repository, "show", f"{result.kept_ref}:new") == "new"
    assert result.kept_ref.startswith("refs/ccorch/removed/helper-")
    assert refs(repository) == [result.kept_ref, "refs/heads/helper", "refs/heads/main"]
    assert result.kept_folder == ""
    assert len(git(repository, "worktree", "list").splitlines()) == 1


async def test_submodules(worktrees: Worktrees, repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    commit(library, "x", "x")
    git(repository, "submodule", "--quiet", "add", str(library), "sub")
    git(repository, "commit", "-q", "-m", "Add a submodule")
    path = worktrees.path_for("demo", "x")
    base = await worktrees.create(repository, path, "ccorch/x", "")
    git(path, "submodule", "--quiet", "update", "--init")
    assert (await worktrees.remove(repository, path, "ccorch/x", base)).branch_deleted

    base = await worktrees.create(repository, path, "ccorch/x", "")
    git(path, "submodule", "--quiet", "update", "--init")
    own = commit(path / "sub", "y", "y")
    git(path, "commit", "-q", "-a", "-m", "Move the submodule on")
    await removal_refused(worktrees, repository, (path, "ccorch/x", base), "commits of their own: sub")
    result = await worktrees.remove(repository, path, "ccorch/x", base, force=True)
    aside = Path(result.kept_folder) / "sub"
    assert git(aside, "rev-parse", "HEAD") == own
    assert git(aside, "status", "--porcelain") == ""


async def test_five_removed_at_once(worktrees: Worktrees, repository: Path) -> None:
    places = [(worktrees.path_for("demo", name), f"ccorch/{name}") for name in "abcde"]
    bases = await asyncio.gather(*(worktrees.create(repository, path, branch, "") for path, branch in places))
    results = await asyncio.gather(
        *(worktrees.remove(repository, *where, base) for where, base in zip(places, bases, strict=True))
    )
    assert all(result.branch_deleted for result in results)
    assert refs(repository) == ["refs/heads/main"]


async def test_take_back(worktrees: Worktrees, repository: Path, place: Place) -> None:
    before = refs(repository)
    (place[0] / ".env").write_text("copied")
    assert await worktrees.take_back(repository, *place) == Removed(branch_deleted=True, kept_ref="")
    assert refs(repository) == ["refs/heads/main"] != before
    assert not place[0].parent.exists()
    base = await worktrees.create(repository, place[0], place[1], "")
    tip = commit(place[0], "c", "c")
    (place[0] / "new").write_text("new")
    result = await worktrees.take_back(repository, place[0], place[1], base)
    assert git(repository, "rev-parse", f"{result.kept_ref}^1") == tip == git(repository, "rev-parse", place[1])


async def test_remove_what_a_killed_daemon_left_of_a_create(
    worktrees: Worktrees, repository: Path, place: Place
) -> None:
    git(repository, "switch", "-q", "-c", "other", "HEAD~1")
    assert await worktrees.remove(repository, place[0], place[1], "main", force=True) == Removed(True, "")
    assert refs(repository) == ["refs/heads/main", "refs/heads/other"]


# Merge


async def test_merge_forward_and_with_a_commit(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, base = place
    assert await worktrees.merge(repository, branch) == base
    (repository / "notes").write_text("untracked files do not matter")
    git(repository, "config", "merge.ff", "no")
    tip = commit(path, "c", "c")
    assert await worktrees.merge(repository, branch) == tip == git(repository, "rev-parse", "main")
    commit(repository, "d", "d")
    tip = commit(path, "e", "e")
    merged = await worktrees.merge(repository, branch)
    assert git(repository, "rev-parse", "main^2") == tip
    assert git(repository, "log", "-1", "--format=%H %an %s") == f"{merged} Ada Merge branch '{branch}'"
    assert (repository / "e").exists()
    assert (await worktrees.remove(repository, *place)).branch_deleted


async def test_merge_conflict_changes_nothing(worktrees: Worktrees, repository: Path, place: Place) -> None:
    path, branch, _ = place
    commit(path, "src/b.txt", "theirs\n")
    commit(path, "a.txt", "theirs\n")
    commit(path, "fine", "fine\n")
    commit(repository, "src/b.txt", "ours\n")
    commit(repository, "a.txt", "ours\n")
    before = everything(repository)
    with pytest.raises(CcorchError, match=r"conflicts with main in a\.txt, src/b\.txt$") as caught:
        await worktrees.merge(repository, branch)
    assert caught.value.code is ErrorCode.MERGE_CONFLICT
    assert caught.value.hint
    assert everything(repository) == before
    assert (repository / "a.txt").read_text() == "ours\n"
    assert not (repository / "fine").exists()


@pytest.mark.parametrize(
    "kind", ["modified", "staged", "in the way", "detached", "rebasing", "hook", "no branch", "name"]
)
async def test_merge_refused(worktrees: Worktrees, repository: Path, place: Place, kind: str) -> None:
    path, branch, base = place
    commit(path, "new", "new\n")
    commit(path, "a.txt", "theirs\n")
    code = ErrorCode.WORKTREE_DIRTY
    if kind in ("modified", "staged"):
        (repository / "src/b.txt").write_text("changed")
        if kind == "staged":
            git(repository, "add", ".")
    elif kind == "in the way":
        (repository / "new").write_text("mine")
    elif kind == "detached":
        git(repository, "switch", "-q", "--detach")
        code = ErrorCode.WRONG_STATE
    elif kind == "rebasing":
        commit(repository, "a.txt", "ours\n")
        git(repository, "rebase", branch, check=False)
        code = ErrorCode.WRONG_STATE
    elif kind == "hook":
        commit(repository, "d", "d")
        hook(repository, "pre-merge-commit", "echo not today >&2; exit 1")
        code = ErrorCode.GIT_FAILED
    else:
        branch = "gone" if kind == "no branch" else "--abort"
        code = ErrorCode.INVALID_ARGUMENT
    before = everything(repository)
    with pytest.raises(CcorchError) as caught:
        await worktrees.merge(repository, branch)
    assert caught.value.code is code
    assert everything(repository) == before
    if kind == "in the way":
        assert "new" in caught.value.message
        assert (repository / "new").read_text() == "mine"
    if kind == "hook":
        assert "not today" in caught.value.message
    assert base in git(repository, "log", "--format=%H", "--all").split()


async def test_merge_without_a_name_to_commit_with(
    worktrees: Worktrees, repository: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(place[0], "c", "c")
    commit(repository, "d", "d")
    Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text("[user]\n\tuseConfigOnly = true\n")
    before = everything(repository)
    with pytest.raises(CcorchError, match="does not know your name") as caught:
        await worktrees.merge(repository, place[1])
    assert "user.email" in caught.value.hint
    assert everything(repository) == before


def test_credentials_in_urls_are_not_told() -> None:
    said = "fatal: unable to access 'https://ada:s3cret@example.org/x.git/': no\n"
    assert "s3cret" not in failure(Answer(128, b"", said), Path("/x")).message
