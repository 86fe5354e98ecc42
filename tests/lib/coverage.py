# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/run --coverage: the tests in a build of its own, which counts how often each line runs; then a table, a line a file.

Left out are tests that count nothing there: those in the test bed, whose files nobody sees afterwards, and measurements."""

import json
import os
import shutil
import subprocess

import builds
from builds import ROOT, build_dir, say

BUILD = "coverage"
PARTS = ("base", "block", "formats", "drivers", "img-tool", "vmm")
builds.BUILDS[BUILD] = ["--buildtype=debug", "-Db_coverage=true", "-Dc_args=-fprofile-update=atomic"]


def counts(job):
    return job.group in ("unit", "cli", "format", "protocol", "crash", "guest") and not job.bed


def begin():
    """Forgets what earlier runs counted."""
    if not shutil.which("gcovr"):
        builds.quiet_command([os.path.join(builds.TESTS, "install"), "coverage"], "installing gcovr")
    for folder, _, files in os.walk(build_dir(BUILD)):
        for name in files:
            if name.endswith(".gcda"):
                os.unlink(os.path.join(folder, name))


def table():
    """Prints it; false if that fails."""
    folder = build_dir(BUILD)
    filters = [word for part in PARTS for word in ("--filter", os.path.join(ROOT, part) + "/")]
    page = os.path.join(folder, "coverage.html")
    done = subprocess.run(["gcovr", "--root", ROOT, *filters, "--json-summary-pretty", "--html-details", page,
                           "--gcov-ignore-parse-errors", "-j", str(len(os.sched_getaffinity(0))), folder],
                          cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        say(f"FAIL  gcovr: {done.stderr.decode(errors='replace')}")
        return False
    show(done.stdout.decode())
    return True


def show(text):
    found = json.loads(text)
    say("")
    say("lines run     of       %  file")
    for file in sorted(found["files"], key=lambda file: file["filename"]):
        say(line(file["line_covered"], file["line_total"], file["filename"]))
    say(line(found["line_covered"], found["line_total"], "all"))
    say(f"line by line: {os.path.join(build_dir(BUILD), 'coverage.html')}")


def line(covered, total, name):
    return f"{covered:9} {total:6} {100 * covered / total if total else 100:7.1f}  {name}"
