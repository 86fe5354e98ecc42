# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds vmm and runs its tests.

  tests/run                          everything
  tests/run --quick                  a choice that takes less than five minutes
  tests/run --long                   what is random runs for hours: 2,000 differential sequences, 2,000 power-cut workloads a cache mode
  tests/run --list [NAME...]         the names of the tests
  tests/run NAME...                  a group (format), a test (format/backing-chain), one case or build of it
                                     (guest/filesystem:none-1, unit/coroutine@tsan), or a pattern ('unit/co*')
  -j N                               tests at a time (default: 2)
  --keep                             keep every test's folder
  --werror                           build with -Werror: release and fuzz (in code that a sanitizer has rewritten GCC warns of
                                     what is not there)
  --no-build                         test what is built already

What there is: unit tests are meson's (each runs in the builds release and asan, and those of meson's suite `threads` in
tsan); executables tests/{cli,format,protocol,crash,guest,perf}/NAME, shell or Python; and fuzz targets
tests/fuzz/NAME.c, which start from tests/fuzz/corpus/NAME/ and from what the program tests/fuzz/NAME.seeds, if there,
writes into the folder that it is given.

An executable says in comment lines at its head what it needs:

  # build: asan                which builds it tests, each counted: asan (default), release, tsan, several of them, `both`
                               for release and asan, `none` for tests of no program
  # quick: no                  left out by --quick (default: yes)
  # long: yes                  only in --long, or where it is named (default: no)
  # timeout: 300               seconds until it is killed (default: 120)
  # cases: a b c               it runs once for each, with the case as its argument
  # quick-cases: a             those that --quick runs (default: all)
  # group-bed: yes             it runs inside the test bed (tests/bed/bed), many tests in one boot of it (tests/lib/beds.py)

It gets VMM_BUILD (folder of the build), VMM and IMG_TOOL (programs under test), TEST_TMP (an empty folder of its own),
QUICK and LONG (1 or 0) and SEED (a number), an empty standard input, and a process group that is killed at its end. Exit status 0 passes, 77
skips (the last line of output is the reason), anything else fails. VMM and IMG_TOOL in the caller's environment replace the built ones in
executables: `VMM=qemu-system-x86_64 IMG_TOOL=qemu-img tests/run guest` shows what the tests make of QEMU.

