# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the benchmark's images are, and runs of programs on them."""
import os
import shutil
import tempfile

from processes import Noise
from sides import outcome


class Place:
    """A folder for the files, on one kind of storage."""

    def __init__(self, name, folder):
        self.name = name
        os.makedirs(folder, exist_ok=True)
        self.folder = tempfile.mkdtemp(prefix='bench-', dir=folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(machine, size, child, kind='result'):
    """One run of a program that says when it is ready, until its line of that type."""
    with child:
        child.line('ready')
        machine.warm(size)
        noise = Noise()
        child.go()
        result = child.line(kind)
        return outcome(result['total_ns'], result['cpu_ns'], noise, result=result)


def drop_caches():
    """What was written must not be answered from memory; only root may ask for that."""
    os.sync()
    try:
        with open('/proc/sys/vm/drop_caches', 'w', encoding='ascii') as control:
            control.write('1\n')
    except OSError:
        pass


def fill_cache(path):
    """All of its data is answered from memory from now on. Holes are passed over."""
    with open(path, 'rb', buffering=0) as file:
        length, at = os.fstat(file.fileno()).st_size, 0
        while at < length:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += len(os.pread(file.fileno(), min(end - at, 4 << 20), at))
