#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs scripts/demo as people do, to its end and interrupted, and looks at what it says and leaves behind.

usage: demo.py BUILD-DIRECTORY
"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(sys.argv[1]).resolve()
PROMISED = {'type', 'outcome', 'downtime_ns', 'guest_gap_ns', 'rounds', 'bytes_sent', 'total_ns', 'guest_errors', 'backend', 'verified'}


def demo(directory, *args, **options):
    command = [ROOT / 'scripts' / 'demo', '--build', BUILD, '--memory', '64M', '--guest', 'dirty=50M,set=16M', *args]
    return subprocess.Popen(command, env=dict(os.environ, TMPDIR=directory), stdin=subprocess.DEVNULL, text=True, **options)


def left_behind(directory):
    """Files of a run and processes that still work for it."""
    left = os.listdir(directory)
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            if directory.encode() in (process / 'environ').read_bytes():
                left.append((process / 'cmdline').read_bytes().replace(b'\0', b' ').decode())
        except OSError:
            pass
    return left


def check(condition, text):
    if not condition:
        raise SystemExit(f'demo: {text}')


def check_nothing_left(directory):
    deadline = time.monotonic() + 5  # a killed process may take a moment to go
    while left_behind(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    check(not left_behind(directory), f'left behind: {left_behind(directory)}')


def check_backend(backend, stderr):
    """KVM, unless it was said why not; and where there is none, the interpreter."""
    print(f'backend: {backend}')
    check(backend == 'kvm' or 'backend rv32, not kvm: ' in stderr, 'it is not said why the guest does not run on KVM')
    check(backend == 'rv32' or os.access('/dev/kvm', os.R_OK | os.W_OK), 'KVM where there is none')


def to_its_end(*args):
    with tempfile.TemporaryDirectory() as directory:
        process = demo(directory, '--json', *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = process.communicate(timeout=200)
        lines = [json.loads(line) for line in stdout.splitlines()]
        summary = lines[-1]
        if '--backend' not in args:
            check_backend(summary['backend'], stderr)
        print(json.dumps(summary))
        check(process.returncode == 0, f'exit status {process.returncode}: {stderr}')
        check(summary['type'] == 'summary' and PROMISED <= summary.keys(), f'the summary lacks {PROMISED - summary.keys()}')
        check([line['type'] for line in lines].count('summary') == 1, 'more than one summary')
        check(any(line['type'] == 'status' for line in lines), 'no progress is told')
        check(summary['outcome'] == 'completed' and summary['guest_errors'] == 0, 'it did not go well')
        check(0 < summary['downtime_ns'] < summary['total_ns'], 'times that cannot be')
        check(summary['bytes_sent'] > 16 << 20 and summary['rounds'] >= 2, 'too little was sent')
        check_nothing_left(directory)


def in_words():
    with tempfile.TemporaryDirectory() as directory:
        process = demo(directory, stdout=subprocess.PIPE)
        last = process.communicate(timeout=200)[0].splitlines()[-1]
        print(last)
        check(process.returncode == 0, f'exit status {process.returncode}')
        check('runs on host-b' in last and 'longest gap' in last, 'the last line does not say who runs the guest and what it cost')


def interrupted():
    """Ctrl-C reaches the whole foreground group."""
    with tempfile.TemporaryDirectory() as directory:
        process = demo(directory, stdout=subprocess.PIPE, start_new_session=True)
        for line in process.stdout:
            if 'migrate' in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        check(process.returncode != 0, 'an interrupted demo counts as a success')
        check_nothing_left(directory)


def main():
    to_its_end()
    to_its_end('--loopback', '--backend', 'rv32')
    in_words()
    interrupted()


if __name__ == '__main__':
    main()
