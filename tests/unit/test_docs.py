# SPDX-License-Identifier: LGPL-2.1-or-later
"""The documentation against the code: commands parse, names and signatures are the real ones, links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ccorchctl import parser as grammar
from ccorchctl.failures import Failure
from ccorchd import config, contract, limits, projectfile, settings
from ccorchd.bus.instance import InstanceInterface
from ccorchd.bus.manager import _STATUS_FIELDS, ManagerInterface
from ccorchd.bus.project import ProjectInterface
from ccorchd.instances import changes, environment

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
GIB = 1024**3
INTERFACES: dict[str, type] = {
    contract.MANAGER_INTERFACE: ManagerInterface,
    contract.PROJECT_INTERFACE: ProjectInterface,
    contract.INSTANCE_INTERFACE: InstanceInterface,
}
RECORDS = {
    "Instance": contract.INSTANCE_FIELDS,
    "Project": contract.PROJECT_FIELDS,
    "Worktree": contract.WORKTREE_FIELDS,
    "Event": contract.EVENT_FIELDS,
    "Check": contract.CHECK_FIELDS,
    "Setting": contract.SETTING_FIELDS,
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language and text of each fenced block."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match[1], match[2]


def inline(page: Path) -> list[str]:
    """Return all `code` outside of fenced blocks."""
    return INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def section(text: str, heading: str) -> str:
    """Return what stands under *heading*, up to the next heading that is not below it."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables in *text*, without their heads."""
    found = []
    for line in text.splitlines():
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return [row for row in found if not set("".join(row)) <= set("-: ")]


def complain(findings: list[str]) -> None:
    if findings:
        pytest.fail("\n" + "\n".join(findings), pytrace=False)


def lines_typed(text: str) -> Iterator[str]:
    """Yield the lines of a block that somebody types; in a transcript those behind a ``$``."""
    text = text.replace("\\\n", " ")
    transcript = any(line.startswith("$ ") for line in text.splitlines())
    for line in text.splitlines():
        if not transcript:
            yield line
        elif line.startswith("$ "):
            yield line[2:]


