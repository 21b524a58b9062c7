# SPDX-License-Identifier: LGPL-2.1-or-later
"""No room for a worktree, and no room at all: one sentence each, nothing left, and on it goes once there is room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest import REPOSITORY, WORKTREES, Guest

FILLER = "/var/tmp/filler"


@pytest.fixture
def small_disk(guest: Guest) -> Iterator[None]:
    """A project whose worktrees lie on a disk of 2 MB, while a checkout needs eight."""
    guest.shell(
        f"""
        set -eu
        git init -q -b main ~/large && cd ~/large
        head -c 8000000 /dev/urandom >data.bin
        git add -A && git -c user.name=Test -c user.email=test@example.com commit -q -m Start
        mkdir -p {WORKTREES}/large
        """
    )
    guest.ok("init", "/home/dev/large", "--name", "large", "--yes")
    guest.shell(f"mount -t tmpfs -o size=2M,uid=1000,gid=1000,mode=755 small {WORKTREES}/large", root=True)
    try:
        yield
    finally:
        guest.shell(f"umount -l {WORKTREES}/large", root=True)
        guest.ok("project", "remove", "large", "--yes")
        guest.shell("rm -rf ~/large")


@pytest.mark.usefixtures("small_disk")
def test_worktree_on_a_full_disk(guest: Guest) -> None:
    said = guest.refused(1, "instance", "create", "large/big", "--prompt", "#sleep 60")
    assert "space" in said.lower()
    assert not guest.instances()
    assert not guest.scopes()
    listed = guest.shell(
        f"cd ~/large; git worktree list --porcelain | grep -c ^worktree; git branch; ls -A {WORKTREES}/large"
    )
    assert listed.split() == ["1", "*", "main"]


def test_full_disk(guest: Guest) -> None:
    before = guest.shell("systemctl --user show --value -p MainPID ccorchd")
    # What is reserved for root stays: a machine whose root can do nothing is another story.
    script = f"fallocate -l $(df -B1 --output=avail {REPOSITORY} | tail -1) $0; cat /dev/zero >>$0; sync $0"
    guest.machine.run(["sh", "-c", script, FILLER], timeout=300)
    try:
        assert int(guest.shell(f"df --output=avail {REPOSITORY} | tail -1")) < 64
        said = guest.refused(1, "instance", "create", "sample/nowhere")
        assert "space" in said.lower() or "full" in said.lower()
        assert not guest.instances()
        assert not guest.scopes()
        assert guest.ctl("status").returncode == 0
    finally:
        guest.shell(f"rm -f {FILLER}", root=True)
    assert guest.worktrees() == 0
    assert guest.shell("systemctl --user show --value -p MainPID ccorchd") == before
    assert guest.sound() == "ok"
    guest.create(nowhere=[])
    guest.wait_state("sample/nowhere", "idle")