The exit status is 1 if a test or a build failed, 2 if there was nothing to run.
"""

import argparse
import fnmatch
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from beds import Beds

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
TESTS = os.path.join(ROOT, "tests")
BED = os.path.join(TESTS, "bed", "bed")
RUN_GROUP = os.path.join(TESTS, "bed", "run-group")
TESTS_A_BED = 4  # fewer are not worth another boot
GROUPS = ["cli", "format", "protocol", "crash", "guest", "perf"]

BUILDS = {
    "release": ["--buildtype=debugoptimized"],
    "asan": ["--buildtype=debugoptimized", "-Db_sanitize=address,undefined", "-Db_lundef=false"],
    "tsan": ["--buildtype=debugoptimized", "-Db_sanitize=thread", "-Db_lundef=false"],
    "fuzz": ["--buildtype=debugoptimized", "-Db_sanitize=address,undefined", "-Db_lundef=false", "-Dfuzz=true"],
}
SLOWER = {"release": 1, "asan": 3, "tsan": 8}

# 99: not to be mistaken for a status of the program under test. A huge malloc() returns NULL, as it does without ASan.
SANITIZERS = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=1:strict_string_checks=1:check_initialization_order=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "exitcode=99:halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=99:halt_on_error=1:second_deadlock_stack=1",
}


class Job:
    """One run of one test."""

    def __init__(self, name, command, timeout, build, quick=True, long=False, bed=False, workdir=None, env=None):
        self.name, self.command, self.timeout, self.build = name, command, timeout, build
        self.quick, self.long, self.bed, self.workdir, self.env = quick, long, bed, workdir, env or {}

    @property
    def group(self):
        return self.name.split("/")[0]


class BuildFailed(Exception):
    pass


def say(text):
    print(text, flush=True)


# ---- builds ----

def build_dir(build):
    return os.path.join(ROOT, "build", build)


def quiet_command(command, what, env=None):
    """Runs it; shows its output only where it fails."""
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


def compile_targets(build, targets=()):
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


# ---- finding tests ----

def unit_jobs(build):
    for test in introspect(build, "--tests"):
        threads = any(s.split(":")[-1] == "threads" for s in test["suite"])
        if build == "tsan" and not threads:
            continue
        # meson says 0 for "no limit"; we have one.
        timeout = (test["timeout"] if test["timeout"] > 0 else 600) * SLOWER[build]
        yield Job(f"unit/{test['name']}@{build}", test["cmd"], timeout, build, workdir=test["workdir"], env=test["env"])


def read_headers(path):
    found = {}
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                break
            match = re.match(r"# ([a-z-]+): +(.*\S)", line)
            if match:
                found[match[1]] = match[2]
    known = {"build", "quick", "long", "timeout", "cases", "quick-cases", "group-bed"}
    found = {k: v for k, v in found.items() if k in known}
    for key in ("quick", "long", "group-bed"):
        if found.get(key, "yes") not in ("yes", "no"):
            raise BuildFailed(f"{path}: '{key}' is yes or no, not '{found[key]}'")
    return found


def script_jobs(group):
    folder = os.path.join(TESTS, group)
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
        path = os.path.join(folder, name)
        shown = f"tests/{group}/{name}"
        if not os.path.isfile(path) or not os.access(path, os.X_OK):
            continue
        head = read_headers(f"tests/{group}/{name}")
        cases = head.get("cases", "").split() or [None]
        quick_cases = head.get("quick-cases", "").split() or cases
        for case in quick_cases:
            if case not in cases:
                raise BuildFailed(f"{shown}: quick-cases has '{case}', which is not among the cases")
        builds = head.get("build", "asan").replace("both", "release asan").split()
        for build in builds:
            if build not in ("asan", "release", "tsan", "none"):
                raise BuildFailed(f"{shown}: no build '{build}': asan, release, tsan, both or none")
            for case in cases:
                full = f"{group}/{name}" + (f":{case}" if case else "") + (f"@{build}" if len(builds) > 1 else "")
                yield Job(full, [path] + ([case] if case else []), float(head.get("timeout", 120)), build,
                          quick=head.get("quick", "yes") == "yes" and case in quick_cases,
                          long=head.get("long") == "yes",
                          bed=head.get("group-bed") == "yes")


def fuzz_jobs():
    folder = os.path.join(TESTS, "fuzz")
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else []):
        if name.endswith(".c"):
            yield Job(f"fuzz/{name[:-2]}", [name[:-2]], 0, "fuzz")


def matches(job, wanted):
    for want in wanted:
        want = want.removeprefix("./").removeprefix("tests/").rstrip("/")
        if job.name == want or fnmatch.fnmatchcase(job.name, want):
            return True
        if job.name.startswith(want) and job.name[len(want)] in "/:@":
            return True
        # All cases of one build: guest/filesystem@asan.
        if re.sub(r":[^@]*", "", job.name) == want:
            return True
    return False


# ---- running ----

class Runner:
    def __init__(self, args, seed):
        self.args, self.seed = args, seed
        self.lock = threading.Lock()
        self.running = set()
        self.passed, self.failed, self.skipped = [], [], []
        self.programs = {}
        self.stopping = False
        base = os.environ.get("TMPDIR", "/var/tmp")
        self.work = tempfile.mkdtemp(prefix="vmm-tests.", dir=base)
        self.no_aslr = no_aslr_prefix()

    def environment(self, job, folder):
        env = dict(os.environ)
        for name, value in SANITIZERS.items():
            env[name] = value + (":" + os.environ[name] if name in os.environ else "")
        env.update(job.env)
        programs = self.programs.get(job.build, {})
        build = build_dir(job.build)
        env.setdefault("VMM", programs.get("vmm", os.path.join(build, "vmm", "vmm")))
        env.setdefault("IMG_TOOL", programs.get("img-tool", os.path.join(build, "img-tool", "img-tool")))
        env.update(VMM_BUILD=build, TEST_TMP=folder, QUICK=str(int(self.args.quick)), LONG=str(int(self.args.long)), SEED=str(self.seed), LC_ALL="C")
        return env

    def folder(self, job):
        return os.path.join(self.work, re.sub(r"[^a-zA-Z0-9.-]", "-", job.name))

    def report(self, job, status, seconds, output, timed_out=False):
        """Counts the result and prints it; the whole output where it failed."""
        lines = [line for line in output.splitlines() if line.strip()]
        with self.lock:
            if status == 0 and not timed_out:
                self.passed.append(job.name)
                say(f"ok    {job.name}  {seconds:.1f} s")
            elif status == 77 and not timed_out:
                reason = lines[-1].strip() if lines else "gives no reason"
                self.skipped.append((job.name, reason))
                say(f"skip  {job.name}: {reason}")
            else:
                why = f"killed after {job.timeout:.0f} s" if timed_out else status_text(status)
                self.failed.append(job.name)
                say(f"FAIL  {job.name}: {why}, {seconds:.1f} s. Its output:")
                for line in output.splitlines():
                    say(f"    {line}")
                quick = "--quick " if self.args.quick else "--long " if self.args.long else ""
                say(f"  to repeat: SEED={self.seed} tests/run {quick}{job.name}")

    def execute(self, command, timeout, output, started=None, **kwargs):
        """Runs a command in a process group of its own; returns status, timed_out. The group is gone afterwards.
        `started` is called with the process."""
        with self.lock:
            if self.stopping:
                return 1, False
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True, **kwargs)
            self.running.add(process)
        if started:
            started(process)
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            kill_group(process, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                pass
        kill_group(process, signal.SIGKILL)
        process.wait()
        with self.lock:
            self.running.discard(process)
        return process.returncode, timed_out

    def stop(self):
        with self.lock:
            self.stopping = True
            for process in self.running:
                kill_group(process, signal.SIGTERM)
        time.sleep(1)
        with self.lock:
            for process in self.running:
                kill_group(process, signal.SIGKILL)

    def run_plain(self, job):
        folder = self.folder(job)
        os.mkdir(folder)
        command = job.command
        if job.build == "tsan":
            command = self.no_aslr + command
        log = folder + ".log"
        started = time.monotonic()
        with open(log, "wb") as output:
            try:
                status, timed_out = self.execute(command, job.timeout, output, cwd=job.workdir or folder,
                                                 env=self.environment(job, folder))
            except OSError as error:
                output.write(f"cannot run it: {error}\n".encode())
                status, timed_out = 126, False
        if self.stopping:
            return
        seconds = time.monotonic() - started
        with open(log, encoding="utf-8", errors="replace") as file:
            self.report(job, status, seconds, file.read(), timed_out)
        if not self.args.keep and status in (0, 77):
            shutil.rmtree(folder, ignore_errors=True)
            os.unlink(log)

    def run_fuzz(self, job):
        """libFuzzer over the seeds, for a time; what makes it fail is kept in build/fuzz-failures."""
        name = job.command[0]
        folder = self.folder(job)
        corpus = os.path.join(folder, "corpus")
        os.makedirs(corpus)
        kept = os.path.join(ROOT, "build", "fuzz-failures")
        os.makedirs(kept, exist_ok=True)
        env = self.environment(job, folder)
        log = folder + ".log"
        limit = 5 if self.args.quick else 900 if self.args.long else 20
        job.timeout = limit + 100
        started = time.monotonic()
        status, timed_out = 0, False
        with open(log, "wb") as output:
            seeds = os.path.join(TESTS, "fuzz", name + ".seeds")
            binary = self.programs["fuzz"].get(name)
            if not binary:
                output.write(f"meson builds no executable from tests/fuzz/{name}.c\n".encode())
                status = 1
            if status == 0 and os.access(seeds, os.X_OK):
                status, timed_out = self.execute([seeds, corpus], 60, output, cwd=folder, env=env)
            if status == 0:
                stored = os.path.join(TESTS, "fuzz", "corpus", name)
                command = self.no_aslr + [binary, f"-max_total_time={limit}", f"-seed={self.seed % 2**31 or 1}", "-timeout=20",
                                          "-rss_limit_mb=2048", "-error_exitcode=99", "-print_final_stats=1", f"-artifact_prefix={kept}/{name}-", corpus]
                if os.path.isdir(stored):
                    command.append(stored)
                output.write((shlex.join(command) + "\n").encode())
                output.flush()
                status, timed_out = self.execute(command, job.timeout, output, cwd=folder, env=env)
        if self.stopping:
            return
        with open(log, encoding="utf-8", errors="replace") as file:
            text = file.read()
        match = re.search(r"number_of_executed_units: +(\d+)", text)
        if status == 77:  # what libFuzzer says of a crash, not that it was skipped
            status = 99
        if status == 0 and not (match and int(match[1]) > 0):
            status, text = 1, text + "\nit executed nothing"
        self.report(job, status, time.monotonic() - started, text, timed_out)
        if not self.args.keep and status == 0:
            shutil.rmtree(folder, ignore_errors=True)

    def note(self, lines):
        with self.lock:
            say(f"note  {lines[0]}")
            for line in lines[1:]:
                say(f"    {line}")

    def end(self, process):
        kill_group(process, signal.SIGTERM)

    def run_all(self, jobs):
        bed = [job for job in jobs if job.bed]
        alone = [job for job in jobs if job.group == "perf" and not job.bed]
        # The beds first: they take longest.
        queue = []
        if bed:
            count = min(self.args.jobs, -(-len(bed) // TESTS_A_BED))
            beds = Beds(self, bed, os.path.join(self.work, "beds"), ([BED, "run"], [RUN_GROUP]), count)
            queue = [lambda number=number: beds.run(number) for number in range(count)]
        for job in jobs:
            if job.group == "fuzz":
                queue.append(lambda job=job: self.run_fuzz(job))
            elif job not in alone and not job.bed:
                queue.append(lambda job=job: self.run_plain(job))

        def worker():
            while not self.stopping:
                with self.lock:
                    if not queue:
                        return
                    task = queue.pop(0)
                try:
                    task()
                except Exception:  # a fault of the runner itself must not look like success
                    with self.lock:
                        self.failed.append("the runner")
                    raise

        threads = [threading.Thread(target=worker) for _ in range(max(1, self.args.jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for job in alone:
            if not self.stopping:
                self.run_plain(job)

    def summary(self):
        if self.failed:
            say("")
            say("failed: " + " ".join(self.failed))
        if self.skipped:
            say("")
            say("skipped:")
            for name, reason in self.skipped:
                say(f"  {name}: {reason}")
        if (self.failed and os.listdir(self.work)) or self.args.keep:
            say(f"folders of failed tests: {self.work}" if not self.args.keep else f"folders: {self.work}")
        else:
            shutil.rmtree(self.work, ignore_errors=True)
        say(f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped")


def kill_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def status_text(status):
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}" + (" (a sanitizer's report)" if status == 99 else "")


def no_aslr_prefix():
    """The sanitizers of GCC 12 and clang 14 do not find their memory where a kernel randomizes more than 28 bits."""
    try:
        with open("/proc/sys/vm/mmap_rnd_bits", encoding="ascii") as file:
            return ["setarch", "-R"] if int(file.read()) > 28 else []
    except OSError:
        return []


# ---- main ----

def find_jobs(args):
    """All tests. Configures the builds whose unit tests it must know, but compiles nothing."""
    have_meson = os.path.exists(os.path.join(ROOT, "meson.build"))
    jobs = []
    units = have_meson and (not args.names or any(re.match(r"(\./)?(tests/)?unit|.*[*?\[]", n) for n in args.names))
    if units:
        for build in ("release", "asan", "tsan"):
            configure(build, args.werror)
            found = list(unit_jobs(build))
            sources = [f for f in os.listdir(os.path.join(TESTS, "unit")) if f.endswith(".c")]
            if sources and not found and build != "tsan":
                raise BuildFailed(f"tests/unit has {len(sources)} files, but meson lists no test in build/{build}")
            jobs += found
    for group in GROUPS:
        jobs += script_jobs(group)
    if have_meson:
        jobs += fuzz_jobs()
    return jobs


def build_all(args, jobs):
    """Compiles what these tests need; returns the executables of each build by name."""
    programs = {}
    overridden = "VMM" in os.environ and "IMG_TOOL" in os.environ
    for build in BUILDS:
        own = [job for job in jobs if job.build == build]
        if overridden:
            own = [job for job in own if job.group in ("unit", "fuzz")]
        if not own:
            continue
        configure(build, args.werror)
        programs[build] = fuzz_targets(build) if build == "fuzz" else executables(build)
        if args.no_build:
            continue
        if build == "fuzz":
            compile_targets(build, [os.path.relpath(path, build_dir(build)) for path in programs[build].values()])
        elif build == "tsan" and all(job.group == "unit" for job in own):
            compile_targets(build, sorted({os.path.relpath(job.command[0], build_dir(build)) for job in own}))
        else:
            compile_targets(build)
    if any(job.bed for job in jobs):
        quiet_command([BED, "prepare"], "preparing the test bed")
    return programs


def main():
    parser = argparse.ArgumentParser(prog="tests/run", description=__doc__, add_help=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("-j", dest="jobs", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--werror", action="store_true")
    parser.add_argument("--no-build", action="store_true")
    args = parser.parse_args()
    if args.help:
        print(__doc__.strip())
        return 0

    try:
        jobs = find_jobs(args)
        for name in args.names:
            if not any(matches(job, [name]) for job in jobs):
                say(f"no test is called '{name}' (tests/run --list)")
                return 2
        if args.names:
            jobs = [job for job in jobs if matches(job, args.names)]
        if args.long:
            for job in jobs:
                job.timeout *= 20
        elif not args.names:
            jobs = [job for job in jobs if not job.long]
        if args.quick:
            exact = {name.removeprefix("./").removeprefix("tests/") for name in args.names}
            jobs = [job for job in jobs if job.quick or job.name in exact]
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

    seed = int(os.environ["SEED"]) if "SEED" in os.environ else random.randrange(2**31)
    say(f"seed {seed}")
    runner = Runner(args, seed)
    runner.programs = programs

    def interrupted(number, _frame):
        runner.stop()
        shutil.rmtree(runner.work, ignore_errors=True)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    runner.run_all(jobs)
    runner.summary()
    return 1 if runner.failed else 0


sys.exit(main())