def program_calls(line: str, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of *program* in a line of shell; what stands right of it, two blanks away, is
    an explanation.
    """
    words = shlex.split(_spaced(line), comments=True)
    calls: list[list[str]] = []
    current: list[str] | None = None
    for word in words:
        if word in ("|", "&&", ";", "<", ">", "||"):
            current = None
        elif current is None and word == program:
            current = []
            calls.append(current)
        elif current is not None:
            current.append(word)
    yield from calls


def _spaced(line: str) -> str:
    """Return *line* without the explanation that stands two blanks behind the command."""
    quoted = False
    for position, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        if not quoted and line[position : position + 2] == "  " and line[:position].strip():
            return line[:position]
    return line


def calls(page: Path, program: str) -> Iterator[list[str]]:
    for language, text in blocks(page):
        if language in ("", "sh"):
            for line in lines_typed(text):
                if re.search(rf"(?:^|[|;&] ?){program}\b", line.strip()):
                    yield from program_calls(line, program)
    for text in inline(page):
        if text == program or (text.startswith(f"{program} ") and "…" not in text):
            yield from program_calls(text, program)


# -- commands ----------------------------------------------------------------------------------------------------------


def parse(words: list[str]) -> str:
    """Return why *words* are no command line of ccorchctl, or nothing."""
    if " ".join(grammar.expand(words)) in verbs(grammar.build()):
        return ""  # the name of a command, as prose uses it
    try:
        grammar.parse(words)
    except Failure as failure:
        return f"{failure.message} ({failure.hint})"
    return ""


@each_page
def test_commands_parse(page: Path) -> None:
    findings = []
    for words in calls(page, "ccorchctl"):
        if why := parse(words):
            findings.append(f"ccorchctl {shlex.join(words)}: {why}")
    complain(findings)


def test_wrong_commands_would_be_seen() -> None:
    assert list(program_calls("git diff | ccorchctl send api  takes it", "ccorchctl")) == [["send", "api"]]
    assert list(program_calls('ccorchctl try "a  b" > x # y', "ccorchctl")) == [["try", "a  b"]]
    assert parse(["instance", "creat"])
    assert parse(["create", "x", "--memory", "2G"])
    assert parse(["config", "get", "a", "b"])


def verbs(parser: argparse.ArgumentParser, path: str = "") -> Iterator[str]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield path.strip()
    for action in below:
        for name, sub in action.choices.items():
            yield from verbs(sub, f"{path} {name}")


def test_each_command_has_an_example() -> None:
    table = rows(section((DOCS / "user-guide.md").read_text(encoding="utf-8"), "## All commands"))[1:]
    shown = {row[0].strip("`"): row[1].strip("`") for row in table}
    assert sorted(shown) == sorted(verbs(grammar.build()))
    for command, example in shown.items():
        assert example.startswith(f"ccorchctl {command}"), command


def test_commands_in_manual_pages_parse() -> None:
    findings = []
    for page in sorted((ROOT / "man").glob("*.[1-8]")):
        for line in page.read_text(encoding="utf-8").replace("\\-", "-").splitlines():
            line = re.sub(r'^\.(?:B|BR|I) |["]?(?= ,)', "", line).replace('"ccorchctl', "ccorchctl").rstrip(' ,."')
            if line.startswith("ccorchctl ") and not line.startswith("ccorchctl ("):
                quoted = line + '"' if line.count('"') % 2 else line
                for words in program_calls(quoted, "ccorchctl"):
                    if why := parse(words):
                        findings.append(f"{page.name}: {line}: {why}")
    complain(findings)


@each_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    findings = []
    for words in calls(page, "make"):
        for word in words:
            name, equals, value = word.partition("=")
            if equals and not re.search(rf"\b{name}\b", makefile):
                findings.append(f"make {shlex.join(words)}: the Makefile knows no {name}")
            if not equals and not word.startswith("-") and word not in targets:
                findings.append(f"make {shlex.join(words)}: there is no target {word}")
            if name == "ARGS" and (why := parse(shlex.split(value))):
                findings.append(f"make {shlex.join(words)}: {why}")
    complain(findings)


# -- settings, limits, files ------------------------------------------------------------------------------------------


@each_page
def test_settings_exist(page: Path) -> None:
    known = {setting.key for setting in settings.SETTINGS}
    variables = {setting.variable for setting in settings.SETTINGS}
    sections = {setting.section for setting in settings.SETTINGS}
    findings = []
    for text in inline(page):
        head, dot, name = text.partition(".")
        if dot and head in sections and re.fullmatch(r"[a-z_0-9]+", name) and text not in known:
            if page.name == "projectfile.md" and text == "instances.limits":
                continue
            findings.append(f"there is no setting {text}")
        if re.match(rf"CCORCH_({'|'.join(sections)})_[A-Z]", text, re.IGNORECASE) and text not in variables:
            findings.append(f"no setting has the variable {text}")
    complain(findings)


@each_page
def test_toml_is_valid(page: Path, tmp_path: Path) -> None:
    for language, text in blocks(page):
        if language != "toml":
            continue
        document = tomllib.loads(text)
        if set(document) <= {setting.section for setting in settings.SETTINGS}:
            (tmp_path / "ccorchd.toml").write_text(text, encoding="utf-8")
            config.load(tmp_path, {})
        else:
            (tmp_path / ".ccorch.toml").write_text(text, encoding="utf-8")
            projectfile.load(tmp_path)


def test_default_limits_are_as_described() -> None:
    text = section((DOCS / "user-guide.md").read_text(encoding="utf-8"), "### The default memory limit")
    most = f"{limits._LEAST // GIB} GiB, {limits._OVERCOMMIT} × {limits._SHARED_OUT} × T / n"
    assert f"MemoryMax  = min(T / 2, max({most}))" in text
    assert f"MemoryHigh = {limits._HIGH:.0%} of MemoryMax".replace("%", " %") in text
    table = rows(text)[1:]
    assert len(table) >= 5
    for host, number, shown in table:
        total = int(host.removesuffix(" GiB")) * GIB
        assert shown == f"{limits.default_memory_max(total, int(number)) / GIB:.2f} GiB", host
    defaults = {setting.key: setting.default for setting in settings.SETTINGS}
    by_option = {row[0].strip("`"): row for row in rows(section(_guide(), "## Limits"))}
    assert by_option["--cpu-weight"][3] == str(defaults["instances.cpu_weight"])
    assert by_option["--tasks-max"][3] == str(defaults["instances.tasks_max"])
    assert f"`instances.max` ({defaults['instances.max']})" in _guide()


def _guide() -> str:
    return (DOCS / "user-guide.md").read_text(encoding="utf-8")


def test_variables_passed_on_are_as_described() -> None:
    item = re.search(r"^3\. (.*?)(?=^4\. )", section(_guide(), "## Environment"), re.MULTILINE | re.DOTALL)
    assert item
    names = [name for name in INLINE.findall(item[1]) if name.isupper()]
    assert len(names) >= 10
    wanted = {name.replace("*", "ALL"): "x" for name in names}
    assert environment.from_caller(wanted, ()) == wanted


def test_exit_statuses_are_as_described() -> None:
    shown = {int(row[0]): row[1] for row in rows(section(_guide(), "## Scripts"))[1:]}
    assert set(shown) == {int(status) for status in contract.Exit}
    help_text = " ".join(grammar.SECTIONS["exit status"].split())
    for status, meaning in shown.items():
        assert f"{status} {meaning}" in help_text


@each_page
def test_files_named_exist(page: Path) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build"}
    findings = []
    for text in inline(page):
        named = re.fullmatch(r"([\w.-]+)(?:/[\w.-]+)+\.(?:py|md|toml|service|txt)", text)
        if named and named[1] in folders and not (ROOT / text).exists():
            findings.append(f"there is no {text}")
    complain(findings)


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and GitLab make of a page's headings."""
    found = set()
    for line in FENCE.sub("", page.read_text(encoding="utf-8")).splitlines():
        if match := re.match(r"#{1,6} (.*)", line):
            found.add(re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-"))
    return found


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    findings = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists():
            findings.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(other):
            findings.append(f"{target}: no such heading")
    complain(findings)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"({page.name})" not in index and page.name != "README.md"] == []


def test_the_readme_says_what_a_bare_system_lacks() -> None:
    assert "`apt install git make`" in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]


