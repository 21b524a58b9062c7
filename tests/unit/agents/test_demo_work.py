# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo agent plans for a prompt, from real files of a real repository."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from ccorchd.agents.demo_work import Commit, Plan, Repository, Run, Write, make_plan


def repository(root: Path, files: Mapping[str, str | bytes]) -> Repository:
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    return Repository.read(root)


def written(plan: Plan) -> dict[str, str]:
    """Return the last text of each file that *plan* writes; each is committed, and nothing else is."""
    texts = {step.path: step.text for step in plan.steps if isinstance(step, Write)}
    assert {path for step in plan.steps if isinstance(step, Commit) for path in step.paths} == set(texts)
    return texts


def carry_out(plan: Plan, root: Path) -> None:
    """Write the files and run the commands that *plan* says must not fail."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for step in plan.steps:
        if isinstance(step, Write):
            (root / step.path).parent.mkdir(parents=True, exist_ok=True)
            (root / step.path).write_text(step.text)
        elif isinstance(step, Run) and step.needed:
            subprocess.run(step.argv, cwd=root, check=True, capture_output=True, env=environment)


# -- the repository ----------------------------------------------------------------------------------------------------


def test_only_text_of_a_sensible_size_is_read(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "big.py": "#" * (512 * 1024 + 1),
        "binary.py": b"a\0b",
        "latin.py": b"# \xe9\n",
        "good.py": "# é\n",
    }
    found = repository(tmp_path, files)
    assert [found.text(name) for name in (*files, "missing.py")] == [None, None, None, "# é\n", None]


def test_links_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    assert repository(tmp_path, {"a.py": ""}).files == ["a.py"]


def test_language_is_the_most_frequent(tmp_path: Path) -> None:
    assert repository(tmp_path / "one", {"a.js": "", "b.js": "", "c.py": "", "d.md": ""}).language == "JavaScript"
    assert repository(tmp_path / "two", {"d.md": ""}).language == ""


def test_new_files_take_nobody_s_place(tmp_path: Path) -> None:
    found = repository(tmp_path, {"docs/a-b.md": "", "tools/a_b.py": "", "tools/a_b_2.py": ""})
    assert found.free_path("docs", "a-b", ".md") == "docs/a-b-2.md"
    assert found.free_path("tools", "a-b", ".py") == "tools/a_b_3.py"
    assert Repository.read(tmp_path, ["docs/a-b.md"]).free_path("docs", "a-b", ".md") == "docs/a-b.md"


def test_a_thousandth_module_can_still_be_imported(tmp_path: Path) -> None:
    found = repository(tmp_path, {f"tools/a{f'_{number}' if number > 1 else ''}.py": "" for number in range(1, 1000)})
    path = Path(found.free_path("tools", "a", ".py"))
    assert not (tmp_path / path).exists()
    assert path.parent == Path("tools")
    assert path.stem.isidentifier()


# -- what is planned ---------------------------------------------------------------------------------------------------


def test_words_that_say_nothing_still_lead_to_the_same_work(tmp_path: Path) -> None:
    found = repository(tmp_path, {"a.py": "x = 1\n"})
    prompts = [f"Wibble {number}" for number in range(30)]
    kinds = [make_plan(found, prompt, []).kind for prompt in prompts]
    assert set(kinds) == {"documentation", "module", "report"}
    assert [make_plan(found, prompt, []).kind for prompt in prompts] == kinds


def test_page_tells_what_each_file_says_about_itself(tmp_path: Path) -> None:
    files = {
        "a.sh": "#!/bin/sh\n# SPDX-License-Identifier: MIT\n# Backs things up. */\nrun() {\n}\n",
        "b.js": "// Draws the cart.\nexport function draw() {}\n",
        "c.py": '"""Taxes.\n\nMore."""\nclass Tax: ...\n',
        "d.py": "def (broken\n",
    }
    (page,) = written(make_plan(repository(tmp_path, files), "Write a guide", [])).values()
    assert "- `a.sh`: Backs things up.\n" in page
    assert "- `b.js`: Draws the cart.\n" in page
    assert "- `c.py`: Taxes.\n" in page
    assert "- `d.py`\n" in page
    assert [name for name in ("run", "draw", "Tax") if f"- `{name}`\n" in page] == ["run", "draw", "Tax"]


def test_page_about_nothing(tmp_path: Path) -> None:
    plan = make_plan(repository(tmp_path, {"LICENSE": "Do as you like.\n"}), "Write a guide\nto it all", [])
    (page,) = written(plan).values()
    assert page == "# Write a guide\n\n> Write a guide\n> to it all\n"
    assert sum(isinstance(step, Commit) for step in plan.steps) == 1


def test_page_remembers_the_session(tmp_path: Path) -> None:
    earlier = [f"prompt {number}." for number in range(7)]
    (page,) = written(make_plan(repository(tmp_path, {"LICENSE": ""}), "Write a guide", earlier)).values()
    assert page.endswith("- Prompt 2\n- Prompt 3\n- Prompt 4\n- Prompt 5\n- Prompt 6\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "# Changelog\n\n## Unreleased\n\n- Add a release.\n"),
        ("# C\n\n## [Unreleased]\n\n- Old.\n", "# C\n\n## [Unreleased]\n\n- Add a release.\n- Old.\n"),
        ("# C\n\n## 1.0\n\n- Old.\n", "# C\n\n## Unreleased\n\n- Add a release.\n\n## 1.0\n\n- Old.\n"),
        ("Nothing yet.\n", "Nothing yet.\n\n## Unreleased\n\n- Add a release.\n"),
    ],
    ids=["none", "unreleased", "released", "words"],
)
def test_changelog_entry_comes_where_it_belongs(tmp_path: Path, before: str | None, after: str) -> None:
    found = repository(tmp_path, {"CHANGELOG.md": before} if before is not None else {"a.py": ""})
    assert written(make_plan(found, "add a release", [])) == {"CHANGELOG.md": after}


def test_changelog_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    found = repository(tmp_path, {"NEWS": b"\xff\xfe"})
    assert list(written(make_plan(found, "changelog", []))) == ["docs/changelog.md"]


def test_report_counts_what_can_be_read(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.py": "1\n2\n",
        "b.py": "1\n",
        "c.js": "1\n",
        "d.js": b"\0\n",
        "LICENSE": "1\n2\n3\n4\n",
    }
    plan = make_plan(repository(tmp_path, files), "Count the lines", [])
    (report,) = written(plan).values()
    assert "| Python | 2 | 3 |\n| JavaScript | 1 | 1 |\n| **all** | 3 | 4 |\n" in report
    assert "1. `LICENSE`, 4 lines\n1. `a.py`, 2 lines\n" in report
    assert "d.js" not in report
    assert "Counted 4 lines in 2 languages" in plan.summary


def test_tidying_keeps_off_what_has_a_meaning(tmp_path: Path) -> None:
    files = {
        "a.py": "x  \n\n\n",
        "b.py": "x\n",
        "dos.py": "x  \r\n",
        "page.md": "two spaces  \nbreak\n",
        "empty.py": "",
    }
    assert written(make_plan(repository(tmp_path, files), "tidy", [])) == {"a.py": "x\n"}


def test_tidying_touches_a_few_files_only(tmp_path: Path) -> None:
    found = repository(tmp_path, {f"{number}.py": "x \n" for number in range(12)})
    assert len(written(make_plan(found, "tidy", []))) == 8


def test_nothing_to_tidy(tmp_path: Path) -> None:
    plan = make_plan(repository(tmp_path, {"a.py": "x\n"}), "tidy", [])
    assert list(written(plan)) == [".editorconfig"]
    carry_out(plan, tmp_path)
    assert make_plan(Repository.read(tmp_path), "tidy", []).kind == "report"


def test_docstrings_go_only_where_there_is_none(tmp_path: Path) -> None:
    files = {
        "said.py": '"""Said."""\n',
        "broken.py": "def (\n",
        "empty.py": "",
        "comment.py": "# only\n",
        "a.py": "#!/usr/bin/python3\nimport os\n\ndef pay(): ...\n",
    }
    plan = make_plan(repository(tmp_path, files), "docstrings", [])
    (text,) = written(plan).values()
    assert text.startswith('#!/usr/bin/python3\n\n"""Pay."""\n')
    assert ast.get_docstring(ast.parse(text)) == "Pay."
    carry_out(plan, tmp_path)
    assert make_plan(Repository.read(tmp_path), "docstrings", []).kind == "documentation"


def test_docstrings_come_three_at_a_time(tmp_path: Path) -> None:
    found = repository(tmp_path, {f"m{number}.py": "x = 1\n" for number in range(5)})
    assert len(written(make_plan(found, "docstrings", []))) == 3


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (
            {"shop/__init__.py": "", "shop/a.py": "", "tests/__init__.py": "", "tests/a.py": "", "tests/b.py": ""},
            "shop",
        ),
        ({"broken/__init__.py": "import no_such_module\n", "broken/a.py": "", "whole/__init__.py": ""}, "whole"),
        ({"broken/__init__.py": "raise SystemExit(3)\n"}, "tools"),
        ({"README.md": "# Nothing\n"}, "tools"),
    ],
    ids=["package", "second", "broken", "none"],
)
def test_module_lies_where_its_test_finds_it(tmp_path: Path, files: dict[str, str | bytes], folder: str) -> None:
    plan = make_plan(repository(tmp_path, files), 'Implement 2 "fast" \\ functions', [])
    module, test = written(plan)
    assert Path(module).parent == Path(folder)
    assert Path(test).parent == Path("tests")
    assert Path(module).stem.isidentifier()
    carry_out(plan, tmp_path)
