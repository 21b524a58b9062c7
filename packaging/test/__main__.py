# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python3 packaging/test run [TIER...]``: set up all that tests need, run them tier by tier, and say what came of it.

Needs nothing but the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import apt
import coverage_report
import results
import runner
from tiers import CACHE, MAIN, OUT, QUICK, ROOT, TIERS, Tier

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="packaging/test", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run all tiers, or those that are named")
    run.add_argument("tiers", nargs="*", metavar="TIER", help=", ".join(tier.name for tier in TIERS))
    verbs.add_parser("quick", help="run the tiers that need no machine: " + ", ".join(QUICK))
    bench = verbs.add_parser("bench", help="run the measurements in tests/bench")
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _announce(tiers: Sequence[Tier]) -> None:
    print(f"{'tier':<8} {'minutes':>7} {'at most':>7} {'on disk':>8}  what")
    for tier in tiers:
        print(f"{tier.name:<8} {tier.expected:>7g} {tier.budget:>7g} {tier.size or '-':>8}  {tier.about}")
    total, most = sum(tier.expected for tier in tiers), sum(tier.budget for tier in tiers)
    print(f"{'all':<8} {total:>7g} {most:>7g}           logs in {OUT.relative_to(ROOT)}/\n", flush=True)


def _install(tiers: Sequence[Tier]) -> dict[str, str]:
    """Install what is missing; return tiers that cannot run without what is still missing, with the reason."""
    wanted = apt.missing({package for tier in tiers for package in tier.packages})
    reason = ""
    if wanted and apt.available():
        print("Installing from the distribution: " + " ".join(wanted), flush=True)
        reason = apt.install(wanted)
    elif wanted:
        # Without apt the libraries come from PyPI; programs have to be there.
        wanted = [name for name in wanted if name in apt.PROVIDED_BY]
        reason = apt.install(wanted) if wanted else ""
    if not reason:
        return {}
    print(f"  {reason}", flush=True)
    blocked = {}
    for tier in tiers:
        lacking = [name for name in apt.missing(tier.packages) if name in wanted]
        if lacking:
            blocked[tier.name] = f"{', '.join(lacking)} missing; {apt.install_line(lacking)}"
    return blocked


def _report_coverage(*, required: bool) -> bool:
    """Print what is covered; False when a full run covers too little."""
    try:
        covered = coverage_report.combine(MAIN.executable, ROOT, OUT, os.environ)
    except (OSError, RuntimeError) as error:
        print(f"coverage: could not be combined: {error}")
        return not required
    if covered is None:
        return True
    print(
        f"coverage of ccorchd and ccorchctl: {covered.lines:.1f} % of lines, {covered.branches:.1f} % of branches, "
        f"{covered.together:.1f} % together ({covered.report.relative_to(ROOT)})"
    )
    if required and covered.together < coverage_report.REQUIRED:
        print(f"coverage: {coverage_report.REQUIRED:g} % is what a full run has to reach")
        return False
    return True


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Hold the checkout's lock, so that two runs don't remove each other's results; False when it is taken."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "test.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run(names: Sequence[str]) -> int:
    """Run the named tiers (all, when none is named) and return the exit status."""
    unknown = sorted(set(names) - {tier.name for tier in TIERS})
    if unknown:
        print(f"no tier is called {unknown[0]}; there are {', '.join(tier.name for tier in TIERS)}", file=sys.stderr)
        return 2
    with _alone() as alone:
        if alone:
            return _run([tier for tier in TIERS if not names or tier.name in names], everything=not names)
    print("another run of the tests is going on in this checkout; wait for it, or use a clone", file=sys.stderr)
    return 1


def _run(tiers: Sequence[Tier], *, everything: bool) -> int:
    _announce(tiers)
    runner.forget_old_results()
    blocked = _install(tiers)
    venvs = {venv for tier in tiers if tier.name not in blocked for venv in tier.venvs}
    work = runner.Runner(os.environ, runner.make_venvs(venvs))
    outcomes = []
    for tier in tiers:
        print(f"{tier.name:<8} ...", flush=True)
        outcome = work.run(tier, blocked.get(tier.name, ""))
        outcomes.append(outcome)
        print(f"{tier.name:<8} {outcome.word:<8} {outcome.tests} in {outcome.seconds:.0f} s", flush=True)
        for sentence in outcome.broken:
            print(f"         {sentence}", flush=True)
    good = all(outcome.good for outcome in outcomes)
    full = everything and not any(outcome.impossible for outcome in outcomes)
    print()
    good = _report_coverage(required=full) and good
    impossible = [f"{outcome.tier.name}: {reason}" for outcome in outcomes for reason in outcome.impossible]
    if impossible:
        print("could not run here" + (" (a failure, because CI is set):" if CI else ":"))
        for sentence in impossible:
            print(f"  {sentence}")
        good = good and not CI
    total = sum((outcome.tests for outcome in outcomes), results.Count())
    # A linter that complains is no test, but "0 failed" must not stand at the end of a run that failed.
    other = sum(len(outcome.broken) for outcome in outcomes) + (len(impossible) if CI else 0)
    if not good and not total.failed and not other:
        other = 1
    print(total + results.Count(failed=other))
    return 0 if good else 1


def bench(arguments: Sequence[str]) -> int:
    """Install what the measurements need and run them with the distribution's Python."""
    reason = apt.install(lacking) if (lacking := apt.missing((*apt.RUNTIME, *apt.MACHINE))) else ""
    if reason:
        print(reason, file=sys.stderr)
        return 1
    return subprocess.call([str(MAIN.python), str(ROOT / "tests" / "bench"), *arguments], cwd=ROOT)


def main() -> int:
    options = _parser().parse_args()
    if options.verb == "bench":
        return bench(options.arguments)
    return run(QUICK if options.verb == "quick" else options.tiers)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
