# SPDX-License-Identifier: LGPL-2.1-or-later
"""The images that are measured: a raw and a qcow2 one with the same random data, every block of both allocated, so
that no request meets a hole, and none but the first few needs metadata that is not in memory."""

import os
import random
import subprocess

MIB = 1024 * 1024


class Images:
    """Made in `folder`, which must exist; close() removes them. `size` is a power of two."""

    def __init__(self, folder, size, img_tool):
        if size < 16 * MIB or size & (size - 1):
            raise ValueError(f"the size of the images must be a power of two of at least 16 MiB, not {size}")
        self.size, self.folder = size, folder
        self.paths = {f: os.path.join(folder, f"bench-{os.getpid()}.{f}") for f in ("raw", "qcow2")}
        try:
            self._make(img_tool)
        except BaseException:
            self.close()
            raise

    def _make(self, img_tool):
        with open(self.paths["raw"], "wb") as file:
            for _ in range(self.size // MIB):
                file.write(random.randbytes(MIB))
            file.flush()
            os.fsync(file.fileno())
        for command in (
            ["convert", "-f", "raw", "-O", "qcow2", self.paths["raw"], self.paths["qcow2"]],
            ["compare", "-q", "-f", "raw", "-F", "qcow2", self.paths["raw"], self.paths["qcow2"]],
        ):
            done = subprocess.run(
                [img_tool, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
            if done.returncode:
                raise RuntimeError(f"{img_tool} {' '.join(command)}: status {done.returncode}\n{done.stdout.decode()}")
        self.settle()

    def settle(self):
        """Nothing that earlier writes left in the page cache is still on its way to the device."""
        for path in self.paths.values():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self):
        for path in self.paths.values():
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def takes_o_direct(folder):
    path = os.path.join(folder, f"o-direct-{os.getpid()}")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600))
        return True
    except OSError:
        return False
    finally:
        if os.path.exists(path):
            os.unlink(path)
