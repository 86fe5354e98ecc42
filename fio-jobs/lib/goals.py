# SPDX-License-Identifier: LGPL-2.1-or-later
"""What vmm promises about its speed, as ratios between programs in one run. One list for the report and for tests/perf/speed."""

from dataclasses import dataclass

from measure import ratio, thrift

JOBS = ("randread-4k-qd64", "randwrite-4k-qd64")
CACHE = "none"


# Two programs that wait for the same device are equally fast, give or take this.
DEVICE_NOISE = 0.05


@dataclass(frozen=True)
class Goal:
    name: str
    to: str
    at_least: float


GOALS = (
    Goal("img-tool raw", "fio", 1.0),
    Goal("img-tool raw", "fio best", 0.85),
    Goal("img-tool qcow2", "img-tool raw", 0.92),
    Goal("img-tool raw", "qemu-img raw", 1.7),
    Goal("img-tool qcow2", "qemu-img qcow2", 1.7),
)


@dataclass
class Verdict:
    goal: Goal
    value: float
    thrift: float
    word: str  # met, missed, device

    def line(self):
        text = f"{self.goal.name} ≥ {self.goal.at_least} × {self.goal.to}: {self.value:.2f}"
        if self.word == "device":
            text += f", {self.thrift:.2f} times as many for the same processor time"
        return f"{text} ({self.word})"


def judge(series, on_tmpfs):
    """Verdicts on one measurement of a job of JOBS with cache mode CACHE. On tmpfs the speed alone counts. On a disk
    it counts up to what the disk can do: where fio, too, is less than the wanted factor above the slower program,
    nobody can show it; then we must be as fast as the fastest, and the factor is asked of the processor time
    (`device`)."""
    verdicts = []
    for goal in GOALS:
        value, saved = ratio(series, goal.name, goal.to), thrift(series, goal.name, goal.to)
        word = "met" if value >= goal.at_least else "missed"
        if word == "missed" and not on_tmpfs:
            fastest = max(ratio(series, "fio", goal.to), ratio(series, "fio best", goal.to))
            as_fast_as_any = value >= (1 - DEVICE_NOISE) * min(fastest, goal.at_least)
            if goal.at_least > 1 and fastest < goal.at_least and as_fast_as_any and saved >= goal.at_least:
                word = "device"
            elif goal.at_least <= 1 and value >= (1 - DEVICE_NOISE) * goal.at_least:
                word = "met"
        verdicts.append(Verdict(goal, value, saved, word))
    return verdicts
