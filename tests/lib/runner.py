# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds vmm and runs its tests.

  tests/run                          everything
  tests/run --quick                  a choice that takes less than five minutes
  tests/run --long                   what is random runs for hours: 2,000 differential sequences, 2,000 power-cut workloads a cache mode
  tests/run --list [NAME...]         the names of the tests
  tests/run NAME...                  a group (format), a test (format/backing-chain), one case or build of it
                                     (guest/filesystem:none-1, unit/coroutine@tsan), or a pattern ('unit/co*');
                                     a test's group may be left out (fresh-machine)
  --long mutants                     puts each deliberate fault of tests/mutants/ in, and fails if no test sees it
  -j N                               tests at a time (default: as many as there are processors)
  --build KIND                       all tests in this one build, whichever they name (release, asan, tsan)
  --coverage                         the tests in a build that counts lines (build/coverage), and what they ran, a line a file
  --junit FILE                       writes the results there too, as JUnit's XML
  --skips N                          fails if more than N tests are skipped
  --keep                             keep every test's folder
  --werror                           build with -Werror: release and fuzz (in code that a sanitizer has rewritten GCC warns of
                                     what is not there)
  --no-build                         test what is built already

What there is: unit tests are meson's (each runs in the builds release and asan, and those of meson's suite `threads` in
tsan; --quick leaves out release and tsan); executables tests/{cli,format,protocol,crash,guest,perf}/NAME, shell or Python; and fuzz targets
tests/fuzz/NAME.c, which start from tests/fuzz/corpus/NAME/ and from what the program tests/fuzz/NAME.seeds, if there,
writes into the folder that it is given; and mutants tests/mutants/AREA/NAME (tests/lib/mutants.py).

An executable says in comment lines at its head what it needs:

  # build: asan                which builds it tests, each counted: asan (default), release, tsan, several of them, `both`
                               for release and asan, `none` for tests of no program
  # quick: no                  left out by --quick (default: yes)
  # long: yes                  only in --long, or if it is named by more than its group (default: no)
  # timeout: 300               seconds until it is killed (default: 120)
  # cases: a b c               it runs once for each, with the case as its argument
  # quick-cases: a             those that --quick runs (default: all); `quick-builds: asan` likewise
  # group-bed: yes             it runs inside the test bed (tests/bed/bed), many tests in one boot of it (tests/lib/beds.py);
                               `without-kvm`: only on a machine that has no /dev/kvm at all, as those on top of lib/tiny.sh

It gets VMM_BUILD (folder of the build), VMM and IMG_TOOL (programs under test), TEST_TMP (an empty folder of its own, which
is its TMPDIR too), TEST_SHM (another, in memory), QUICK and LONG (1 or 0) and SEED (a number), an empty standard input, and a
process group that is killed at its end; so do unit tests. Exit status 0 passes, 77 skips (the last line of output is the
reason), anything else fails. A line of output `note: …` is repeated in the last lines of the run: something was done again.
VMM and IMG_TOOL in the caller's environment replace the built ones in executables: `VMM=qemu-system-x86_64 IMG_TOOL=qemu-img
tests/run guest` shows what the tests make of QEMU.

The exit status is 1 if a test or a build failed or too many were skipped, 2 if there was nothing to run.
"""

import argparse
import os
import random
import signal
import sys

import builds
import coverage
import jobs as tests
import reports
from builds import BuildFailed, say
from running import BED, Runner


def build_all(args, jobs):
    """Compiles what these tests need; returns the executables of each build by name."""
    programs = {}
    overridden = "VMM" in os.environ and "IMG_TOOL" in os.environ
    for build in builds.BUILDS:
        own = [job for job in jobs if job.build == build]
        if overridden:
            own = [job for job in own if job.group in ("unit", "fuzz")]
        if not own:
            continue
        builds.configure(build, args.werror)
        programs[build] = builds.fuzz_targets(build) if build == "fuzz" else builds.executables(build)
        if not args.no_build:
            # What users build is built whole, unless only some tests are to run.
            whole = build == "release" and not args.quick and not args.names
            builds.compile_targets(build, () if whole else builds.needed_targets(build, own, programs[build]) or ())
    if any(job.bed for job in jobs):
        builds.quiet_command([BED, "prepare"], "preparing the test bed")
    return programs


def parse_args():
    parser = argparse.ArgumentParser(prog="tests/run", description=__doc__, add_help=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("-j", dest="jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--build", choices=["release", "asan", "tsan", coverage.BUILD])
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--junit", metavar="FILE")
    parser.add_argument("--skips", type=int, metavar="N")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--werror", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    args = parser.parse_args()
    if args.coverage:
        args.build = coverage.BUILD
    caller = os.environ.pop("RUN_FROM", "")
    if args.junit:
        args.junit = os.path.join(caller, args.junit)
    return args


def chosen(args, jobs):
    """Those of these tests that are to run."""
    if args.names:
        jobs = [job for job in jobs if tests.matches(job, args.names)]
    if args.coverage:
        jobs = [job for job in jobs if coverage.counts(job)]
    if args.long:
        for job in jobs:
            job.timeout *= 20
    else:
        # The group mutants has nothing else.
        named = [name for name in args.names if tests.plain(name) == "mutants" or not tests.is_group(tests.plain(name))]
        jobs = [job for job in jobs if not job.long or tests.matches(job, named)]
    if args.quick:
        exact = set(map(tests.plain, args.names))
        jobs = [job for job in jobs if job.quick or job.name in exact]
    return jobs


def run(args, jobs, programs):
    seed = int(os.environ["SEED"]) if "SEED" in os.environ else random.randrange(2**31)
    say(f"seed {seed}")
    runner = Runner(args, seed)
    runner.programs = programs

    def interrupted(number, _frame):
        runner.stop()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    if args.coverage:
        coverage.begin()
    runner.run_all(jobs)
    if args.coverage and not coverage.table():
        runner.fault = True
    if args.junit:
        reports.write_junit(args.junit, runner.results)
    runner.close()
    return 0 if reports.last_lines(runner.results, runner.notes, runner.fault, args.skips) else 1


def main():
    args = parse_args()
    if args.help:
        print(__doc__.strip())
        return 0
    try:
        jobs = tests.find_jobs(args.names, args.werror, args.build)
        for name in args.names:
            if not any(tests.matches(job, [name]) for job in jobs):
                say(f"no test is called '{name}' (tests/run --list)")
                return 2
        jobs = chosen(args, jobs)
        if args.list:
            for job in jobs:
                say(job.name)
            return 0
        if not jobs:
            say("no tests to run")
            return 2
        programs = build_all(args, jobs)
    except BuildFailed as error:
        say(f"FAIL  {error}")
        return 1
    return run(args, jobs, programs)


sys.exit(main())
