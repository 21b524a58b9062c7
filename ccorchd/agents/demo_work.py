# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the demo agent does for a prompt: it reads the repository and plans steps that edit real files of it.

A plan follows from the words of the prompt and from what the repository holds; names of new files come from the prompt,
so that two prompts never write the same file. Standard library only.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ccorchd.agents.demo_pieces import PIECES

LANGUAGES: Final = {
    ".py": "Python",
    ".js": "JavaScript",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".c": "C",
    ".h": "C",
    ".cc": "C++",
    ".cpp": "C++",
    ".hpp": "C++",
    ".rs": "Rust",
    ".go": "Go",
    ".java": "Java",
    ".rb": "Ruby",
    ".sh": "Shell",
    ".pl": "Perl",
    ".php": "PHP",
    ".lua": "Lua",
    ".md": "Markdown",
    ".rst": "reStructuredText",
    ".txt": "Text",
    ".html": "HTML",
    ".css": "CSS",
    ".toml": "TOML",
    ".yml": "YAML",
    ".yaml": "YAML",
    ".json": "JSON",
}
_TEXT: Final = frozenset({".md", ".rst", ".txt", ".html", ".css", ".toml", ".yml", ".yaml", ".json"})
_CODE: Final = frozenset(LANGUAGES) - _TEXT
_LARGE: Final = 512 * 1024
"""Bytes; bigger files are most likely made by a program."""

_STOP_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """a add all an and as at be by can create do does each every for from has have i if in into is it its make me
        my new of on or our please so some that the their them then there this to us we what which will with write you
        your""",
    )
)


@dataclass(frozen=True, slots=True)
class Read:
    """Look at a file."""

    path: str


@dataclass(frozen=True, slots=True)
class Write:
    """Make a file, or give it new text."""

    path: str
    text: str
    new: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """Run a command in the worktree; a *needed* one that fails ends the turn."""

    argv: list[str]
    shown: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit *paths*."""

    paths: list[str]
    subject: str
    body: str = ""


Step = Read | Write | Run | Commit


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps, and the sentence that says afterwards what was done."""

    kind: str
    steps: list[Step]
    summary: str


@dataclass(slots=True)
class Repository:
    """What there is to work on: tracked files of the worktree, read once."""

    root: Path
    files: list[str] = field(default_factory=list)
    own: Collection[str] = ()
    """Files that an earlier, unfinished attempt at the same prompt has made."""

    @classmethod
    def read(cls, root: Path, own: Collection[str] = ()) -> Repository:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=root, stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        names = sorted(name for name in listed.stdout.decode("utf-8", "surrogateescape").split("\0") if name)
        return cls(root, [name for name in names if (root / name).is_file() and not (root / name).is_symlink()], own)

    def text(self, name: str) -> str | None:
        """Return a file's text; None for a big, binary or missing one."""
        try:
            raw = (self.root / name).read_bytes()
        except OSError:
            return None
        if len(raw) > _LARGE or b"\0" in raw:
            return None
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return None

    def of(self, suffixes: frozenset[str]) -> list[str]:
        return [name for name in self.files if Path(name).suffix.lower() in suffixes]

    @property
    def sources(self) -> list[str]:
        return self.of(_CODE)

    @property
    def readme(self) -> str:
        """The README's name, or an empty string."""
        return next((name for name in self.files if name.lower().startswith("readme") and "/" not in name), "")

    @property
    def language(self) -> str:
        """The language most source files are written in, or an empty string."""
        counted = Counter(LANGUAGES[Path(name).suffix.lower()] for name in self.sources)
        return counted.most_common(1)[0][0] if counted else ""

    def folder(self, *candidates: str) -> str:
        """Return the first of *candidates* that exists, else the first."""
        return next((name for name in candidates if (self.root / name).is_dir()), candidates[0])

    def free_path(self, folder: str, stem: str, suffix: str) -> str:
        """Return a path for a new file; a number is added when there is such a file already."""
        numbers = [""] + [f"-{number}" for number in range(2, 1000)]
        for ending in [*numbers, f"-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"]:
            name = f"{folder}/{stem}{ending}{suffix}"
            if suffix == ".py":
                name = name.replace("-", "_")
            if name in self.own or not (self.root / name).exists():
                break
        return name


