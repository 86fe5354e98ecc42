# SPDX-License-Identifier: LGPL-2.1-or-later
"""The builds that tests/run keeps below build/: configured once, compiled as far as tests need them."""

import json
import os
import re
import shlex
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
TESTS = os.path.join(ROOT, "tests")

# asan is the largest to compile: -O1 takes two thirds of the time of -O2.
BUILDS = {
    "release": ["--buildtype=debugoptimized"],
    "asan": ["--buildtype=debug", "-Doptimization=1", "-Db_sanitize=address,undefined", "-Db_lundef=false"],
    "tsan": ["--buildtype=debugoptimized", "-Db_sanitize=thread", "-Db_lundef=false"],
    "fuzz": ["--buildtype=debugoptimized", "-Db_sanitize=address,undefined", "-Db_lundef=false", "-Dfuzz=true"],
}
SLOWER = {"release": 1, "asan": 3, "tsan": 8}
UNIT_BUILDS = ("release", "asan", "tsan")


class BuildFailed(Exception):
    pass


def say(text):
    print(text, flush=True)


def build_dir(build):
    return os.path.join(ROOT, "build", build)


def quiet_command(command, what, env=None):
    """Runs it; shows its output only if it fails."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=env)
    if done.returncode:
        sys.stdout.write(done.stdout.decode(errors="replace"))
        raise BuildFailed(f"{what} failed: {shlex.join(command)}")
    return time.monotonic() - started


def configure(build, werror):
    werror = werror and build in ("release", "fuzz")
    folder = build_dir(build)
    env = dict(os.environ)
    if build == "fuzz":
        env.update(CC="clang", CXX="clang++")
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        quiet_command(["meson", "setup", folder, *BUILDS[build], f"-Dwerror={str(werror).lower()}"],
                      f"configuring build/{build}", env)
    elif werror:
        quiet_command(["meson", "configure", folder, "-Dwerror=true"], f"configuring build/{build}", env)


def unit_tests_known(build):
    """Does the build know the unit tests? One that was configured before their library was installed does not."""
    return introspect(build, "--tests") or not any(f.endswith(".c") for f in os.listdir(os.path.join(TESTS, "unit")))


def configure_with_tests(build, werror):
    configure(build, werror)
    if not unit_tests_known(build):
        # Two steps: meson 1.0 cannot do both in one.
        for step in (["configure", "--clearcache"], ["setup", "--reconfigure"]):
            quiet_command(["meson", *step, build_dir(build)], f"configuring build/{build} again")


def compile_targets(build, targets=()):
    """All of the build if no targets are named."""
    seconds = quiet_command(["ninja", "-C", build_dir(build), *targets], f"building build/{build}")
    say(f"built build/{build} ({seconds:.0f} s)")


def introspect(build, what):
    # As a build that is out of date lists tests that are out of date, let meson have a look first.
    quiet_command(["ninja", "-C", build_dir(build), "build.ninja"], f"configuring build/{build}")
    done = subprocess.run(["meson", "introspect", build_dir(build), what], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def executables(build):
    """The executables that meson builds, by name."""
    return {t["name"]: t["filename"][0] for t in introspect(build, "--targets") if t["type"] == "executable"}


def fuzz_targets(build):
    folder = os.path.join(TESTS, "fuzz") + os.sep
    found = {}
    for target in introspect(build, "--targets"):
        sources = [s for group in target["target_sources"] for s in group.get("sources", [])]
        for source in sources:
            if target["type"] == "executable" and source.startswith(folder):
                found[os.path.basename(source)[:-2]] = target["filename"][0]
    return found


def script_targets(path, programs):
    """What the script at `path` uses of a build, relative to its folder: the programs that every script gets, and what
    it names as $VMM_BUILD/FILE. None, that is all, if it speaks of VMM_BUILD in another way."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if "lib/tiny.sh" in text:
        with open(os.path.join(TESTS, "lib", "tiny.sh"), encoding="utf-8") as file:
            text += file.read()
    named = re.findall(r"\$\{?VMM_BUILD\}?/([\w./-]+)", text)
    if text.count("VMM_BUILD") != len(named):
        return None
    return sorted({*named, *programs})


def needed_targets(build, jobs, programs):
    """What must be compiled in a build for these jobs; None is all of it. programs: its executables by name."""
    folder = build_dir(build) + os.sep
    standard = [os.path.relpath(programs[name], folder) for name in ("vmm", "img-tool") if name in programs]
    needed = set()
    for job in jobs:
        if job.group == "unit":
            needed.update(os.path.relpath(word, folder) for word in job.command if word.startswith(folder))
        elif job.group == "fuzz":
            if job.command[0] in programs:
                needed.add(os.path.relpath(programs[job.command[0]], folder))
        else:
            targets = script_targets(job.command[0], standard)
            if targets is None:
                return None
            needed.update(targets)
    return sorted(needed)
