# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values in configuration and project files that only look right."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccorchd import config, projectfile
from ccorchd.contract import ErrorCode
from ccorchd.errors import CcorchError
from ccorchd.gitwork.refs import check_revision


def test_an_environment_cannot_hold_a_nul(tmp_path: Path) -> None:
    (tmp_path / ".ccorch.toml").write_text('[environment]\nA = "x"\nB = "a\\u0000b"\n')
    with pytest.raises(CcorchError, match=r":3: environment\.B: a variable cannot hold a NUL") as caught:
        projectfile.load(tmp_path)
    assert caught.value.code is ErrorCode.CONFIG_INVALID


@pytest.mark.parametrize("name", ["Claude Code", "../claude", ""])
def test_an_agent_of_the_configuration_has_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "ccorchd.toml").write_text(f'[instances]\nagent = "{name}"\n')
    with pytest.raises(CcorchError, match="is no name of an agent") as caught:
        config.load(tmp_path, {})
    assert caught.value.code is ErrorCode.CONFIG_INVALID


@pytest.mark.parametrize("text", ["", "-x", "a..b", ":/fix", "^main", "x" * 401, "a\udcff"])
def test_what_could_be_an_option_a_range_or_a_search_names_no_commit(text: str) -> None:
    with pytest.raises(CcorchError, match="does not name a commit") as caught:
        check_revision(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["main", "origin/main", "v1.2", "HEAD~3", "0123abc"])
def test_what_names_a_commit_is_returned(text: str) -> None:
    assert check_revision(text) == text
