# SPDX-License-Identifier: LGPL-2.1-or-later
"""Child processes of the benchmark that speak JSON lines, and what the kernel knows of them."""
import ctypes
import json
import os
import select
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1
PR_SET_THP_DISABLE = 41
LIBC = ctypes.CDLL(None, use_errno=True)
TICKS = os.sysconf('SC_CLK_TCK')
PATIENCE_S = 300


class BenchError(Exception):
    """A run that gave no figure; its text says why."""


def in_child(small_pages=False):
    """For preexec_fn: the kernel ends the child when we end; no transparent huge pages where a program has no switch of its own."""
    def prepare():
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if small_pages:
            LIBC.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    return prepare


def interrupted(number, _):
    raise SystemExit(128 + number)


def end_tidily():
    """A signal ends the benchmark as an error does: with its children, and without its files."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)


class Child:
    """A program that prints JSON lines and starts its work when it gets a line."""

    def __init__(self, *command, env=None):
        self.command = [str(word) for word in command]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
                                        preexec_fn=in_child())
        self.buffer = b''

    def line(self, kind, timeout=PATIENCE_S):
        """The next line of that type."""
        deadline = time.monotonic() + timeout
        while True:
            while b'\n' not in self.buffer:
                if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                    raise BenchError(f'{self.command[0]}: silent for {timeout} s')
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise BenchError(f'{" ".join(self.command)}: ended with status {self.process.wait()}')
                self.buffer += data
            text, self.buffer = self.buffer.split(b'\n', 1)
            record = json.loads(text)
            if record.get('type') == kind:
                return record

    def go(self):
        self.process.stdin.write(b'\n')
        self.process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            try:
                self.process.wait(10 if self.buffer or not _[0] else 0.1)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def cpu_s(pid):
    """User and system time of a process so far."""
    with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as stat:
        fields = stat.read().rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_s():
    """CPU time that all processes of this machine have had."""
    with open('/proc/stat', encoding='ascii') as stat:
        values = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(values) - values[3] - values[4]) / TICKS


def wait_until_quiet(most_s, threshold=0.25, interval=0.3):
    """Waits, but not for ever, until others use less than a quarter of a CPU."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        before = busy_s()
        time.sleep(interval)
        if busy_s() - before < threshold * interval:
            return


class Noise:
    """How many CPUs others kept busy meanwhile."""

    def __init__(self):
        self.started, self.busy = time.monotonic(), busy_s()

    def elapsed(self):
        return max(time.monotonic() - self.started, 0.01)

    def others(self, own_cpu_s):
        elapsed = self.elapsed()
        return max(0.0, (busy_s() - self.busy - own_cpu_s) / elapsed)
