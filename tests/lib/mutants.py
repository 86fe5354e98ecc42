# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mutants: deliberate faults, each of which must make a test fail. tests/mutants/AREA/NAME is one:

  why: the promise that the fault breaks, in one line
  file: formats/qcow2/free.c
  tests: unit/qcow2 crash/power-cut:guest     (as tests/run names them, the cheapest first; each may kill it)
  build: release                              (or asan, tsan; release if not said; all its tests run in that build)
  ---
  old lines, which occur once in the file
  ===
  new lines

Each is put into a copy of the tree with builds of its own (Farm, Scratch); the tree itself stays as it is. There the named
tests run as tests/run would run them, first in their quick form, then in their usual one, until one fails. One that fails
without the mutant too kills nothing: that is an error, as is a mutant that does not apply or does not compile."""

import os
import re
import shutil
import subprocess
import sys
import threading

from builds import ROOT, TESTS

FOLDER = os.path.join(TESTS, "mutants")
AREAS = ("base", "block", "qcow2", "drivers", "vmm", "img-tool")
KINDS = ("release", "asan", "tsan")
KEYS = ("why", "file", "tests", "build")
PATIENCE = 7200  # seconds for building and running one test, which has its own time


class BadMutant(Exception):
    """It cannot be put in, or says nothing."""


class Mutant:
    def __init__(self, name, text):
        self.name = name
        head, found, body = text.partition("\n---\n")
        old, found_too, new = ("\n" + body).partition("\n===\n")
        if not found or not found_too:
            raise BadMutant("has no line '---' with a line '===' behind it")
        self.old, self.new = old[1:] + "\n", new
        if new and not new.endswith("\n"):
            raise BadMutant("does not end with a newline")
        fields = {"build": "release"}
        for line in head.split("\n"):
            match = re.fullmatch(r"([a-z]+): *(\S.*?) *", line)
            if not match or match[1] not in KEYS:
                raise BadMutant(f"'{line}' is none of why:, file:, tests:, build:")
            fields[match[1]] = match[2]
        for key in KEYS:
            if key not in fields:
                raise BadMutant(f"has no line '{key}:'")
        self.why, self.file, self.build, self.tests = fields["why"], fields["file"], fields["build"], fields["tests"].split()
        if self.build not in KINDS:
            raise BadMutant(f"build is one of {', '.join(KINDS)}, not '{self.build}'")
        for number, test in enumerate(self.tests):
            self.tests[number], _, build = test.partition("@")
            if build not in ("", self.build):
                raise BadMutant(f"{test} is not in the build {self.build}")
        if not self.old.strip() or self.old == self.new:
            raise BadMutant("changes nothing")

    def applied(self, text):
        """The file's text with the fault in it."""
        places = [match.start() for match in re.finditer("^(?=" + re.escape(self.old) + ")", text, re.M)]
        if len(places) != 1:
            raise BadMutant(f"its old lines occur {len(places)} times in {self.file}, not once")
        return text[:places[0]] + self.new + text[places[0] + len(self.old):]


def names():
    return sorted(os.path.relpath(os.path.join(folder, name), FOLDER)
                  for folder, _, files in os.walk(FOLDER) for name in files if folder != FOLDER)


def read(path):
    # As it is: no newline is translated.
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def load(name):
    return Mutant(name, read(os.path.join(FOLDER, name)))


def problem(name, is_test):
    """What is wrong with a mutant, without building anything; None if nothing is. is_test(test, build): is there one?"""
    try:
        if name.split("/")[0] not in AREAS or name.count("/") != 1:
            return f"is in no area: {', '.join(AREAS)}"
        mutant = load(name)
        mutant.applied(read(os.path.join(ROOT, mutant.file)))
    except (BadMutant, OSError, UnicodeDecodeError) as error:
        return str(error)
    for test in mutant.tests:
        if not is_test(test, mutant.build):
            return f"no test is called '{test}' in the build {mutant.build}"
    return None


# ---- running ----

def tree_files():
    """The tree's files: those that git has, or would take; without git, all but what is built."""
    done = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    found = [name for name in done.stdout.decode().split("\0") if name]
    if done.returncode or not found:
        for folder, folders, files in os.walk(ROOT):
            if folder == ROOT:
                folders[:] = [name for name in folders if name not in ("build", ".git")]
            found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in files]
    return found


