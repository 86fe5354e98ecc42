# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs tests, several at a time, and counts what becomes of them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time

import scratch
from beds import Beds
from builds import ROOT, TESTS, build_dir, say
from mutants import Farm
from reports import Result

BED = os.path.join(TESTS, "bed", "bed")
RUN_GROUP = os.path.join(TESTS, "bed", "run-group")
TESTS_A_BED = 4  # fewer are not worth another boot
BED_MIB = 4096  # a bed has 3 GiB

# 99: not to be mistaken for a status of the program under test. A huge malloc() returns NULL, as it does without ASan.
SANITIZERS = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=1:strict_string_checks=1:check_initialization_order=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "exitcode=99:halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "exitcode=99:halt_on_error=1:second_deadlock_stack=1",
}


class Runner:
    def __init__(self, args, seed):
        self.args, self.seed = args, seed
        self.lock = threading.RLock()  # a signal's handler may run while this thread holds it
        self.running = set()
        self.results = []  # Result, in the order in which they came
        self.notes = []  # (test, what): what was done again
        self.fault = False  # of the runner itself
        self.programs = {}
        self.stopping = False
        for base in {scratch.disk_base(), scratch.memory_base()}:
            scratch.sweep(base)
        self.work, self.work_held = scratch.make(scratch.disk_base())
        self.memory, self.memory_held = scratch.make(scratch.memory_base())
        self.guard = scratch.Guard([self.work, self.memory])
        self.farm = Farm(os.path.join(self.work, "mutants"), self.execute, seed)
        self.no_aslr = no_aslr_prefix()

    # What a test finds.

    def environment(self, job, folder, memory=""):
        env = dict(os.environ)
        for name, value in SANITIZERS.items():
            env[name] = value + (":" + os.environ[name] if name in os.environ else "")
        env.update(job.env)
        programs = self.programs.get(job.build, {})
        build = build_dir(job.build)
        env.setdefault("VMM", programs.get("vmm", os.path.join(build, "vmm", "vmm")))
        env.setdefault("IMG_TOOL", programs.get("img-tool", os.path.join(build, "img-tool", "img-tool")))
        env.update(VMM_BUILD=build, TEST_TMP=folder, TEST_SHM=memory, TMPDIR=folder, QUICK=str(int(self.args.quick)),
                   LONG=str(int(self.args.long)), SEED=str(self.seed), LC_ALL="C")
        return env

    def folders(self, job):
        """One on the disk, one in memory."""
        name = re.sub(r"[^a-zA-Z0-9.-]", "-", job.name)
        disk, memory = os.path.join(self.work, name), os.path.join(self.memory, name)
        os.makedirs(disk)
        os.makedirs(memory)
        return disk, memory

    def put_away(self, disk, memory, keep):
        """Removes a test's folders; keeps what there is, that in memory beside the other, if wanted."""
        if not keep:
            scratch.clear(disk)
        elif os.listdir(memory):
            scratch.release(memory)
            shutil.move(memory, disk + ".memory")
        scratch.clear(memory)

    # What becomes of it.

    def report(self, job, status, seconds, output, timed_out=False, detail=""):
        """Counts the result and prints it; the whole output if it failed."""
        result = Result(job.name, status, seconds, output, job.timeout if timed_out else None)
        with self.lock:
            self.results.append(result)
            self.notes += [(job.name, note) for note in result.notes()]
            if result.passed:
                say(f"ok    {job.name}  {seconds:.1f} s" + (f"  {detail}" if detail else ""))
            elif result.skipped:
                say(f"skip  {job.name}: {result.reason}")
            else:
                say(f"FAIL  {job.name}: {result.reason}, {seconds:.1f} s. Its output:")
                for line in output.splitlines():
                    say(f"    {line}")
                quick = "--quick " if self.args.quick else "--long " if self.args.long else ""
                build = f"--build {self.args.build} " if self.args.build else ""
                say(f"  to repeat: SEED={self.seed} tests/run {quick}{build}{job.name}")
            for name, reason in result.skips_within():
                say(f"skip  {name}: {reason}")

    def note(self, lines):
        with self.lock:
            say(f"note  {lines[0]}")
            for line in lines[1:]:
                say(f"    {line}")

    def begun_again(self, name, why):
        with self.lock:
            self.notes.append((name, why))

    # Processes.

    def execute(self, command, timeout, output, started=None, patience=5, **kwargs):
        """Runs a command in a process group of its own; returns status, timed_out. The group is gone afterwards.
        `started` is called with the process. Out of time, it has `patience` seconds to end by itself."""
        with self.lock:
            if self.stopping:
                return 1, False
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True, **kwargs)
            self.guard.tell(f"+{process.pid}")
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
                process.wait(patience)
            except subprocess.TimeoutExpired:
                pass
        kill_group(process, signal.SIGKILL)
        process.wait()
        with self.lock:
            self.running.discard(process)
            self.guard.tell(f"-{process.pid}")
        return process.returncode, timed_out

    def stop(self):
        """Ends everything, in a hurry, and leaves nothing."""
        with self.lock:
            self.stopping = True
            for process in self.running:
                kill_group(process, signal.SIGTERM)
        time.sleep(1)
        with self.lock:
            for process in self.running:
                kill_group(process, signal.SIGKILL)
        # Processes that left their group, and the folders: as after a SIGKILL.
        self.guard.process.stdin.close()
        self.guard.process.wait()

    def end(self, process):
        """Asks it to end, and sees to it a little later."""
        def harder():
            with self.lock:
                if process in self.running:
                    kill_group(process, signal.SIGKILL)

        kill_group(process, signal.SIGTERM)
        timer = threading.Timer(5, harder)
        timer.daemon = True
        timer.start()

    # One test.

    def run_plain(self, job):
        disk, memory = self.folders(job)
        command = job.command
        if job.build == "tsan":
            command = self.no_aslr + command
        log = disk + ".log"
        started = time.monotonic()
        with open(log, "wb") as output:
            try:
                status, timed_out = self.execute(command, job.timeout, output, cwd=job.workdir or disk,
                                                 env=self.environment(job, disk, memory))
            except OSError as error:
                output.write(f"cannot run it: {error}\n".encode())
                status, timed_out = 126, False
        if self.stopping:
            return
        seconds = time.monotonic() - started
        with open(log, encoding="utf-8", errors="replace") as file:
            self.report(job, status, seconds, file.read(), timed_out)
        keep = self.args.keep or status not in (0, 77) or timed_out
        if not keep:
            os.unlink(log)
        self.put_away(disk, memory, keep)

    def run_fuzz(self, job):
        """libFuzzer over the seeds, for a time; what makes it fail is kept in build/fuzz-failures."""
        name = job.command[0]
        disk, memory = self.folders(job)
        corpus = os.path.join(disk, "corpus")
        os.makedirs(corpus)
        kept = os.path.join(ROOT, "build", "fuzz-failures")
        os.makedirs(kept, exist_ok=True)
        env = self.environment(job, disk, memory)
        log = disk + ".log"
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
                status, timed_out = self.execute([seeds, corpus], 60, output, cwd=disk, env=env)
            if status == 0:
                stored = os.path.join(TESTS, "fuzz", "corpus", name)
                command = self.no_aslr + [binary, f"-max_total_time={limit}", f"-seed={self.seed % 2**31 or 1}", "-timeout=20",
                                          "-rss_limit_mb=2048", "-error_exitcode=99", "-print_final_stats=1", f"-artifact_prefix={kept}/{name}-", corpus]
                if os.path.isdir(stored):
                    command.append(stored)
                output.write((shlex.join(command) + "\n").encode())
                output.flush()
                status, timed_out = self.execute(command, job.timeout, output, cwd=disk, env=env)
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
        self.put_away(disk, memory, self.args.keep or status != 0)

    def run_mutant(self, job):
        started = time.monotonic()
        status, output, killer = self.farm.run(job.command[0])
        if not self.stopping:
            self.report(job, status, time.monotonic() - started, output, detail=killer)

    # All tests.

    def bed_count(self, tests):
        try:
            with open("/proc/meminfo", encoding="ascii") as file:
                room = int(re.search(r"MemAvailable: +(\d+)", file.read())[1]) // 1024 // BED_MIB
        except (OSError, TypeError):
            room = 2
        return max(1, min(self.args.jobs, room, -(-tests // TESTS_A_BED)))

    def tasks(self, jobs):
        """What may run at the same time, in this order. The beds first: they take longest."""
        queue = []
        bed = [job for job in jobs if job.bed]
        if bed:
            count = self.bed_count(len(bed))
            beds = Beds(self, bed, os.path.join(self.work, "beds"), ([BED, "run"], [RUN_GROUP]), count)
            queue = [lambda number=number: beds.run(number) for number in range(count)]
        for job in jobs:
            if not job.bed and not self.alone(job):
                run = {"fuzz": self.run_fuzz, "mutants": self.run_mutant}.get(job.group, self.run_plain)
                queue.append(lambda job=job, run=run: run(job))
        return queue

    @staticmethod
    def alone(job):
        return job.group == "perf" and not job.bed

    def run_all(self, jobs):
        queue = self.tasks(jobs)

        def worker():
            while not self.stopping:
                with self.lock:
                    if not queue:
                        return
                    task = queue.pop(0)
                try:
                    task()
                except Exception:  # a fault of the runner itself must not look like success
                    self.fault = True
                    raise

        threads = [threading.Thread(target=worker) for _ in range(max(1, self.args.jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for job in jobs:
            if self.alone(job) and not self.stopping:
                self.run_plain(job)

    def close(self):
        """Removes the run's folders, or leaves those of failed tests and says where."""
        scratch.clear(os.path.join(self.work, "mutants"))
        if self.args.keep or (not all(result.fine for result in self.results) and os.listdir(self.work)):
            with open(os.path.join(self.work, scratch.KEPT), "w", encoding="ascii"):
                pass
            say(f"folders of failed tests: {self.work}" if not self.args.keep else f"folders: {self.work}")
        else:
            scratch.clear(self.work)
        scratch.clear(self.memory)
        self.guard.dismiss()


def kill_group(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def no_aslr_prefix():
    """The sanitizers of GCC 12 and clang 14 do not find their memory where a kernel randomizes more than 28 bits."""
    try:
        with open("/proc/sys/vm/mmap_rnd_bits", encoding="ascii") as file:
            return ["setarch", "-R"] if int(file.read()) > 28 else []
    except OSError:
        return []