# -- the API -----------------------------------------------------------------------------------------------------------


API = (DOCS / "api.md").read_text(encoding="utf-8")
MEMBER = re.compile(r"^#### (Signal )?`(\w+)\(([^)]*)\)(?: → (.+))?`( – audited)?$", re.MULTILINE)


def members(interface: type) -> dict[str, tuple[str, str, str]]:
    """Return kind, signatures and "audited" or nothing of each member. The signatures hang on the class."""
    found = {}
    for name in dir(interface):
        member = vars(interface).get(name)
        held = getattr(member, "__dict__", {})
        if (method := held.get("__DBUS_METHOD")) is not None:
            audited = "audited" if held["ccorch_mutating"] else ""
            found[name] = ("method", f"{method.in_signature} → {method.out_signature}", audited)
        elif (signal := held.get("__DBUS_SIGNAL")) is not None:
            found[name] = ("signal", f"{signal.signature} → ", "")
        elif hasattr(member, "signature") and hasattr(member, "access"):
            found[name] = ("property", str(getattr(member, "signature", "")), "")
    return found


def types(arguments: str) -> str:
    """Return the signature of ``s name, a{sv} options``; each argument must have a type and a name."""
    return "".join(argument.split(" ")[0] for argument in arguments.split(", ") if len(argument.split(" ")) == 2)


@pytest.mark.parametrize("name", INTERFACES)
def test_interfaces_are_documented(name: str) -> None:
    text = section(API, f"## {name}")
    documented: dict[str, tuple[str, str, str]] = {}
    for signal, member, arguments, result, audited in MEMBER.findall(text):
        signature = f"{types(arguments)} → {types(result)}"
        documented[member] = ("signal" if signal else "method", signature, "audited" if audited else "")
    for row in rows(section(text, "### Properties"))[1:]:
        documented[row[0].strip("`")] = ("property", row[1].strip("`"), "")
    assert documented == members(INTERFACES[name])
    assert len(re.findall(r"^#### ", text, re.MULTILINE)) == len(MEMBER.findall(text)), "a heading is not understood"


