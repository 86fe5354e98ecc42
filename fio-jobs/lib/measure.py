# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measuring programs against each other on a machine that is not quiet: every round runs each of them once, right
after each other (every other round backwards), a ratio is taken within a round, and the median over the rounds
counts. What slows the machine for longer than a round slows all of them; what is shorter spoils one round."""

import math
import os
import statistics
import time
from dataclasses import dataclass, field

from contenders import processor_seconds

# Of all processors. Above it, a speed says more of the neighbours than of the program.
QUIET = 0.1


class Neighbours:
    """How much of the processors programs that are not ours have used since start()."""

    @staticmethod
    def machine():
        """Busy seconds of all processors, time taken by the hypervisor for others included."""
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, steal = (int(n) for n in file.readline().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def ours():
        times = os.times()
        return processor_seconds() + times.user + times.system

    def start(self):
        self.began, self.busy, self.own = time.monotonic(), self.machine(), self.ours()
        return self

    def share(self):
        used = (self.machine() - self.busy) - (self.ours() - self.own)
        return max(used, 0) / (time.monotonic() - self.began) / os.cpu_count()


def wait_for_quiet(seconds):
    """Waits, at most so long, until the neighbours have been quiet for a second; whether they have."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        neighbours = Neighbours().start()
        time.sleep(1)
        if neighbours.share() <= QUIET:
            return True
    return False


@dataclass
class Series:
    name: str
    how: str = ""
    samples: list = field(default_factory=list)

    @property
    def iops(self):
        return statistics.median(sample.iops for sample in self.samples)

    @property
    def cpu_us(self):
        known = [sample.cpu_us for sample in self.samples if not math.isnan(sample.cpu_us)]
        return statistics.median(known) if len(known) > len(self.samples) / 2 else math.nan


def measure(job, programs, seconds, rounds, between=None):
    """{name: Series} for these contenders. `between` is called before each run, outside of what is measured."""
    for program in programs:
        program.prepare(job, seconds)
    series = {program.name: Series(program.name, program.how()) for program in programs}
    for number in range(rounds):
        for program in programs if number % 2 == 0 else reversed(programs):
            if between:
                between()
            series[program.name].samples.append(program.run(job))
    return series


def ratio(series, name, to):
    """How many times as fast: the median of the rounds' ratios."""
    return statistics.median(a.iops / b.iops for a, b in zip(series[name].samples, series[to].samples))


def thrift(series, name, to):
    """How many times as many requests for the same processor time: a ratio of medians, as one short run has too
    little of it. NaN where it cannot be told."""
    return series[to].cpu_us / max(series[name].cpu_us, 1e-3)
