# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report: Markdown for people, JSON for programs, from the same list of measurements."""

import math
import os
import platform
import subprocess
from dataclasses import dataclass

import goals
from measure import QUIET, ratio, thrift

# (heading, faster, slower): what is worth comparing. Like with like: fio reads the raw file only.
RATIOS = (
    ("raw/fio", "img-tool raw", "fio"),
    ("raw/fio best", "img-tool raw", "fio best"),
    ("qcow2/raw", "img-tool qcow2", "img-tool raw"),
    ("raw/qemu-img", "img-tool raw", "qemu-img raw"),
    ("qcow2/qemu-img", "img-tool qcow2", "qemu-img qcow2"),
)

LEGEND = """\
Speeds are thousands of requests a second, medians of the rounds. A ratio is the median of the ratios within each
round, more than 1 where the first is faster; in brackets the same for requests per second of processor time, which
says more where the device or the neighbours set the pace (?: fio's runs are too short to tell). *fio* is its io_uring
engine on the raw file, plain and with its best options; *qemu-img* is `qemu-img bench` with the fastest `-i` for this
job. qemu-img has no random offsets: in random jobs it goes through the image in long odd steps, where fio and
img-tool draw each offset."""


@dataclass
class Result:
    place: str
    cache: str
    job: object
    series: dict
    neighbours: float  # share of the processors that other programs used meanwhile

    @property
    def name(self):
        return f"{self.place}/{self.cache}/{self.job.name}"


def version_of(command):
    try:
        lines = (
            subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            .stdout.decode()
            .splitlines()
        )
        return lines[0] if lines else "unknown"
    except OSError:
        return "not found"


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def about(args, places):
    return {
        "kernel": platform.release(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {
            name: version_of([program, "--version"])
            for name, program in (("img-tool", args.img_tool), ("qemu-img", "qemu-img"), ("fio", "fio"))
        },
        "image_size": args.size,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "places": places,
    }


def verdicts(result):
    if result.cache != goals.CACHE or result.job.name not in goals.JOBS:
        return []
    return goals.judge(result.series, result.place == "tmpfs")


def number(value):
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def as_json(host, results):
    return {
        "about": host,
        "results": [
            {
                "place": r.place,
                "cache": r.cache,
                "job": r.job.name,
                "neighbours": r.neighbours,
                "contenders": {
                    name: {
                        "how": s.how,
                        "iops": s.iops,
                        "cpu_us": number(s.cpu_us),
                        "iops_samples": [x.iops for x in s.samples],
                        "cpu_us_samples": [number(x.cpu_us) for x in s.samples],
                    }
                    for name, s in r.series.items()
                },
                "ratios": {
                    heading: {"iops": ratio(r.series, a, b), "cpu": number(thrift(r.series, a, b))}
                    for heading, a, b in RATIOS
                },
                "goals": [
                    {
                        "name": v.goal.name,
                        "to": v.goal.to,
                        "at_least": v.goal.at_least,
                        "value": v.value,
                        "verdict": v.word,
                    }
                    for v in verdicts(r)
                ],
            }
            for r in results
        ],
    }


def table(rows):
    """A Markdown table that is readable as text: columns padded, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
        if number == 0:
            lines.append(
                "| " + " | ".join(["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]) + " |"
            )
    return "\n".join(lines)


def speed(series):
    return f"{series.iops / 1000:.1f}"


def compared(series, a, b):
    saved = thrift(series, a, b)
    return f"{ratio(series, a, b):.2f} ({'?' if math.isnan(saved) else f'{saved:.2f}'})"


def section(place, cache, results):
    names = list(results[0].series)
    speeds = [["job"] + names] + [[r.job.name] + [speed(r.series[n]) for n in names] for r in results]
    ratios = [["job"] + [heading for heading, _, _ in RATIOS]]
    for r in results:
        ratios.append([r.job.name] + [compared(r.series, a, b) for _, a, b in RATIOS])
    return f"## {place}, cache={cache}\n\n{table(speeds)}\n\n{table(ratios)}\n"


def as_markdown(host, results):
    lines = [
        "# Speed of img-tool bench",
        "",
        f"{host['processors']} × {host['processor']}, Linux {host['kernel']}, load {host['load']:.1f} at the start. "
        f"Images of {host['image_size'] // 2**20} MiB, {host['rounds']} rounds of {host['seconds']} s.",
        "",
    ]
    lines += [f"- {name}: {version}" for name, version in host["versions"].items()]
    lines += [f"- {place}: {what}" for place, what in host["places"].items()]
    lines += ["", LEGEND, ""]
    busy = max((r.neighbours for r in results), default=0)
    if busy > QUIET:
        lines += [
            f"**Other programs used up to {busy:.0%} of the processors meanwhile: these numbers say little.**",
            "",
        ]
    groups = {}
    for result in results:
        groups.setdefault((result.place, result.cache), []).append(result)
    for (place, cache), members in groups.items():
        lines.append(section(place, cache, members))
    judged = [(r, v) for r in results for v in verdicts(r)]
    if judged:
        lines += [
            "## Goals",
            "",
            "`device`: the device is what limits the speed, and the goal is met in processor time.",
            "",
        ]
        lines += [f"- {r.name}: {v.line()}" for r, v in judged]
    return "\n".join(lines).rstrip() + "\n"
