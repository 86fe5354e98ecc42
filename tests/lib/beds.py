# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests that run inside the test bed: boots of tests/bed/bed, each of which runs one test after the other.

Several beds may run at a time. They share a folder with one shell script for each test, NUMBER.job; a bed takes a test
by making the link NUMBER.taken, which leads to the bed's name, and writes what became of it to results.BED
(tests/bed/run-group). A bed that ends or hangs loses the test that it was running; that one is begun again, in the same
bed's next boot or in another, three times at most."""

import os
import shlex
import threading
import time

ATTEMPTS = 3  # of a test, and of a bed that ends before it takes one
# Seconds: how long a bed may take to begin, and then say nothing (it says every few seconds that it lives).
BOOT_PATIENCE = 180
BEAT_PATIENCE = float(os.environ.get("BED_PATIENCE", "120"))
SCRIPT_ENV = ["VMM", "IMG_TOOL", "VMM_BUILD", "QUICK", "LONG", "SEED", "LC_ALL"]


class Beds:
    """`run` is for several threads, with a number each, from 0 up to and not including `count`."""

    def __init__(self, runner, jobs, folder, programs, count):
        """programs: the command lines of bed and run-group."""
        self.runner, self.jobs, self.folder = runner, jobs, folder
        self.bed, self.run_group = programs
        self.lock = threading.Lock()
        self.losses = [0] * len(jobs)
        self.reported = set()
        self.at_work = count
        self.last_words = ""
        os.mkdir(folder)
        with open(self.path("plan"), "w", encoding="utf-8") as plan:
            for number, job in enumerate(jobs):
                plan.write(f"{number} {job.timeout:.0f}\n")
                self.write_script(number, job)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write_script(self, number, job):
        env = self.runner.environment(job, "")
        with open(self.path(f"{number}.job"), "w", encoding="utf-8") as file:
            for name in SCRIPT_ENV + [name for name in env if name.endswith("SAN_OPTIONS")]:
                file.write(f"export {name}={shlex.quote(env[name])}\n")
            file.write(f"exec {shlex.join(job.command)}\n")

    def owner(self, number):
        try:
            return os.readlink(self.path(f"{number}.taken"))
        except FileNotFoundError:
            return None

    def taken_by(self, bed):
        return {number for number in range(len(self.jobs)) if self.owner(number) == bed}

    def work_left(self):
        return any(self.owner(number) is None for number in range(len(self.jobs)))

    def text(self, name):
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def report(self, number, status, seconds, output, timed_out=False):
        with self.lock:
            self.reported.add(number)
        self.runner.report(self.jobs[number], status, seconds, output, timed_out)

    def run(self, number):
        """Boots beds until no test is left to take."""
        boots, barren = 0, 0
        while self.work_left() and barren < ATTEMPTS and not self.runner.stopping:
            boots += 1
            bed = f"bed{number}.{boots}"
            words = self.boot(bed)
            barren = 0 if self.taken_by(bed) else barren + 1
            lost = self.taken_by(bed) - self.reported
            if (lost or barren) and not self.runner.stopping:
                self.begin_again(lost, words)
        with self.lock:
            self.at_work -= 1
            left = set(range(len(self.jobs))) - self.reported if self.at_work == 0 else set()
        for number in left if not self.runner.stopping else ():
            self.report(number, 125, 0, "no test bed came up for this test\n" + self.last_words)

    def begin_again(self, lost, words):
        self.last_words = words
        for number in lost:
            self.runner.begun_again(self.jobs[number].name, "the test bed ended before it did")
        names = ", ".join(self.jobs[number].name for number in lost) or "it took any test"
        self.runner.note([f"the test bed ended before {names} did. Its output:", *words.splitlines()[-60:]])
        for number in lost:
            self.losses[number] += 1
            said = self.text(f"{number}.log")
            if self.losses[number] == ATTEMPTS:
                self.report(number, 125, 0, f"each of {ATTEMPTS} test beds ended before this test did\n{words}\n{said}")
            else:
                self.runner.note([f"{self.jobs[number].name} is begun again. It had said:", *said.splitlines()[-60:]])
                os.unlink(self.path(f"{number}.taken"))

    def boot(self, bed):
        """One boot, to its end. Reports the tests that end in it. Returns what the bed said."""
        total = sum(job.timeout for job in self.jobs) + 300
        keep = "--keep" if self.runner.args.keep else "--no-keep"
        command = [*self.bed, "--timeout", f"{total:.0f}", "--out", self.folder, "--", *self.run_group, self.folder, bed, keep]
        process, ended = [], threading.Event()

        def machine():
            with open(self.path(f"{bed}.log"), "wb") as output:
                self.runner.execute(command, total + 60, output, started=process.append,
                                    env={**os.environ, "TMPDIR": self.runner.work, "BED_MEMORY": self.runner.memory})
            ended.set()

        threading.Thread(target=machine).start()
        # Each test is held to its time inside. If nothing at all has ended for longer than that, the bed is stuck.
        longest = max(job.timeout for job in self.jobs) + 180
        seen, progress, sign, hung, beat = set(), time.monotonic(), time.monotonic(), "", ""
        while True:
            last = ended.wait(0.5)
            for number, *result in self.results(bed):
                if number not in seen:
                    seen.add(number)
                    progress = time.monotonic()
                    self.report(number, *result[:2], self.text(f"{number}.log"), result[2])
            if last:
                return self.text(f"{bed}.log") + hung
            # And if it does not even say that it lives, nobody waits for that.
            beat, last_beat = self.text(f"alive.{bed}"), beat
            sign = time.monotonic() if beat != last_beat else sign
            patience = BEAT_PATIENCE if beat else BOOT_PATIENCE
            if process and not hung and time.monotonic() - sign > patience:
                hung = f"\nno sign of life for {patience:.0f} seconds: the bed hangs, and was ended"
                self.runner.end(process[0])
            elif process and not hung and time.monotonic() - progress > longest:
                hung = f"\nno test ended for {longest:.0f} seconds: the bed hangs, and was ended"
                self.runner.end(process[0])

    def results(self, bed):
        for line in self.text(f"results.{bed}").split("\n")[:-1]:
            number, status, seconds, timed_out = line.split()
            yield int(number), int(status), float(seconds), timed_out == "1"
