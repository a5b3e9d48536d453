# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark of images, once everything is built: interleaved pairs of saving and restoring, and medians. Started by scripts/bench."""
import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys

import instant
import lazy
import qemu
from places import Place, drop_caches, measure
from processes import BenchError, Child, Noise, end_tidily
from ram import GIB, parse_size, ratio, spread, told, told_spread
from sides import MIB, Machine


@dataclasses.dataclass(frozen=True)
class Case:
    """Saving or restoring, over so many channels."""
    name: str
    role: str      # of bench-guest, and what raw-image does instead
    limit: str
    channels: int


CASES = {case.name: case for case in (
    *(Case(f'save-stop-{n}ch', 'save', 'write', n) for n in (1, 2, 4)),
    *(Case(f'restore-eager-{n}ch', 'restore', 'read', n) for n in (1, 2, 4)),
)}


def moved(size):
    """What holds data: each chunk but each fourth."""
    chunks = size // (2 * MIB)
    return (chunks - chunks // 4) * 2 * MIB


def begin(case, path):
    """A save is into a new file: to replace one takes as long as the file system needs to free it, which is nobody's."""
    if case.role == 'save' and os.path.exists(path):
        os.unlink(path)
    drop_caches()


def run_ours(machine, case, size, place):
    path = place.path('ours')
    if case.role == 'restore' and not os.path.exists(path):
        run_ours(machine, CASES['save-stop-1ch'], size, place)
    begin(case, path)
    return measure(machine, size, Child(machine.guest, case.role, f'file:{path}', f'--size={size}', f'--channels={case.channels}',
                                        '--fill=chunks', '--audit=off', *machine.kind()))


def run_limit(machine, case, size, place):
    path = place.path('limit')
    if case.limit == 'read' and not os.path.exists(path):
        run_limit(machine, CASES['save-stop-1ch'], size, place)
    begin(case, path)
    return measure(machine, size, Child(machine.image_limit, case.limit, f'--file={path}', f'--size={size}',
                                        f'--threads={case.channels}', *machine.kind()))


def run_stream(machine, case, size, place):
    """A plain one-way stream into a file beside it."""
    path = place.path('stream')
    begin(case, path)
    return measure(machine, size, Child(machine.guest, 'source', f'file:{path}', f'--size={size}', '--fill=chunks', '--audit=off',
                                        *machine.kind()))


def run_qemu(options, machine, case, size, place):
    """QEMU's own fixed file: mapped-ram with multifd, direct where the file system has it. A stopped guest, from the command to its end."""
    if case.role == 'save':
        begin(case, place.path('qemu'))
    return qemu.run_mapped_ram(options.qemu_found, machine, case.role, size, place, case.channels)


# ---- the cases ------------------------------------------------------------------------------------------------------------------

def sides_of(options, machine, case, size, place):
    sides = {'ours': lambda: run_ours(machine, case, size, place), 'limit': lambda: run_limit(machine, case, size, place)}
    if case.role == 'save':
        sides['stream'] = lambda: run_stream(machine, case, size, place)
    if options.qemu_found:
        sides['qemu'] = lambda: run_qemu(options, machine, case, size, place)
    return sides


def run_case(options, machine, case, place):
    size, runs = options.size, {}
    sides = sides_of(options, machine, case, size, place)
    names = list(sides)
    for pair in range(options.pairs):
        turn = pair % len(names)
        for name in names[turn:] + names[:turn]:
            runs.setdefault(name, []).append(sides[name]())
        options.say(f'  {case.name} {place.name} {pair + 1}/{options.pairs}: ' + ', '.join(
            f'{name} {runs[name][-1]["total_s"] * 1e3:.0f} ms' for name in names))
    median = {name: statistics.median(run['total_s'] for run in side) for name, side in runs.items()}
    bytes_moved = moved(size)
    record = {'case': case.name, 'storage': place.name, 'ours_gbps': round(bytes_moved / median['ours'] / 1e9, 3)}
    for name in names[1:]:
        record[f'ratio_to_{name}'] = ratio(runs, name)
        record[f'{name}_gbps'] = round(bytes_moved / median[name] / 1e9, 3)
    record['cpu_s_per_gb'] = round(statistics.median(run['cpu_s'] for run in runs['ours']) / (bytes_moved / 1e9), 3)
    record['limit_cpu_s_per_gb'] = round(statistics.median(run['cpu_s'] for run in runs['limit']) / (bytes_moved / 1e9), 3)
    record['others_cpus'] = spread([run['others_cpus'] for side in runs.values() for run in side], 2)
    record.update(channels=case.channels, size_bytes=size, pairs=options.pairs, pages=machine.pages, memory=machine.memory)
    return record


def verify_speed(options, machine, place):
    """`vmferry verify` of the image that was saved last, against reading the file."""
    path = place.path('ours')
    if not os.path.exists(path):
        run_ours(machine, CASES['save-stop-1ch'], options.size, place)
    seconds = []
    for _ in range(options.pairs):
        drop_caches()
        noise = Noise()
        done = subprocess.run([machine.vmferry, 'verify', path], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f'verify: {done.stderr.strip()}')
        seconds.append(noise.elapsed())
    return {'case': 'verify', 'storage': place.name, 'ours_gbps': round(moved(options.size) / statistics.median(seconds) / 1e9, 3)}


KINDS = {**{name: lazy for name in lazy.CASES}, **{name: instant for name in instant.CASES}}    # those that have a module of their own


def run_named(options, machine, name, place):
    """Its records."""
    if name in KINDS:
        return KINDS[name].run(options, machine, name, place)
    return [verify_speed(options, machine, place) if name == 'verify' else run_case(options, machine, CASES[name], place)]


HEAD = f'{"case":<20}{"storage":<9}{"ours GB/s":>10}  {"to the limit":<16}{"to a stream":<16}{"to QEMU":<16}{"CPU s/GB":>9}'


def row(record):
    return (f'{record["case"]:<20}{record["storage"]:<9}{told(record.get("ours_gbps")):>10}  '
            f'{told_spread(record.get("ratio_to_limit")):<16}{told_spread(record.get("ratio_to_stream")):<16}'
            f'{told_spread(record.get("ratio_to_qemu")):<16}{told(record.get("cpu_s_per_gb")):>9}').rstrip()


def print_tables(records):
    """One a kind of case, as their columns differ."""
    for kind, rows in (((HEAD, row), lambda record: record['case'] not in KINDS),
                       ((lazy.HEAD, lazy.row), lambda record: record['case'] in lazy.CASES and 'ratio_90' not in record),
                       ((lazy.ORDER_HEAD, lazy.row), lambda record: 'ratio_90' in record),
                       ((instant.HEAD, instant.row), lambda record: record['case'] in instant.CASES)):
        lines = [kind[1](record) for record in records if rows(record)]
        if lines:
            print('\n'.join([kind[0], *lines]))
    print('ratios: min/median/max of pairs, above 1 we are faster')


NAMES = [*CASES, 'verify', *KINDS]


def parse(arguments):
    parser = argparse.ArgumentParser(prog='scripts/bench image')
    parser.add_argument('build')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--case', action='append', nargs='+', choices=NAMES, default=[])
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--size', type=parse_size, default=4 * GIB)
    parser.add_argument('--memory', choices=('anon', 'memfd'), default='anon')
    parser.add_argument('--pages', choices=('4k', 'huge'), default='4k')
    parser.add_argument('--patience', type=float, default=5)
    parser.add_argument('--disk', default='bench-work', metavar='FOLDER')
    parser.add_argument('--tmpfs', default='/dev/shm', metavar='FOLDER')
    parser.add_argument('--storage', choices=('disk', 'tmpfs', 'both'), default='both')
    parser.add_argument('--qemu', choices=('auto', 'installed', 'current', 'none'), default='auto')
    parser.add_argument('--qemu-root', default='qemu-current')
    return parser.parse_args(arguments)


def run_all(options, machine, names, places):
    records, failures = [], 0
    for place in places:
        for name in names:
            try:
                made = run_named(options, machine, name, place)
            except (BenchError, OSError, ValueError, subprocess.SubprocessError) as error:
                options.say(f'vmferry: bench: {name}: {error}')
                failures += 1
                continue
            records += made
            if options.json:
                print('\n'.join(map(json.dumps, made)), flush=True)
    return records, failures


def main():
    options = parse(sys.argv[1:])
    end_tidily()
    options.say = lambda text: print(text, file=sys.stderr, flush=True)
    machine = Machine(options.build, options.pages, options.memory, options.patience)
    names = [name for group in options.case for name in group] or NAMES
    options.qemu_found = qemu.find(options.qemu, options.qemu_root)
    places = [Place(name, getattr(options, name)) for name in ('disk', 'tmpfs') if options.storage in (name, 'both')]
    try:
        records, failures = run_all(options, machine, names, places)
    finally:
        for place in places:
            place.close()
        if options.qemu_found:
            options.qemu_found.close()
    if not options.json:
        print_tables(records)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
