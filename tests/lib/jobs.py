# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tests there are: meson's unit tests, executables with headers, fuzz targets, mutants; and which of them a name
on the command line means."""

import difflib
import fcntl
import fnmatch
import functools
import os
import re

import builds
import mutants
from builds import ROOT, SLOWER, TESTS, BuildFailed

GROUPS = ["cli", "format", "protocol", "crash", "guest", "perf"]
SCRIPT_BUILDS = ("asan", "release", "tsan", "none")
YES_NO = ("yes", "no")
KVM_GET_API_VERSION, KVM_API_VERSION = 0xAE00, 12
SLOWER_IN_BED = 5  # for a test that needs no bed elsewhere
HEADERS = {"build", "quick", "long", "timeout", "cases", "quick-cases", "quick-builds", "group-bed"}


class Job:
    """One run of one test."""

    def __init__(self, name, command, timeout, build, quick=True, long=False, bed=False, workdir=None, env=None):
        self.name, self.command, self.timeout, self.build = name, command, timeout, build
        self.quick, self.long, self.bed, self.workdir, self.env = quick, long, bed, workdir, env or {}

    @property
    def group(self):
        return self.name.split("/")[0]


def unit_jobs(build):
    for test in builds.introspect(build, "--tests"):
        threads = any(s.split(":")[-1] == "threads" for s in test["suite"])
        if build == "tsan" and not threads:
            continue
        # meson says 0 for "no limit"; we have one.
        timeout = (test["timeout"] if test["timeout"] > 0 else 600) * SLOWER.get(build, 3)
        # Not quick: the same again in release, where it finds least, and in tsan, which is a build more.
        yield Job(f"unit/{test['name']}@{build}", test["cmd"], timeout, build, quick=build == "asan",
                  workdir=test["workdir"], env=test["env"])


def read_headers(path):
    found = {}
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                if "/lib/tiny.sh" in line:
                    found.setdefault("group-bed", "without-kvm")
                break
            match = re.match(r"# ([a-z-]+): +(.*\S)", line)
            if match:
                found[match[1]] = match[2]
                meant = difflib.get_close_matches(match[1], HEADERS, 1, 0.8)
                if meant and match[1] not in HEADERS:
                    raise BuildFailed(f"{path}: '{match[1]}' is not known: '{meant[0]}'?")
    found = {k: v for k, v in found.items() if k in HEADERS}
    for key, words in (("quick", YES_NO), ("long", YES_NO), ("group-bed", (*YES_NO, "without-kvm"))):
        if found.get(key, "yes") not in words:
            raise BuildFailed(f"{path}: '{key}' is {' or '.join(words)}, not '{found[key]}'")
    return found


@functools.cache
def kvm_works():
    """Has this machine a KVM, if only one in software?"""
    try:
        with open("/dev/kvm", "r+b", buffering=0) as device:
            return fcntl.ioctl(device, KVM_GET_API_VERSION) == KVM_API_VERSION
    except OSError:
        return False


def in_bed(head):
    """In the test bed, or here? QEMU emulates what it finds no KVM for."""
    where = head.get("group-bed", "no")
    if where == "without-kvm":
        return not kvm_works() and "qemu-system" not in os.environ.get("VMM", "")
    return where == "yes"


def scripts(group):
    """(name, path) of a group's executables."""
    folder = os.path.join(TESTS, group)
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            yield name, path
        elif os.path.isfile(path):
            with open(path, "rb") as file:
                if file.read(2) == b"#!":
                    raise BuildFailed(f"tests/{group}/{name} is a test that nobody can execute")


