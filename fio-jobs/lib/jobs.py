# SPDX-License-Identifier: LGPL-2.1-or-later
"""The access patterns of jobs.fio, read from the file that fio reads too, so that there is one description of each."""

import configparser
import os
from dataclasses import dataclass

FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
JOB_FILE = os.path.join(FOLDER, "jobs.fio")


@dataclass(frozen=True)
class Job:
    name: str
    random: bool
    write: bool
    block: int  # bytes a request
    depth: int  # requests in flight

    def step(self, size):
        """Bytes from one request to the next, for programs that only know steps: a block for sequential jobs. For
        random ones an odd number of blocks near the golden section of `size`: as the image has a power of two of
        blocks, each is visited once a round, far from the one before."""
        if not self.random:
            return self.block
        blocks = int(size / self.block * 0.6180339887)
        return (blocks | 1) * self.block


def size_of(text):
    suffixes = {"k": 1024, "m": 1024**2, "g": 1024**3}
    return int(text[:-1]) * suffixes[text[-1].lower()] if text[-1].lower() in suffixes else int(text)


def read_jobs(path=JOB_FILE):
    parser = configparser.ConfigParser(allow_no_value=True, interpolation=None, comment_prefixes=(";", "#"))
    with open(path, encoding="utf-8") as file:
        parser.read_file(file)
    jobs = []
    for name in parser.sections():
        if name == "global":
            continue
        section = parser[name]
        jobs.append(
            Job(
                name,
                section["rw"].startswith("rand"),
                section["rw"].endswith("write"),
                size_of(section["bs"]),
                int(section["iodepth"]),
            )
        )
    return jobs
