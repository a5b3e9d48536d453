# SPDX-License-Identifier: LGPL-2.1-or-later
"""The case downtime-500: the bundled guest writes 500 MB a second over 256 MiB and is moved with the tool's default settings."""
import json
import os
import subprocess
import tempfile
import time

from processes import BenchError, Child, wait_until_quiet

WORK = 'dirty=500MB,set=256M'
MEMORY = '512M'
WARM_UP_S = 2.0


class Host:
    """Runtime and state directories of one host."""

    def __init__(self, machine, directory, name):
        self.vmferry = machine.vmferry
        self.env = dict(os.environ)
        for kind in ('runtime', 'state'):
            path = os.path.join(directory, name, kind)
            os.makedirs(path, mode=0o700)
            self.env[f'VMFERRY_{kind.upper()}_DIR'] = path

    def start(self, *more, memory=MEMORY, work=WORK):
        return Child(self.vmferry, 'run', 'bench', '--memory', memory, '--guest', work, *more, env=self.env)

    def json(self, kind, *command):
        done = subprocess.run([self.vmferry, *command, '--json'], env=self.env, capture_output=True, text=True, check=False)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        found = [record for record in records if record.get('type') == kind]
        if not found:
            raise BenchError(f'vmferry {command[0]}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}')
        return found[-1]


def pages_written(host):
    return host.json('status', 'status', 'bench')['pages_written'], time.monotonic()


def run_downtime(machine):
    """One live migration. Returns the tool's summary, with what the guest reached before."""
    with tempfile.TemporaryDirectory(prefix='bench-') as directory:
        a, b = Host(machine, directory, 'a'), Host(machine, directory, 'b')
        wait_until_quiet(machine.patience_s)
        with b.start('--incoming', 'tcp:127.0.0.1:0') as target, a.start() as source:
            uri = target.line('listening')['uri']
            source.line('listening')
            time.sleep(WARM_UP_S / 2)
            first, first_at = pages_written(a)
            time.sleep(WARM_UP_S / 2)
            second, second_at = pages_written(a)
            summary = a.json('summary', 'migrate', 'bench', uri)
            errors = b.json('status', 'status', 'bench')['guest_errors']
            subprocess.run([b.vmferry, 'quit', 'bench'], env=b.env, capture_output=True, check=False)
    if summary['outcome'] != 'completed' or errors:
        raise BenchError(f'downtime-500: outcome {summary["outcome"]}, {errors} errors found by the guest')
    summary['reached_bytes_per_second'] = (second - first) * 4096 / (second_at - first_at)
    return summary