def script_jobs(group, only_build=None):
    """With only_build, each test runs in that build, whichever its head names."""
    for name, path in scripts(group):
        shown = f"tests/{group}/{name}"
        head = read_headers(shown)
        cases = head.get("cases", "").split() or [None]
        quick_cases = head.get("quick-cases", "").split() or cases
        for case in quick_cases:
            if case not in cases:
                raise BuildFailed(f"{shown}: quick-cases has '{case}', which is not among the cases")
        kinds = head.get("build", "asan").replace("both", "release asan").split()
        for build in kinds:
            if build not in SCRIPT_BUILDS:
                raise BuildFailed(f"{shown}: no build '{build}': asan, release, tsan, both or none")
        quick_kinds = head.get("quick-builds", "").split() or kinds
        if not set(quick_kinds) <= set(kinds):
            raise BuildFailed(f"{shown}: quick-builds has what is not among the builds")
        if only_build and kinds != ["none"]:
            kinds = quick_kinds = [only_build]
        timeout, bed = float(head.get("timeout", 120)), in_bed(head)
        if bed and head["group-bed"] != "yes":
            timeout *= SLOWER_IN_BED
        for build in kinds:
            for case in cases:
                full = f"{group}/{name}" + (f":{case}" if case else "") + (f"@{build}" if len(kinds) > 1 else "")
                yield Job(full, [path] + ([case] if case else []), timeout, build,
                          quick=head.get("quick", "yes") == "yes" and case in quick_cases and build in quick_kinds,
                          long=head.get("long") == "yes", bed=bed)


def fuzz_jobs():
    folder = os.path.join(TESTS, "fuzz")
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
        if name.endswith(".c"):
            # Not quick: a build of its own, for a few seconds that seldom find anything.
            yield Job(f"fuzz/{name[:-2]}", [name[:-2]], 0, "fuzz", quick=False)


def mutant_jobs():
    for name in mutants.names():
        yield Job(f"mutants/{name}", [name], 0, "none", quick=False, long=True)


def plain(name):
    return name.removeprefix("./").removeprefix("tests/").rstrip("/")


def matches(job, wanted):
    for want in map(plain, wanted):
        # A name without its group: fresh-machine. A group has precedence.
        bare = job.name.split("/", 1)[1] if "/" not in want and not is_group(want) else None
        for name in (job.name, bare):
            if name is None:
                continue
            if name == want or fnmatch.fnmatchcase(name, want):
                return True
            if name.startswith(want) and name[len(want)] in "/:@":
                return True
            # All cases of one build: guest/filesystem@asan.
            if re.sub(r":[^@]*", "", name) == want:
                return True
    return False


def is_group(name):
    return name in [*GROUPS, "unit", "fuzz", "mutants"]


def unit_builds(names):
    """The builds whose unit tests these names may mean; no names mean all tests."""
    found = set()
    for name in map(plain, names):
        group, _, rest = name.partition("/")
        if re.search(r"[*?\[]", name) or name == "unit":
            return list(builds.UNIT_BUILDS)
        bare = not is_group(group) and os.path.exists(os.path.join(TESTS, "unit", re.split("[:@]", group)[0] + ".c"))
        if group == "unit" or bare:
            build = (rest or name).partition("@")[2]
            found.update([build] if build in builds.UNIT_BUILDS else builds.UNIT_BUILDS)
    return [build for build in builds.UNIT_BUILDS if build in found] if names else list(builds.UNIT_BUILDS)


def find_jobs(names, werror=False, only_build=None):
    """All tests. Configures the builds whose unit tests it must know, but compiles nothing."""
    have_meson = os.path.exists(os.path.join(ROOT, "meson.build"))
    found = []
    for build in unit_builds(names) if have_meson else []:
        if only_build:
            build = only_build
        builds.configure_with_tests(build, werror)
        tests = list(unit_jobs(build))
        sources = [f for f in os.listdir(os.path.join(TESTS, "unit")) if f.endswith(".c")]
        if sources and not tests and build != "tsan":
            raise BuildFailed(f"tests/unit has {len(sources)} files, but meson lists no test in build/{build}")
        found += tests
        if only_build:
            break
    for group in GROUPS:
        found += script_jobs(group, only_build)
    if have_meson and not only_build:
        found += fuzz_jobs()
        found += mutant_jobs()
    return found