def options_in_code(interface: type) -> dict[str, dict[str, str]]:
    """Return the options that each method reads: the table it gives to Options()."""
    found: dict[str, dict[str, str]] = {}
    tree = ast.parse(inspect.getsource(inspect.getmodule(interface)))  # type: ignore[arg-type]
    for function in ast.walk(tree):
        if isinstance(function, ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Options":
                    found[function.name] = ast.literal_eval(node.args[1])
    return found


@pytest.mark.parametrize("name", INTERFACES)
def test_options_are_documented(name: str) -> None:
    text = section(API, f"## {name}")
    heads = {match[2]: match[0] for match in MEMBER.finditer(text)}
    findings = []
    for member, options in options_in_code(INTERFACES[name]).items():
        part = section(text, heads[member])
        shown = {row[0].strip("`"): row[1].strip("`") for row in rows(part)[1:]}
        shown |= dict(re.findall(r"`(\w+)` \(`([a-z{}]+)`", part.split("Answer:")[0]))
        if shown != options:
            findings.append(f"{member}: documented {shown}, in the code {options}")
    complain(findings)


def test_status_is_documented() -> None:
    head = next(match[0] for match in MEMBER.finditer(API) if match[2] == "GetStatus")
    text = " ".join(section(API, head).split())
    for key, signature in _STATUS_FIELDS.items():
        assert re.search(rf"`{key}`(?: and `\w+`)? {re.escape(signature)}(?![\w{{])", text) or re.search(
            rf"`{key}` {re.escape(signature)}(?![\w{{])", text
        ), key


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_documented(name: str) -> None:
    table = rows(section(API, f"### {name}"))[1:]
    assert {row[0].strip("`"): row[1].strip("`") for row in table} == RECORDS[name]


def test_errors_are_documented() -> None:
    table = rows(section(API, "## Errors"))[1:]
    shown = {row[0].strip("`"): int(row[1]) for row in table}
    assert shown == {str(code): int(contract.EXIT_OF.get(code, contract.Exit.FAILURE)) for code in contract.ErrorCode}


def test_states_and_reasons_are_documented() -> None:
    shown = {row[0].strip("`"): row[2] for row in rows(section(API, f"## {contract.INSTANCE_INTERFACE}"))}
    assert INLINE.findall(shown["State"]) == list(contract.State)
    assert INLINE.findall(shown["Reason"]) == [reason for reason in contract.Reason if reason]
    guide = rows(section(_guide(), "### States"))[1:]
    assert [row[0].strip("`") for row in guide] == list(contract.State)


def test_kinds_of_events_are_documented() -> None:
    shown = set()
    for row in rows(section(API, "## Kinds of events"))[1:]:
        head = row[0].strip("`")
        shown |= {head + name for name in INLINE.findall(row[1])}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ccorchd").rglob("*.py"))
    made = set(re.findall(r'(?:kind=|\bEvent\(\s*)"([a-z]+\.[a-z]+)"', source))
    assert sorted(made - shown) == []
    assert sorted(kind for kind in shown if f'"{kind}"' not in source) == []


# -- the architecture --------------------------------------------------------------------------------------------------


def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ccorch_house_rules", Path(__file__).with_name("test_house.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_layers_are_as_described() -> None:
    text = section((DOCS / "architecture.md").read_text(encoding="utf-8"), "## Layers")
    shown = [tuple(INLINE.findall(row[0])) for row in rows(text)[1:]]
    layers: tuple[tuple[str, ...], ...] = house().LAYERS
    assert shown == list(reversed(layers))


def test_states_diagram_is_that_of_the_code() -> None:
    diagram = re.search(r"```\n(.*?)```", str(changes.__doc__), re.DOTALL)
    assert diagram
    assert diagram[1] in (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_version_of_the_api_is_as_described() -> None:
    assert f"property `ApiVersion`, now {contract.API_VERSION};" in API
