# SPDX-License-Identifier: LGPL-2.1-or-later
"""What vmm promises about its speed, as ratios between programs in one run. One list for the report and for tests/perf/speed."""

from dataclasses import dataclass

from measure import ratio

JOBS = ("randread-4k-qd64", "randwrite-4k-qd64")
CACHE = "none"


@dataclass(frozen=True)
class Goal:
    name: str
    to: str
    at_least: float
    # Where the device is what limits both, no program can be faster than another: the goal is then met where the first is
    # as fast as the fastest of all. It is asked of tmpfs, where the processor is the limit.
    bound_by_device: bool = False


GOALS = (
    Goal("img-tool raw", "fio", 1.0),
    Goal("img-tool raw", "fio best", 0.85),
    Goal("img-tool qcow2", "img-tool raw", 0.92),
    Goal("img-tool raw", "qemu-img raw", 1.7, bound_by_device=True),
    Goal("img-tool qcow2", "qemu-img qcow2", 1.7, bound_by_device=True),
)


@dataclass
class Verdict:
    goal: Goal
    value: float
    word: str  # met, missed, device

    def line(self):
        return f"{self.goal.name} ≥ {self.goal.at_least} × {self.goal.to}: {self.value:.2f} ({self.word})"


def judge(series, on_tmpfs):
    """Verdicts on one measurement of a job of JOBS with cache mode CACHE. `device`: the disk gives fio no more than 1.7 times what
    it gives qemu-img, and us no less than fio within the noise of a device."""
    verdicts = []
    for goal in GOALS:
        value = ratio(series, goal.name, goal.to)
        word = "met" if value >= goal.at_least else "missed"
        if word == "missed" and goal.bound_by_device and not on_tmpfs:
            limit = max(ratio(series, "fio", goal.to), ratio(series, "fio best", goal.to))
            if limit < goal.at_least and value >= 0.95 * limit:
                word = "device"
        verdicts.append(Verdict(goal, value, word))
    return verdicts
