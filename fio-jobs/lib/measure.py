# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measuring programs against each other on a machine that is not quiet: every round runs each of them once, right after each
other (every other round backwards), a ratio is taken within a round, and the median over the rounds counts. What slows the
machine for longer than a round slows all of them; what is shorter spoils one round."""

import statistics
from dataclasses import dataclass, field


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
        return statistics.median(sample.cpu_us for sample in self.samples)


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


def ratio(series, name, to, what="iops"):
    """Median of the rounds' ratios of speeds. With what="cpu_us": how much less processor time, so that more is better."""
    pairs = zip(series[name].samples, series[to].samples)
    if what == "cpu_us":
        return statistics.median(b.cpu_us / max(a.cpu_us, 1e-9) for a, b in pairs)
    return statistics.median(a.iops / b.iops for a, b in pairs)
