# SPDX-License-Identifier: LGPL-2.1-or-later
"""The repository the agents work in: the user's own, or a small sample made for the occasion."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from run.problem import Problem

SAMPLE_FILES = {
    "README.md": """\
# ledger

A household ledger in plain text: one line per payment, and a report of where the money went.

    $ python3 -m ledger report examples/may.txt
    food         92.40
    rent        640.00
    total       732.40

Lines look like `2024-05-03 food 12.40 market`. Lines that begin with `#` are ignored.
""",
    "ledger/__init__.py": '"""A household ledger in plain text."""\n\n__version__ = "0.1"\n',
    "ledger/__main__.py": """\
import sys

from ledger.parse import read_file
from ledger.report import render


def main(arguments):
    if len(arguments) != 2 or arguments[0] != "report":
        print("usage: python3 -m ledger report FILE", file=sys.stderr)
        return 2
    print(render(read_file(arguments[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
""",
    "ledger/parse.py": """\
import datetime
from decimal import Decimal, InvalidOperation
from typing import NamedTuple


class Payment(NamedTuple):
    date: datetime.date
    category: str
    amount: Decimal
    note: str


def parse_line(line):
    # TODO: say which line of which file is wrong
    words = line.split(None, 3)
    if len(words) < 3:
        raise ValueError("a payment needs a date, a category and an amount: " + line)
    try:
        amount = Decimal(words[2])
    except InvalidOperation:
        raise ValueError("not an amount: " + words[2]) from None
    note = words[3] if len(words) == 4 else ""
    return Payment(datetime.date.fromisoformat(words[0]), words[1], amount, note)


def read_file(path):
    payments = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            line = line.strip()
            if line and not line.startswith("#"):
                payments.append(parse_line(line))
    return payments
""",
    "ledger/report.py": """\
from collections import defaultdict
from decimal import Decimal


def totals(payments):
    result = defaultdict(Decimal)
    for payment in payments:
        result[payment.category] += payment.amount
    return dict(result)


def by_month(payments):
    # TODO: months without a payment are missing
    result = defaultdict(Decimal)
    for payment in payments:
        result[payment.date.strftime("%Y-%m")] += payment.amount
    return dict(result)


def render(payments):
    sums = totals(payments)
    lines = ["%-10s %8.2f" % (category, sums[category]) for category in sorted(sums)]
    lines.append("%-10s %8.2f" % ("total", sum(sums.values())))
    return "\\n".join(lines)
""",
    "ledger/budget.py": """\
from ledger.report import totals


def over_budget(payments, limits):
    spent = totals(payments)
    return {category: spent[category] - limit for category, limit in limits.items() if spent.get(category, 0) > limit}
""",
    "tests/test_parse.py": """\
import unittest
from decimal import Decimal

from ledger.parse import parse_line


class ParseTest(unittest.TestCase):
    def test_payment(self):
        payment = parse_line("2024-05-03 food 12.40 market on Friday")
        self.assertEqual(payment.amount, Decimal("12.40"))
        self.assertEqual(payment.note, "market on Friday")

    def test_bad_amount(self):
        with self.assertRaises(ValueError):
            parse_line("2024-05-03 food much")


if __name__ == "__main__":
    unittest.main()
""",
    "tests/test_report.py": """\
import unittest
from decimal import Decimal

from ledger.parse import parse_line
from ledger.report import totals


class ReportTest(unittest.TestCase):
    def test_totals(self):
        lines = ["2024-05-01 rent 640", "2024-05-03 food 12.40", "2024-05-04 food 80"]
        payments = [parse_line(line) for line in lines]
        self.assertEqual(totals(payments), {"rent": Decimal("640"), "food": Decimal("92.40")})


if __name__ == "__main__":
    unittest.main()
""",
    "examples/may.txt": """\
# date     category amount note
2024-05-01 rent 640.00
2024-05-03 food 12.40 market
2024-05-11 food 80.00 party
""",
    ".gitignore": "__pycache__/\n",
}


def git(folder: Path, *arguments: str, text_input: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git on the host. Root may look into a repository that somebody else owns: nothing of it is executed."""
    command = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")} | {
        "LC_ALL": "C.UTF-8"
    }
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", input=text_input or "", check=False, env=environment
    )


def find(path: str) -> Path:
    """Return the main checkout *path* lies in. Raise Problem when there is none, or when it has no commit."""
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise Problem(f"REPO={path}: there is no such folder.")
    common = git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir")
    if common.returncode:
        raise Problem(f"REPO={path} is no git repository. To make it one: git init && git add . && git commit")
    if git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").returncode:
        raise Problem(f"REPO={path} has no commit yet, so there is nothing that a branch could begin from.")
    top = Path(common.stdout.strip())
    if top.name != ".git":
        raise Problem(f"REPO={path} is a bare repository or keeps its data elsewhere; give a plain checkout.")
    return top.parent


def sample(folder: Path) -> Path:
    """Return the sample repository in *folder*, made now if it is not there."""
    if (folder / ".git").is_dir():
        return find(str(folder))
    for name, text in SAMPLE_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    author = ("-c", "user.name=ccorch sample", "-c", "user.email=sample@localhost", "-c", "commit.gpgSign=false")
    steps: Sequence[Sequence[str]] = (
        ("init", "-q", "-b", "main"),
        ("add", "--", "ledger", "README.md", ".gitignore"),
        (*author, "commit", "-q", "-m", "Add a ledger that reads payments and reports totals"),
        ("add", "--all"),
        (*author, "commit", "-q", "-m", "Add tests and an example"),
    )
    for step in steps:
        done = git(folder, *step)
        if done.returncode:
            raise Problem(f"The sample repository in {folder} could not be made: {done.stderr.strip()}")
    return folder


def identity(repository: Path) -> dict[str, str]:
    """Return ``user.name`` and ``user.email`` as git knows them for *repository* on the host."""
    found = {}
    for key in ("user.name", "user.email"):
        value = git(repository, "config", "--get", key).stdout.strip()
        if value:
            found[key] = value
    return found


def branches(repository: Path, prefix: str = "ccorch/") -> dict[str, str]:
    """Return the branches below *prefix* with the commits they are at."""
    listing = git(repository, "for-each-ref", "--format=%(refname:short) %(objectname)", f"refs/heads/{prefix}")
    return dict(line.split(" ", 1) for line in listing.stdout.splitlines())


def ahead(repository: Path, branch: str) -> int:
    """Return how many commits of *branch* the checkout's branch does not have."""
    count = git(repository, "rev-list", "--count", branch, "^HEAD", "--").stdout.strip()
    return int(count) if count.isdigit() else 0


def fetch_bundle(repository: Path, bundle: Path) -> list[str]:
    """Take the branches ``ccorch/*`` of a bundle into *repository*; return one sentence for each that was refused.

    As root the objects are given to whom the repository belongs.
    """
    # Below refs/ccorch lies what a forced removal has saved of uncommitted work.
    wanted = ("refs/heads/ccorch/*:refs/heads/ccorch/*", "refs/ccorch/*:refs/ccorch/*")
    done = git(repository, "fetch", "-q", "--no-write-fetch-head", str(bundle), *wanted)
    status = repository.stat()
    if os.geteuid() == 0 and status.st_uid != 0:
        for folder, names, files in os.walk(repository / ".git"):
            for name in [*names, *files]:
                place = os.path.join(folder, name)
                if os.lstat(place).st_uid == 0:
                    os.chown(place, status.st_uid, status.st_gid, follow_symlinks=False)
    if done.returncode == 0:
        return []
    refused = re.findall(r"! \[rejected\]\s+(\S+)", done.stderr)
    return [f"{name} was changed here too and was not fetched" for name in refused] or [done.stderr.strip()]
