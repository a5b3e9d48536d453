# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark of disks that are copied, once everything is built: interleaved runs of ours, of a plain direct copy of the same file at
the same depth, and of QEMU's blockdev-mirror over NBD; and how long a guest's writes take meanwhile. Started by scripts/bench."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import disk_latency
import qemu
from downtime import Host
from places import Place, drop_caches
from processes import BenchError, Child, Noise, cpu_s, end_tidily, wait_until_quiet
from ram import GIB, parse_size, ratio, spread, told, told_spread
from sides import MIB, outcome

DEPTH = 16  # requests of 1 MiB: as many as the engine has under way, reads and writes together
SPARSE_SIZE = 64 * GIB
SPARSE_DATA = GIB

# What each case has in its disk: size, and how much of it, in pieces that are spread over it.
CASES = {
    'bulk-full': lambda size: (size, size),
    'bulk-sparse': lambda size: (SPARSE_SIZE, SPARSE_DATA),
}


class Programs:
    """Where the programs are."""

    def __init__(self, options):
        self.vmferry = os.path.join(options.build, 'tools', 'vmferry')
        self.copy = os.path.join(options.build, 'bench', 'raw-copy')
        self.patience_s = options.patience


def fill(path, size, data):
    """A file with random data in so many octets, in pieces of 16 MiB at most that are spread over all of it."""
    piece = min(16 * MIB, data)
    count = data // piece
    with open(path, 'wb') as file:
        file.truncate(size)
        for number in range(count):
            file.seek(size // count * number // MIB * MIB)
            file.write(os.urandom(piece))
        os.fsync(file.fileno())


def get_rid(*paths):
    for path in paths:
        if os.path.exists(path):
            os.unlink(path)


# ---- one run of each side -------------------------------------------------------------------------------------------------------

def run_ours(programs, place, disk, _size):
    """A paused guest of 16 MiB and its disk, from one process to another."""
    copy = place.path('ours')
    get_rid(copy)
    with tempfile.TemporaryDirectory(prefix='bench-') as directory:
        a, b = (Host(programs, directory, name) for name in 'ab')
        common, small = ('--backend', 'rv32', '--paused'), {'memory': '16M', 'work': 'dirty=0'}
        with b.start(*common, '--disk', f'disk={copy}', '--incoming', f'unix:{directory}/socket', **small) as target, \
                a.start(*common, '--disk', f'disk={disk}', **small) as source:
            uri = target.line('listening')['uri']
            source.line('listening')
            drop_caches()
            wait_until_quiet(programs.patience_s)
            pids = (source.process.pid, target.process.pid)
            before, noise = sum(map(cpu_s, pids)), Noise()
            summary = a.json('summary', 'migrate', 'bench', uri, '--disks', 'all', '--audit', 'off', '--keep')
            used = sum(map(cpu_s, pids)) - before
            for host in (a, b):
                subprocess.run([host.vmferry, 'quit', 'bench'], env=host.env, capture_output=True, check=False)
        if summary['outcome'] != 'completed':
            raise BenchError(f'ours: {summary}')
        return outcome(summary['total_ns'], used * 1e9, noise)


def run_copy(programs, place, disk, _size):
    copy = place.path('copy')
    get_rid(copy)
    with Child(programs.copy, f'--depth={DEPTH}', disk, copy) as child:
        child.line('ready')
        drop_caches()
        wait_until_quiet(programs.patience_s)
        noise = Noise()
        child.go()
        result = child.line('result')
        return outcome(result['total_ns'], result['cpu_ns'], noise)


def run_mirror(options, programs, place, disk, size):
    copy = place.path('qemu')
    get_rid(copy)
    with open(copy, 'wb') as file:
        file.truncate(size)
    with qemu.reachable(options.qemu_found, place.folder) as folder:
        drop_caches()
        wait_until_quiet(programs.patience_s)
        return qemu.run_mirror(options.qemu_found, f'{folder}/{os.path.basename(disk)}', f'{folder}/qemu',
                               direct=place.name == 'disk')


# ---- the cases ------------------------------------------------------------------------------------------------------------------

def check_copies(place, disk, names):
    """Every side's last copy is the disk."""
    for name in names:
        if subprocess.run(['cmp', '-s', disk, place.path(name)], check=False).returncode:
            raise BenchError(f'{name}: its copy differs from the disk')


def run_case(options, programs, name, place):
    size, data = CASES[name](options.size)
    disk = place.path('disk')
    fill(disk, size, data)
    sides = {'ours': run_ours, 'copy': run_copy}
    if options.qemu_found:
        sides['qemu'] = lambda *args: run_mirror(options, *args)
    order, runs = list(sides), {}
    for pair in range(options.pairs):
        turn = pair % len(order)
        for side in order[turn:] + order[:turn]:
            runs.setdefault(side, []).append(sides[side](programs, place, disk, size))
        options.say(f'  {name} {place.name} {pair + 1}/{options.pairs}: ' + ', '.join(
            f'{side} {runs[side][-1]["total_s"] * 1e3:.0f} ms (others {runs[side][-1]["others_cpus"]:.1f} CPUs)' for side in order))
    if size == data:
        check_copies(place, disk, order)
    median_s = statistics.median(run['total_s'] for run in runs['ours'])
    record = {'case': name, 'storage': place.name, 'ours_gbps': round(data / median_s / 1e9, 3)}
    for side in order[1:]:
        record[f'ratio_to_{side}'] = ratio(runs, side)
    for side in order:
        record[f'{side}_cpu_s_per_gb'] = round(statistics.median(run['cpu_s'] for run in runs[side]) / (data / 1e9), 3)
    record['others_cpus'] = spread([run['others_cpus'] for side in runs.values() for run in side], 2)
    record.update(size_bytes=size, data_bytes=data, pairs=options.pairs)
    return record


HEAD = f'{"case":<14}{"storage":<9}{"ours GB/s":>10}  {"to the copy":<16}{"to QEMU":<16}{"CPU s/GB":>9}{"copy":>7}{"QEMU":>7}'


def row(record):
    return (f'{record["case"]:<14}{record["storage"]:<9}{told(record["ours_gbps"]):>10}  {told_spread(record["ratio_to_copy"]):<16}'
            f'{told_spread(record.get("ratio_to_qemu")):<16}{told(record["ours_cpu_s_per_gb"]):>9}{told(record["copy_cpu_s_per_gb"]):>7}'
            f'{told(record.get("qemu_cpu_s_per_gb")):>7}')


def parse(arguments):
    parser = argparse.ArgumentParser(prog='scripts/bench block')
    parser.add_argument('build')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--case', action='append', nargs='+', choices=[*CASES, *disk_latency.CASES], default=[])
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--size', type=parse_size, default=4 * GIB)
    parser.add_argument('--rate', type=int, default=500)
    parser.add_argument('--depth', type=int, default=8)
    parser.add_argument('--bandwidth', metavar='SIZE')
    parser.add_argument('--patience', type=float, default=5)
    parser.add_argument('--disk', default='bench-work', metavar='FOLDER')
    parser.add_argument('--tmpfs', default='/dev/shm', metavar='FOLDER')
    parser.add_argument('--storage', choices=('disk', 'tmpfs', 'both'), default='both')
    parser.add_argument('--qemu', choices=('auto', 'installed', 'current', 'none'), default='auto')
    parser.add_argument('--qemu-root', default='qemu-current')
    return parser.parse_args(arguments)


def print_tables(records):
    latencies = [record for record in records if record['case'] in disk_latency.CASES]
    bulk = [record for record in records if record not in latencies]
    if bulk:
        print('\n'.join([HEAD, *map(row, bulk)]))
        print('ratios: min/median/max of runs, above 1 we are faster')
    if latencies:
        print('\n'.join([disk_latency.HEAD, *map(disk_latency.row, latencies)]))
        print("ratios: min/median/max of pairs, what the guest's writes took beside what they took there; CPUs: of both ends and the guest")


def main():
    options = parse(sys.argv[1:])
    end_tidily()
    options.say = lambda text: print(text, file=sys.stderr, flush=True)
    programs, records, failures = Programs(options), [], 0
    options.qemu_found = qemu.find(options.qemu, options.qemu_root)
    try:
        for kind in ('disk', 'tmpfs'):
            if options.storage not in (kind, 'both'):
                continue
            for name in [name for group in options.case for name in group] or [*CASES, *disk_latency.CASES]:
                place = Place(kind, getattr(options, kind))
                try:
                    records.append(disk_latency.run_case(options, programs, name, place, fill) if name in disk_latency.CASES
                                   else run_case(options, programs, name, place))
                    if options.json:
                        print(json.dumps(records[-1]), flush=True)
                except (BenchError, OSError, ValueError, subprocess.SubprocessError) as error:
                    options.say(f'vmferry: bench: {name}: {error}')
                    failures += 1
                finally:
                    place.close()
    finally:
        if options.qemu_found:
            options.qemu_found.close()
    if not options.json:
        print_tables(records)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
