# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs that are measured against each other, each behind the same two calls: prepare() finds out how much
work takes the time wanted, run() does that much and says how fast it was.

A speed is requests a second over the time that the program itself measures, from its first request to its last. The
processor time is that of all the program's threads, those that the kernel runs for its io_uring included, less what a
run with a single request takes."""

import json
import math
import os
import re
import resource
import statistics
import subprocess
from dataclasses import dataclass

from jobs import JOB_FILE

FIO_BEST = ["registerfiles", "iodepth_batch_submit=16", "iodepth_batch_complete_max=16"]


@dataclass
class Sample:
    iops: float
    cpu_us: float  # of processor time a request; NaN: cannot be told


def processor_seconds():
    """Of all programs run so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_program(command, env=None, timeout=120):
    """Output and processor time of a program; an exception with all it said where it fails."""
    before = processor_seconds()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, timeout=timeout
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: status {done.returncode}\n{done.stdout.decode()}{done.stderr.decode()}"
        )
    return done.stdout.decode(), processor_seconds() - before


class BenchCommand:
    """`img-tool bench` or `qemu-img bench`: they take the same options and a number of requests. `aio` lists what is
    tried for -i; the fastest is kept. `random_option` is for programs that have random offsets; others get a long odd
    step."""

    def __init__(self, name, program, path, image_format, cache, size, aio=(None,), random_option=None, extra=()):
        self.name, self.program, self.path, self.format = name, program, path, image_format
        self.cache, self.size, self.aio_choices = cache, size, aio
        self.random_option, self.extra = random_option, list(extra)
        self.aio, self.count, self.start_cpu = aio[0], 0, 0.0

    def command(self, job, count, aio):
        command = [
            self.program,
            "bench",
            "-f",
            self.format,
            "-t",
            self.cache,
            "-c",
            str(count),
            "-d",
            str(job.depth),
            "-s",
            str(job.block),
            *self.extra,
        ]
        if job.random and self.random_option:
            command.append(self.random_option)
        else:
            command += ["-S", str(job.step(self.size))]
        if aio:
            command += ["-i", aio]
        if job.write:
            command += ["-w", "--pattern=165"]
        return command + [self.path]

    def measure(self, job, count, aio):
        output, cpu = run_program(self.command(job, count, aio))
        match = re.search(r"Run completed in ([0-9.]+) seconds", output)
        if not match:
            raise RuntimeError(f"{self.program} bench says nothing of how long it took:\n{output}")
        seconds = max(float(match[1]), 0.001)
        return Sample(count / seconds, max(cpu - self.start_cpu, 0) / count * 1e6), seconds

    def prepare(self, job, seconds):
        self.start_cpu = run_program(self.command(job, 1, self.aio))[1]
        best = 0.0
        # Where there is a choice, each is tried twice: one bad moment must not make us choose a slow one.
        for aio in self.aio_choices * (2 if len(self.aio_choices) > 1 else 1):
            sample = self.try_out(job, seconds, aio)
            if sample.iops > best:
                best, self.aio = sample.iops, aio
        self.count = max(int(best * seconds), 100)

    def try_out(self, job, seconds, aio):
        """One run that takes at least a fifth of `seconds`."""
        count, took, sample = 500, 0.0, None
        while took < seconds / 5:
            sample, took = self.measure(job, count, aio)
            count = min(count * 8, int(sample.iops * seconds / 4) + 1) if took >= 0.01 else count * 8
        return sample

    def run(self, job):
        return self.measure(job, self.count, self.aio)[0]

    def how(self):
        return f"-i {self.aio}" if self.aio else ""


class Fio:
    """fio's io_uring engine on the raw file: plain as jobs.fio has it, or with FIO_BEST."""

    def __init__(self, name, path, cache, work, best=False):
        self.name, self.path, self.cache, self.best = name, path, cache, best
        self.seconds, self.start_cpu = 0.0, 0.0
        options = FIO_BEST if best else []
        self.job_file = self.derive(work, name, options)
        self.start_file = self.derive(work, name + " start", options + ["number_ios=1"])

    @staticmethod
    def derive(work, name, options):
        """jobs.fio with more options for every job; the file's path."""
        with open(JOB_FILE, encoding="utf-8") as file:
            text = file.read()
        added = text.replace("ioengine=io_uring\n", "\n".join(["ioengine=io_uring", *options, ""]))
        if options and added == text:
            raise RuntimeError(f"{JOB_FILE} has no line 'ioengine=io_uring' to add options after")
        path = os.path.join(work, name.replace(" ", "-") + ".fio")
        with open(path, "w", encoding="utf-8") as file:
            file.write(added)
        return path

    def fio(self, job, job_file):
        """What fio reports of the job, and the processor time of all of fio."""
        env = dict(
            os.environ,
            FILE=self.path,
            DIRECT="1" if self.cache == "none" else "0",
            RUNTIME=f"{int(self.seconds * 1000)}ms",
        )
        output, cpu = run_program(["fio", f"--section={job.name}", "--output-format=json", job_file], env)
        result = json.loads(output[output.index("{") :])["jobs"][0]
        if result["error"]:
            raise RuntimeError(f"fio: error {result['error']}\n{output}")
        return result["write" if job.write else "read"], cpu

    def prepare(self, job, seconds):
        self.seconds = seconds
        self.start_cpu = statistics.median(self.fio(job, self.start_file)[1] for _ in range(3))

    def run(self, job):
        side, cpu = self.fio(job, self.job_file)
        # fio's start takes a tenth of a second, more or less: in a short run the rest is lost in the more or less.
        known = cpu >= 2 * self.start_cpu
        return Sample(side["iops"], (cpu - self.start_cpu) / max(side["total_ios"], 1) * 1e6 if known else math.nan)

    def how(self):
        return " ".join("--" + option for option in FIO_BEST) if self.best else ""


def contenders(images, cache, work, img_tool, qemu_img="qemu-img"):
    """All six for one cache mode. Column names are those of the report."""
    aio = ["io_uring", "threads", "native"] if cache == "none" else ["io_uring", "threads"]
    found = []
    for image_format, path in images.paths.items():
        found.append(
            BenchCommand(
                f"img-tool {image_format}", img_tool, path, image_format, cache, images.size, random_option="--random=1"
            )
        )
    found.append(Fio("fio", images.paths["raw"], cache, work))
    found.append(Fio("fio best", images.paths["raw"], cache, work, best=True))
    for image_format, path in images.paths.items():
        found.append(
            BenchCommand(f"qemu-img {image_format}", qemu_img, path, image_format, cache, images.size, aio=aio)
        )
    return found
