# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from ccorchd.gitwork.disposal import discard, set_aside


def work(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "note.txt").write_text("work")
    return folder


def test_deleting_takes_write_protected_folders_and_leaves_what_links_point_to(tmp_path: Path) -> None:
    kept = work(tmp_path / "kept")
    folder = work(tmp_path / "worktree/cache").parent
    (folder / "link").symlink_to(kept)
    (folder / "cache").chmod(0o500)
    discard(folder)
    assert not folder.exists()
    assert (kept / "note.txt").read_text() == "work"


def test_deleting_a_link_or_a_file_takes_it_alone_and_nothing_is_fine(tmp_path: Path) -> None:
    kept = work(tmp_path / "kept")
    link = tmp_path / "link"
    link.symlink_to(kept)
    discard(link)
    assert not os.path.lexists(link)
    assert kept.is_dir()
    discard(kept / "note.txt")
    discard(kept / "note.txt")
    assert not (kept / "note.txt").exists()


def test_what_is_set_aside_never_meets_what_was_set_aside_before(tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    places = {set_aside(work(tmp_path / "worktree"), removed, "sample-one") for _ in range(3)}
    assert len(places) == 3
    assert all((place / "note.txt").read_text() == "work" for place in places)
    assert {place.parent for place in places} == {removed}


def test_on_another_file_system_it_stays_beside_itself(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(tmp_path).st_dev:
            pytest.fail("/dev/shm and the temporary folder are on one file system, so this shows nothing")
        place = set_aside(work(Path(elsewhere) / "worktree"), tmp_path / "removed", "sample-one")
        assert place.parent == Path(elsewhere)
        assert place.name.startswith(".removed-sample-one-")
        assert (place / "note.txt").read_text() == "work"
    assert not list((tmp_path / "removed").iterdir())


def test_what_cannot_be_moved_leaves_no_empty_name_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        set_aside(tmp_path / "absent", tmp_path / "removed", "sample-one")
    assert not list((tmp_path / "removed").iterdir())
