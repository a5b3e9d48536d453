# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo itself, once vmferry is built: a guest on host-a moves to host-b while it works. Started by scripts/demo."""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

from two_hosts import TwoHosts

MACHINE = 'demo'
BACKENDS = {'kvm': 'KVM', 'rv32': 'the rv32 interpreter'}
WARM_UP_S = 1.5     # the guest dirties its working set at the source first,
AFTER_S = 1.5       # and checks its memory at the target for a while
START_TIMEOUT_S = 30
MOVE_TIMEOUT_S = 120


class Wrong(Exception):
    """Something is off; its text says what."""


class Voice:
    """What is said: sentences for people on stdout, or JSON lines."""

    def __init__(self, as_json):
        self.as_json = as_json

    def say(self, text):
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def record(self, record):
        if self.as_json:
            print(json.dumps(record), flush=True)


def mebibytes(count):
    return f'{count / 2**20:.0f} MiB'


def milliseconds(ns):
    return f'{ns / 1e6:.1f} ms'


@contextlib.contextmanager
def at_most(seconds, process):
    """Ends a process that takes longer than this."""
    timer = threading.Timer(seconds, process.terminate)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def start(host, vmferry, options, *more):
    """Starts the machine on a host and returns its process and the line that says where it listens."""
    command = [vmferry, 'run', MACHINE, '--backend', options.backend, '--memory', options.memory, '--guest', options.guest,
               '--host-name', host.name, *more]
    process = host.popen(*command, stdout=subprocess.PIPE)
    with at_most(START_TIMEOUT_S, process):
        line = process.stdout.readline()
    if not line:
        raise Wrong(f'{host.name}: vmferry run ended with status {process.wait()}')
    threading.Thread(target=process.stdout.read, daemon=True).start()
    return process, json.loads(line)


def status(host, vmferry):
    done = host.run(vmferry, 'status', MACHINE, '--json', capture_output=True)
    if done.returncode:
        raise Wrong(f'{host.name}: vmferry status: {done.stderr.strip()}')
    return json.loads(done.stdout.splitlines()[-1])


def progress_line(record):
    """What is not known before the first round has ended is left out."""
    parts = [f'round {record["round"]}', f'{mebibytes(record["ram_remaining_bytes"])} to go',
             f'{mebibytes(record["rate_bytes_per_second"])}/s']
    if record['dirty_bytes_per_second']:
        parts.append(f'guest dirties {mebibytes(record["dirty_bytes_per_second"])}/s')
    if record['expected_downtime_ns']:
        parts.append(f'expected downtime {milliseconds(record["expected_downtime_ns"])}')
    return '  ' + ', '.join(parts)


def migrate(host, vmferry, uri, options, voice):
    """Moves the machine away from a host; progress is told as it comes. Returns the tool's summary and exit status."""
    command = ['migrate', MACHINE, uri, '--insecure', '--max-bandwidth', options.max_bandwidth]
    voice.say(f'{host.name}$ vmferry {" ".join(command)}')
    process = host.popen(vmferry, *command, '--json', stdout=subprocess.PIPE)
    summary = {}
    with at_most(MOVE_TIMEOUT_S, process):
        for line in process.stdout:
            record = json.loads(line)
            if record.get('type') == 'summary':
                summary = record
            elif voice.as_json:
                voice.record(record)
            elif record.get('type') == 'status' and record.get('ram_total_bytes'):
                voice.say(progress_line(record))
            elif record.get('type') in ('event', 'error'):
                voice.say('  ' + (record.get('text') or record.get('message') or ''))
        process.wait()
    return summary, process.returncode


def run(options, voice):
    vmferry = os.path.join(options.build, 'tools', 'vmferry')
    hosts = TwoHosts(loopback=options.loopback)
    with hosts as (a, b):
        if hosts.why_loopback:
            voice.say(f'both hosts share the loopback: no network namespaces ({hosts.why_loopback})')
        else:
            voice.say(f'two hosts: {a.name} {a.address}, {b.name} {b.address}, network namespaces joined by veth')
        _, listening = start(b, vmferry, options, '--incoming', f'tcp:{b.address}:0', '--insecure')
        options.backend = status(b, vmferry)['backend']    # a guest moves only to the backend that it comes from
        start(a, vmferry, options)
        voice.say(f'{a.name}: guest with {options.memory} runs on {BACKENDS[options.backend]}: {options.guest}')
        time.sleep(WARM_UP_S)
        before = status(a, vmferry)
        if before['guest_errors']:
            raise Wrong(f'{a.name}: the guest found {before["guest_errors"]} errors before it moved')
        summary, code = migrate(a, vmferry, listening['uri'], options, voice)
        if not summary:
            raise Wrong(f'vmferry migrate: exit status {code}, no summary')
        arrived = status(b, vmferry)
        time.sleep(AFTER_S)
        return conclude(a, b, summary, code, before, arrived, status(b, vmferry))


def conclude(a, b, summary, code, before, arrived, after):
    """The summary of all of it, with what is wrong, if anything."""
    beats = after['beats'] - arrived['beats']
    wrong = []
    if code:
        wrong.append(f'vmferry migrate: exit status {code}')
    if summary['outcome'] != 'completed':
        wrong.append(f'outcome {summary["outcome"]}')
    if after['guest_errors']:
        wrong.append(f'the guest found {after["guest_errors"]} errors in its memory')
    if beats <= 0 or arrived['beats'] < before['beats']:
        wrong.append(f'the guest does not go on at {b.name}')
    if summary['verified'] != 'full':
        wrong.append(f'verified: {summary["verified"]}')
    if not summary.get('guest_gap_ns'):
        wrong.append('the gap between the beats around the stop is not known')
    gaps = [summary.get('guest_gap_ns'), summary.get('guest_gap_max_ns'), after.get('guest_gap_max_ns')]
    summary.update(type='summary', source=a.name, target=b.name, guest_errors=after['guest_errors'],
                   guest_gap_max_ns=max(gap or 0 for gap in gaps), beats_at_target=beats, wrong=wrong)
    return summary


def last_line(summary):
    if summary['wrong']:
        return 'vmferry: demo: ' + '; '.join(summary['wrong'])
    return (f'{MACHINE} runs on {summary["target"]}, on {BACKENDS[summary["backend"]]}: '
            f'moved in {summary["total_ns"] / 1e9:.2f} s over {summary["rounds"]} rounds '
            f'with {mebibytes(summary["bytes_sent"])} sent; stopped for {milliseconds(summary["downtime_ns"])}, '
            f'{milliseconds(summary["guest_gap_ns"])} from beat to beat, longest gap of the run '
            f'{milliseconds(summary["guest_gap_max_ns"])}; {summary["guest_errors"]} errors found by the guest; '
            f'verified: {summary["verified"]}')


def interrupted(number, _):
    raise SystemExit(128 + number)


def main():
    parser = argparse.ArgumentParser(prog='scripts/demo')
    parser.add_argument('build')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--loopback', action='store_true')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--memory', default='256M')
    parser.add_argument('--guest', default='dirty=100M,set=64M')
    parser.add_argument('--max-bandwidth', default='200M')
    options = parser.parse_args()
    voice = Voice(options.json)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    try:
        summary = run(options, voice)
    except (Wrong, OSError, ValueError, KeyError) as error:
        voice.record({'type': 'summary', 'outcome': 'failed', 'wrong': [str(error)]})
        voice.say(f'vmferry: demo: {error}')
        return 1
    voice.record(summary)
    if not voice.as_json or summary['wrong']:
        voice.say(last_line(summary))
    return 1 if summary['wrong'] else 0


if __name__ == '__main__':
    sys.exit(main())
