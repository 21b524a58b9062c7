# SPDX-License-Identifier: LGPL-2.1-or-later
"""What clients and daemon agree on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ccorchd import contract
from ccorchd.contract import EXIT_OF, ErrorCode, Exit, Naming, Reason, State, pack_error, unpack_error

REPOSITORY = Path(__file__).resolve().parents[2]
SIGNATURE = re.compile(r"(?:[sobydtu]|as|a\{s[sv]\})\Z")


def test_only_the_standard_library_is_needed() -> None:
    tree = ast.parse((REPOSITORY / "ccorchd/contract.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    script = "import ccorchd.contract, sys; print([name for name in sys.modules if name.startswith('ccorchd.')])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "['ccorchd.contract']\n"


def test_names_without_suffix() -> None:
    naming = Naming()
    assert naming.bus_name == "org.ccorch1"
    assert naming.slice == "ccorch.slice"
    assert naming.daemon_unit == "ccorchd.service"
    assert naming.scope("web-shop", "fix-1") == "ccorch-web-shop.fix-1.scope"


def test_a_suffix_shares_no_name_and_is_no_child_slice() -> None:
    plain, trial = Naming(), Naming("run")
    assert trial.bus_name == "org.ccorch1_run"
    # systemd.slice(5): a dash would make it a child of ccorch.slice.
    assert trial.slice == "ccorch_run.slice"
    for name in ("bus_name", "slice", "daemon_unit", "stem", "config_dir", "state_dir", "data_dir", "runtime_dir"):
        assert getattr(plain, name) != getattr(trial, name)
    assert plain.scope("p", "a") != trial.scope("p", "a")
    assert not trial.scope("p", "a").startswith(f"{plain.stem}-")


@pytest.mark.parametrize("suffix", ["Run", "a-b", "a_b", "a" * 17, "ä", "a\n", " ", "."])
def test_bad_suffixes(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCORCH_SUFFIX", suffix)
    with pytest.raises(ValueError, match="CCORCH_SUFFIX"):
        Naming.from_environment()


def test_directories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "CCORCH_SUFFIX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    naming = Naming.from_environment()
    assert naming.config_dir == tmp_path / ".config/ccorch"
    assert naming.state_dir == tmp_path / ".local/state/ccorch"
    assert naming.data_dir == tmp_path / ".local/share/ccorch"
    assert str(naming.runtime_dir).startswith("/run/user/")
    monkeypatch.setenv("XDG_STATE_HOME", "/x/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x/run")
    # The XDG specification: a relative path is to be ignored.
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert naming.state_dir == Path("/x/state/ccorch")
    assert naming.runtime_dir == Path("/x/run/ccorch")
    assert naming.data_dir == tmp_path / ".local/share/ccorch"


@pytest.mark.parametrize(
    ("message", "hint", "packed"),
    [
        ("one sentence", "", "one sentence"),
        ("one\nsentence  here", "do this\nor that", "one sentence here\ndo this\nor that"),
        ("x", "y", "x\ny"),
    ],
)
def test_errors_travel_in_one_string(message: str, hint: str, packed: str) -> None:
    assert pack_error(message, hint) == packed
    assert unpack_error(packed) == (" ".join(message.split()), hint)


def test_error_codes_make_valid_dbus_names() -> None:
    for code in ErrorCode:
        assert re.fullmatch(r"[A-Z][A-Za-z]*", code)
        assert code.name == re.sub(r"(?<!^)([A-Z])", r"_\1", code.value).upper()
        assert EXIT_OF.get(code, Exit.FAILURE) not in (Exit.OK, Exit.INTERRUPTED)
    assert len({*ErrorCode}) == len(ErrorCode)


def test_records_have_valid_signatures() -> None:
    for name in ("INSTANCE", "PROJECT", "EVENT", "WORKTREE", "CHECK", "SETTING"):
        fields: dict[str, str] = getattr(contract, f"{name}_FIELDS")
        for key, signature in fields.items():
            assert re.fullmatch(r"[a-z][a-z_]*", key)
            assert SIGNATURE.match(signature), f"{name} {key}"


def test_an_instance_has_at_least_what_was_promised() -> None:
    promised = """name project state reason since agent session_id branch worktree unit pid created memory_current
        memory_peak cpu_usage_seconds tasks_current limits restarts"""
    assert set(promised.split()) <= contract.INSTANCE_FIELDS.keys()


def test_states() -> None:
    assert {state for state in State if not state.running} == {State.STOPPED, State.FAILED}
    assert not Reason.NONE
    assert all(reason for reason in Reason if reason is not Reason.NONE)