def words(prompt: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", prompt.lower())


def slug(prompt: str) -> str:
    """Return a short name that stands for *prompt*: its first telling words, at most four."""
    telling = [word for word in words(prompt) if word not in _STOP_WORDS and len(word) > 1]
    # "guide" or "function" says what kind of work it is, which the file's place says too.
    special = [word for word in telling if not any(word in triggers for triggers in _PLANNERS.values())]
    name = "-".join((special if len(special) > 1 else telling)[:4])[:40].strip("-")
    return name or "task-" + _digest(prompt)[:6]


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()


def _title(prompt: str) -> str:
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "Task").rstrip(".!?")
    return (line[:1].upper() + line[1:])[:70]


def _subject(verb: str, prompt: str) -> str:
    name = slug(prompt).replace("-", " ")
    return f"{verb} {name}"[:72].rstrip()


Planner = Callable[[Repository, str, list[str]], Plan]


def make_plan(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """Return what to do for *prompt*; *earlier* are the prompts of the session before it."""
    planner = _choose(prompt)
    return planner(repository, prompt, earlier)


def _choose(prompt: str) -> Planner:
    said = words(prompt)
    scores = {planner: sum(word in triggers for word in said) for planner, triggers in _PLANNERS.items()}
    best = max(scores.values())
    if best:
        return next(planner for planner, score in scores.items() if score == best)
    return (plan_notes, plan_module, plan_report)[int(_digest(prompt), 16) % 3]


# -- a page of documentation -------------------------------------------------------------------------------------------


def _about(repository: Repository, name: str) -> str:
    """Return the first sentence a source file says about itself, or an empty string."""
    text = repository.text(name) or ""
    if name.endswith(".py"):
        try:
            said = ast.get_docstring(ast.parse(text)) or ""
        except (SyntaxError, ValueError):
            said = ""
    else:
        comments = (re.match(r"\s*(?://|#(?!!)|\*|/\*+|--)\s*(\w.*)", line) for line in text.splitlines()[:15])
        said = next((match[1] for match in comments if match and "SPDX" not in match[1]), "")
    return said.strip().splitlines()[0].rstrip(" */")[:120] if said.strip() else ""


def _most_about(repository: Repository, prompt: str, names: list[str], count: int) -> list[str]:
    """Return the *count* files whose name or text has most to do with *prompt*."""
    telling = {word for word in words(prompt) if word not in _STOP_WORDS}

    def score(name: str) -> tuple[int, str]:
        text = (repository.text(name) or "")[:20000].lower()
        hits = sum(3 * (word in name.lower()) + (word in text) for word in telling)
        return -hits, hashlib.sha256((prompt + name).encode("utf-8", "replace")).hexdigest()

    return sorted(names, key=score)[:count]


def plan_notes(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """A documentation page about the part of the code that the prompt is about."""
    subjects = _most_about(repository, prompt, repository.sources or repository.of(_TEXT), 4)
    path = repository.free_path(repository.folder("docs", "doc", "documentation"), slug(prompt), ".md")
    lines = [f"# {_title(prompt)}", "", *[f"> {line}" for line in prompt.strip().splitlines()], ""]
    if subjects:
        lines += ["## Where to look", ""]
        for name in subjects:
            about = _about(repository, name)
            lines.append(f"- `{name}`" + (f": {about}" if about else ""))
        lines.append("")
    outline = [*lines]
    details = []
    for name in subjects:
        if defined := _definitions(repository, name):
            details += [f"### {name}", "", *[f"- `{definition}`" for definition in defined], ""]
    if details:
        lines += ["## What is in there", "", *details]
    if earlier:
        lines += ["## Earlier in this session", "", *[f"- {_title(said)}" for said in earlier[-5:]], ""]
    steps: list[Step] = [Read(name) for name in ([repository.readme] if repository.readme else []) + subjects[:2]]
    steps += [Write(path, _text(outline)), Commit([path], _subject("docs: Begin", prompt), _title(prompt))]
    if lines != outline:
        steps += [
            Write(path, _text(lines), new=False),
            Run(["git", "diff", "--stat"]),
            Commit([path], _subject("docs: Complete", prompt), "List what the files define."),
        ]
    return Plan("documentation", steps, f"Wrote {path}, about {len(subjects)} files.")


def _definitions(repository: Repository, name: str) -> list[str]:
    text = repository.text(name) or ""
    patterns = {
        ".py": r"^(?:async )?(?:def|class) (\w+)",
        ".rs": r"^\s*pub (?:async )?(?:fn|struct|enum|trait) (\w+)",
        ".go": r"^(?:func|type) (?:\([^)]*\) )?(\w+)",
        ".js": r"^(?:export )?(?:default )?(?:async )?(?:function|class|const) (\w+)",
        ".ts": r"^(?:export )?(?:default )?(?:async )?(?:function|class|const|interface|type) (\w+)",
        ".sh": r"^(\w+)\s*\(\)",
        ".c": r"^[\w \*]+?(\w+)\([^;]*$",
    }
    pattern = patterns.get(Path(name).suffix.lower())
    return list(dict.fromkeys(re.findall(pattern, text, re.MULTILINE)))[:12] if pattern else []


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


# -- an entry in the changelog -----------------------------------------------------------------------------------------


def plan_changelog(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """An entry under "Unreleased"."""
    path = next((name for name in repository.files if re.match(r"(?i)(changelog|changes|news)(\.|$)", name)), "")
    before = repository.text(path) if path else None
    entry = f"- {_title(prompt)}."
    if before is None:
        path = "CHANGELOG.md" if not path else repository.free_path("docs", "changelog", ".md")
        after = f"# Changelog\n\n## Unreleased\n\n{entry}\n"
    elif match := re.search(r"(?im)^#+ *\[?unreleased\]?.*$", before):
        after = before[: match.end()] + f"\n\n{entry}" + re.sub(r"\A\n+(?=- )", "\n", before[match.end() :])
    elif match := re.search(r"(?m)^## ", before):
        after = before[: match.start()] + f"## Unreleased\n\n{entry}\n\n" + before[match.start() :]
    else:
        after = before.rstrip("\n") + f"\n\n## Unreleased\n\n{entry}\n"
    steps: list[Step] = [
        Run(["git", "log", "--oneline", "-n", "5"]),
        *([Read(path)] if before is not None else []),
        Write(path, after, new=before is None),
        Run(["git", "diff", "--stat"]),
        Commit([path], _subject("changelog: Note", prompt), _title(prompt)),
    ]
    return Plan("changelog", steps, f"Added an entry to {path}.")


# -- a report ----------------------------------------------------------------------------------------------------------


def _counts(repository: Repository) -> Iterator[tuple[str, int, int]]:
    totals: dict[str, list[int]] = {}
    for name in repository.files:
        language = LANGUAGES.get(Path(name).suffix.lower())
        text = repository.text(name) if language else None
        if language and text is not None:
            total = totals.setdefault(language, [0, 0])
            total[0] += 1
            total[1] += text.count("\n")
    for language, (files, lines) in sorted(totals.items(), key=lambda item: (-item[1][1], item[0])):
        yield language, files, lines


def plan_report(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """Lines and files by language, and the longest files."""
    path = repository.free_path(repository.folder("docs", "doc"), f"report-{slug(prompt)}", ".md")
    rows = list(_counts(repository))
    lines = [f"# {_title(prompt)}", "", "| language | files | lines |", "|---|---:|---:|"]
    lines += [f"| {language} | {files} | {count} |" for language, files, count in rows]
    lines += [f"| **all** | {sum(row[1] for row in rows)} | {sum(row[2] for row in rows)} |", ""]
    table = [*lines]
    sized = [(text.count("\n"), name) for name in repository.files if (text := repository.text(name)) is not None]
    lines += ["## Longest files", "", *[f"1. `{name}`, {count} lines" for count, name in sorted(sized)[:-11:-1]], ""]
    steps: list[Step] = [
        Run(["git", "ls-files"]),
        Write(path, _text(table)),
        Commit([path], _subject("report: Measure", prompt), _title(prompt)),
        Write(path, _text(lines), new=False),
        Run(["git", "diff", "--stat"]),
        Commit([path], _subject("report: Rank files for", prompt), "The longest files come first."),
    ]
    total = sum(row[2] for row in rows)
    return Plan("report", steps, f"Counted {total} lines in {len(rows)} languages; the report is in {path}.")


# -- tidying -----------------------------------------------------------------------------------------------------------


def plan_tidy(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """No white space at line ends, one line feed at the end of each file."""
    steps: list[Step] = []
    changed: list[str] = []
    for name in repository.of(_CODE | (_TEXT - {".md"})):
        text = repository.text(name)
        if not text or "\r" in text:
            continue
        tidy = re.sub(r"[ \t]+(?=\n)", "", text).rstrip() + "\n"
        if tidy != text and len(changed) < 8:
            changed.append(name)
            steps += [*([Read(name)] if len(changed) <= 2 else []), Write(name, tidy, new=False)]
    if changed:
        steps += [
            Run(["git", "diff", "--check"]),
            Run(["git", "diff", "--stat"]),
            Commit(changed, "tidy: Remove white space at line ends", f"In {len(changed)} files. {_title(prompt)}."),
        ]
        return Plan("tidying", steps, f"Tidied {len(changed)} files.")
    path = ".editorconfig" if not (repository.root / ".editorconfig").exists() else ""
    if path:
        text = "root = true\n\n[*]\nend_of_line = lf\ninsert_final_newline = true\ntrim_trailing_whitespace = true\n"
        steps = [Read(name) for name in repository.sources[:2]]
        steps += [Write(path, text), Commit([path], "tidy: Keep line ends clean in every editor", _title(prompt))]
        return Plan("tidying", steps, f"Nothing to tidy; wrote {path} so that it stays so.")
    return plan_report(repository, prompt, earlier)


# -- docstrings and headers --------------------------------------------------------------------------------------------


def plan_docstrings(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """A docstring for modules that have none; a heading comment where there is no Python."""
    steps: list[Step] = []
    changed: list[str] = []
    for name in _most_about(repository, prompt, repository.of(frozenset({".py"})), 1000):
        text = repository.text(name)
        if not text or len(changed) == 3:
            continue
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        if ast.get_docstring(tree) is not None or not tree.body:
            continue
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)][:3]
        about = ", ".join(defined) or Path(name).stem.replace("_", " ").strip()
        lines = text.splitlines(keepends=True)
        start = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
        spaced = "" if start == 0 or not lines[start - 1].strip() else "\n"
        docstring = f'{spaced}"""{about[:1].upper()}{about[1:]}."""\n\n'
        changed.append(name)
        steps += [
            Read(name),
            Write(name, "".join([*lines[:start], docstring, *lines[start:]]), new=False),
            Run([sys.executable, "-m", "py_compile", name], f"python3 -m py_compile {name}", needed=True),
            Commit([name], f"docs: Say what {Path(name).name} is for"[:72], _title(prompt)),
        ]
    if changed:
        return Plan("docstrings", steps, f"Added docstrings to {', '.join(changed)}.")
    return plan_notes(repository, prompt, earlier)


# -- a module with a test ----------------------------------------------------------------------------------------------


def _importable(repository: Repository) -> str:
    """Return the name of a package at the top that can be imported as it lies there, or an empty string."""
    counted = Counter(Path(name).parts[0] for name in repository.files if re.fullmatch(r"[a-z]\w*/__init__\.py", name))
    sizes = Counter(Path(name).parts[0] for name in repository.of(frozenset({".py"})) if "/" in name)
    for package in sorted(counted, key=lambda name: -sizes[name]):
        if package in ("tests", "test"):
            continue
        tried = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.dont_write_bytecode = True; import {package}"],
            cwd=repository.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
        )
        if tried.returncode == 0:
            return package
    return ""


def plan_module(repository: Repository, prompt: str, earlier: list[str]) -> Plan:
    """A small function in a module of its own, and a test that passes."""
    said = set(words(prompt))
    best = max(PIECES, key=lambda piece: len(piece.triggers & said))
    piece = best if best.triggers & said else PIECES[int(_digest(prompt), 16) // 7 % len(PIECES)]
    stem = re.sub(r"^(?=\d)", "n", slug(prompt))
    try:
        package = _importable(repository)
    except subprocess.TimeoutExpired:
        package = ""
    path = repository.free_path(package or "tools", stem, ".py")
    test = repository.free_path(repository.folder("tests", "test"), f"test-{Path(path).stem}", ".py")
    needs = "import re\n\n\n" if "re." in piece.code else "\n"
    code = f'"""{_title(prompt).replace(chr(34), chr(39)).replace(chr(92), "/")}."""\n\n{needs}{piece.code}'
    if package:
        found = f"from {path[:-3].replace('/', '.')} import {piece.name}\n"
    else:
        found = (
            "import sys\nfrom pathlib import Path\n\n"
            f'sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))\n\n'
            f"from {Path(path).stem} import {piece.name}  # noqa: E402\n"
        )
    title = "".join(part.capitalize() for part in piece.name.split("_"))
    tests = (
        f'"""Tests of {piece.name}."""\n\nimport unittest\n{found if not package else chr(10) + found}\n\n'
        f"class {title}Test(unittest.TestCase):\n    def test_{piece.name}(self):\n{piece.checks}\n\n"
        'if __name__ == "__main__":\n    unittest.main()\n'
    )
    read = _most_about(repository, prompt, repository.sources, 2)
    command = [sys.executable, "-m", "unittest", test]
    steps: list[Step] = [Read(name) for name in ([repository.readme] if repository.readme else []) + read]
    steps += [
        Write(path, code),
        Run([sys.executable, "-m", "py_compile", path], f"python3 -m py_compile {path}", needed=True),
        Commit([path], f"{package or 'tools'}: Add {piece.name}"[:72], _title(prompt)),
        Write(test, tests),
        Run(command, f"python3 -m unittest {test}", needed=True),
        Commit([test], f"tests: Cover {piece.name}", f"For: {_title(prompt)}"),
    ]
    return Plan("module", steps, f"Added {piece.name}() in {path}, with a test that passes ({test}).")


_PLANNERS: Final[dict[Planner, frozenset[str]]] = {
    plan_changelog: frozenset({"changelog", "changes", "release", "news"}),
    plan_tidy: frozenset({"tidy", "clean", "cleanup", "whitespace", "white", "trailing", "lint", "formatting"}),
    plan_docstrings: frozenset({"docstring", "docstrings", "comment", "comments", "header", "headers", "license"}),
    plan_report: frozenset({"count", "report", "statistics", "stats", "measure", "lines", "metrics", "size"}),
    plan_notes: frozenset(
        {
            "doc",
            "docs",
            "document",
            "documentation",
            "guide",
            "explain",
            "describe",
            "page",
            "readme",
            "howto",
            "manual",
        }
    ),
    plan_module: frozenset(
        {"function", "implement", "test", "tests", "feature", "module", "helper", "code", "class", "fix", "support"}
    ),
}
