# SPDX-License-Identifier: LGPL-2.1-or-later
"""The folders that a run of the tests works in, and how nothing is left of them.

A folder is called vmm-tests.PID.RANDOM and its run holds an flock on it. Whichever way the run ends, the folders go:
- by itself, or by a signal that it can catch: it removes them;
- by SIGKILL: a guard, a small process that only waits for the run's end, kills what the run had started, and removes them;
- with the whole machine: a later run finds folders that nobody holds.
Folders that a run leaves on purpose, those of failed tests, have a file `.kept` in them.

As a program, `scratch.py FOLDER...`, this file is the guard. It reads lines from the run: +GROUP and -GROUP for process
groups that began and ended, and `done`, after which there is nothing to do."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PREFIX = "vmm-tests."
MEMORY = "/dev/shm"
KEPT = ".kept"


def disk_base():
    return os.environ.get("TMPDIR") or "/var/tmp"


def memory_base():
    """Where files are in memory; the disk on a machine without."""
    return MEMORY if os.path.isdir(MEMORY) and os.access(MEMORY, os.W_OK) else disk_base()


def make(base):
    """A new folder, and the descriptor that holds it."""
    folder = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}.", dir=base)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return folder, fd


def sweep(base):
    """Removes the folders of dead runs."""
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        match = re.fullmatch(re.escape(PREFIX) + r"(\d+)\.\w+", name)
        if match and not os.path.exists(os.path.join(folder, KEPT)) and is_orphan(folder, int(match[1])):
            clear(folder)


def is_orphan(folder, pid):
    # Its lock says more than its number, which another process may have by now, or which may be of another namespace;
    # but a run that is about to make the folder has no lock yet.
    try:
        if os.stat(folder).st_uid != os.getuid() or os.path.exists(f"/proc/{pid}") and time.time() - os.stat(folder).st_mtime < 60:
            return False
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def below(path, folder):
    return path == folder or path.startswith(folder + "/")


def release(folder):
    """What a test that was killed may have left: file systems mounted below the folder, loop devices on files there."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split()[1].encode().decode("unicode_escape", "replace") for line in file]
    for mount in reversed(mounts):
        if below(mount, folder):
            subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False)
    for name in os.listdir("/sys/block") if os.path.isdir("/sys/block") else []:
        try:
            with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                backing = file.read().rstrip("\n").removesuffix(" (deleted)")
        except OSError:
            continue
        if below(backing, folder):
            subprocess.run(["losetup", "-d", f"/dev/{name}"], stderr=subprocess.DEVNULL, check=False)


def clear(folder):
    """Removes a folder with all that is in it."""
    release(folder)
    shutil.rmtree(folder, ignore_errors=True)


class Guard:
    def __init__(self, folders):
        self.process = subprocess.Popen([sys.executable, "-B", os.path.realpath(__file__), *folders],
                                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        start_new_session=True)

    def tell(self, line):
        try:
            os.write(self.process.stdin.fileno(), line.encode() + b"\n")
        except OSError:
            pass  # without a guard the run goes on

    def dismiss(self):
        self.tell("done")
        self.process.stdin.close()
        self.process.wait()


def of_the_run(folders):
    """Processes that a test started in a session of their own: their environment names a folder of the run."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if int(pid) != os.getpid() and any(f"TEST_TMP={folder}/".encode() in environment for folder in folders):
            yield int(pid)


def guard(folders):
    groups, done = set(), False
    for line in sys.stdin:
        word = line.strip()
        if word == "done":
            done = True
        elif word:
            (groups.add if word[0] == "+" else groups.discard)(int(word[1:]))
    if done:
        return
    for kill, numbers in ((os.killpg, groups), (os.kill, of_the_run(folders))):
        for number in numbers:
            try:
                kill(number, signal.SIGKILL)
            except OSError:
                pass
    for _ in range(10):  # others that have just been told of their end may still write
        time.sleep(0.2)
        for folder in folders:
            clear(folder)
        if not any(map(os.path.exists, folders)):
            break


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard(sys.argv[1:])