class Scratch:
    """A copy of the tree in which one mutant at a time lives. `execute` runs a command: (command, timeout, output, …)."""

    def __init__(self, folder, execute, seed):
        self.tree, self.temporary, self.execute, self.seed = os.path.join(folder, "tree"), os.path.join(folder, "tmp"), execute, seed
        os.makedirs(self.temporary)
        for name in tree_files():
            source, target = os.path.join(ROOT, name), os.path.join(self.tree, name)
            if os.path.lexists(source):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)

    def write(self, name, text):
        with open(os.path.join(self.tree, name), "w", encoding="utf-8", newline="") as file:
            file.write(text)

    def run(self, test, build, quick):
        """Builds what it needs and runs it; (what became of it: passed, failed, skipped, nothing or broken; its output)."""
        env = {name: value for name, value in os.environ.items()
               if name not in ("VMM", "IMG_TOOL", "VMM_BUILD", "TEST_TMP", "TEST_SHM", "QUICK", "LONG")}
        env.update(SEED=str(self.seed), TMPDIR=self.temporary)
        command = [sys.executable, "-B", os.path.join(self.tree, "tests/lib/runner.py"), "--build", build, "-j", "1"]
        log = os.path.join(self.temporary, "log")
        with open(log, "wb") as output:
            status, timed_out = self.execute([*command, *(["--quick"] if quick else []), test], PATIENCE, output,
                                             cwd=self.tree, env=env, patience=30)
        said = read_lossy(log)
        counts = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", said[said.rstrip().rfind("\n") + 1:].strip())
        if status == 2:
            return "nothing", said
        if timed_out or not counts:
            return "broken", said
        passed, failed, _ = map(int, counts.groups())
        return "failed" if failed else "passed" if passed else "skipped", said


def read_lossy(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class Farm:
    """Scratches for several threads, and which tests pass without a mutant."""

    def __init__(self, folder, execute, seed):
        self.folder, self.execute, self.seed = folder, execute, seed
        self.lock = threading.Lock()
        self.idle, self.count = [], 0
        self.sound = {}

    def take(self):
        with self.lock:
            if self.idle:
                return self.idle.pop()
            self.count += 1
            folder = os.path.join(self.folder, str(self.count))
        return Scratch(folder, self.execute, self.seed)

    def run(self, name):
        """(exit status, output, a line that says what killed it)."""
        try:
            mutant = load(name)
            scratch = self.take()
            try:
                return self.judge(mutant, scratch)
            finally:
                with self.lock:
                    self.idle.append(scratch)
        except (BadMutant, OSError, UnicodeDecodeError) as error:
            return 1, str(error), ""

    def judge(self, mutant, scratch):
        original = read(os.path.join(scratch.tree, mutant.file))
        scratch.write(mutant.file, mutant.applied(original))
        try:
            status, text, test, quick = self.hunt(mutant, scratch)
        finally:
            scratch.write(mutant.file, original)
        if status == 0 and not self.is_sound(scratch, test, mutant.build, quick):
            return 1, f"{test} fails without the mutant too", ""
        return status, text, f"killed by {test}" if status == 0 else ""

    def hunt(self, mutant, scratch):
        """Until a test fails: status, output, which, in its quick form?"""
        lines = [f"survived: {mutant.why} ({mutant.file})"]
        for quick in (True, False):
            for test in mutant.tests:
                result, said = scratch.run(test, mutant.build, quick)
                if result == "failed":
                    return 0, said, test, quick
                if result == "broken" or (result == "nothing" and not quick):
                    return 1, f"{test} cannot be built and run:\n{said}", test, quick
                lines.append(f"{test}{' --quick' if quick else ''}: {result}")
        return 1, "\n".join(lines), None, False

    def is_sound(self, scratch, test, build, quick):
        key = (test, build, quick)
        with self.lock:
            if key in self.sound:
                return self.sound[key]
        result = scratch.run(test, build, quick)[0] == "passed"
        with self.lock:
            self.sound[key] = result
        return result
