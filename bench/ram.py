# SPDX-License-Identifier: LGPL-2.1-or-later
"""The benchmark of RAM, once everything is built: runs the cases in interleaved pairs and prints medians. Started by scripts/bench."""
import argparse
import dataclasses
import json
import os
import re
import statistics
import sys

import qemu
from downtime import run_downtime
from processes import BenchError, end_tidily
from sides import MIB, Machine, run_limit, run_ours

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """What is moved, and beside what."""
    name: str
    what: str
    fill: str = 'random'
    channels: int = 2
    limit: str = 'send'   # of raw-limit; '': there is nothing to compare with
    qemu: bool = True
    sizes: tuple = ()     # beside the first, which --size sets; '': that one alone
    fixed_size: int = 0
    touch: int = 0        # bytes, of a scattered fill
    piece: int = 2 * MIB  # in pieces of that size
    rounds: int = 0       # live rounds of an idle guest
    audit: str = 'off'

    def travels(self, size):
        """How much memory the target will have in place."""
        return {'random': size, 'scattered': 2 * self.touch}.get(self.fill, 0)


CASES = {case.name: case for case in (
    Case('idle-1ch', 'random data, one page channel', channels=1),
    Case('idle-2ch', 'random data, two page channels'),
    Case('idle-4ch', 'random data, four page channels', channels=4),
    Case('zero-touched', 'every page written, all of them zero', fill='zero', limit='scan'),
    Case('zero-untouched', 'memory that nobody ever touched', fill='untouched', limit='', sizes=(16 * GIB, 128 * GIB)),
    Case('sparse-1t', '1 TiB of which 256 MiB are touched, scattered; idle guest', fill='scattered', limit='', qemu=False,
         fixed_size=1 << 40, touch=256 * MIB, rounds=30),
    Case('downtime-500', 'the bundled guest writes 500 MB/s over 256 MiB, default settings'),
)}


# ---- figures ------------------------------------------------------------------------------------------------------------------

def spread(values, digits=3):
    if not values:
        return None
    return {'min': round(min(values), digits), 'median': round(statistics.median(values), digits), 'max': round(max(values), digits)}


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def latency(values):
    ordered = sorted(int(value) for value in values)
    return {'p50': int(statistics.median(ordered)), 'p99': percentile(ordered, 0.99), 'max': ordered[-1]}


def engine_memory(machine, case, size):
    """A run that is watched and not timed: growth beside guest RAM of either side, and of guest RAM where none may grow."""
    run = run_ours(machine, case, size, watch_memory=True)
    sides = {name: run[name] for name in ('source', 'target')}
    peaks = {name: round(side['engine_peak_bytes'] / MIB, 2) for name, side in sides.items()}
    grown = {name: round((side['guest_end_bytes'] - side['guest_start_bytes']) / MIB, 2) for name, side in sides.items()}
    return {'peak_engine_mib': max(peaks.values()), 'peak_engine_source_mib': peaks['source'],
            'peak_engine_target_mib': peaks['target'], 'guest_grew_source_mib': grown['source'],
            'guest_grew_target_mib': grown['target']}


# ---- the cases ------------------------------------------------------------------------------------------------------------------

def run_pairs(options, machine, case, size, pairs):
    """Both sides of each ratio, one after the other, the first in turn."""
    sides = {'ours': lambda: run_ours(machine, case, size)}
    if case.limit:
        sides['limit'] = lambda: run_limit(machine, case, size)
    if case.qemu and options.qemu_found:
        sides['qemu'] = lambda: qemu.run_qemu(options.qemu_found, machine, case, size)
    names, runs = list(sides), {name: [] for name in sides}
    for pair in range(pairs):
        turn = pair % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(sides[name]())
        options.say(f'  {case.name} {machine.pages} {pair + 1}/{pairs}: ' + ', '.join(
            f'{name} {runs[name][-1]["total_s"] * 1e3:.1f} ms (others {runs[name][-1]["others_cpus"]:.1f} CPUs)' for name in names))
    return runs


def ratio(runs, other):
    if other not in runs:
        return None
    return spread([theirs['total_s'] / ours['total_s'] for ours, theirs in zip(runs['ours'], runs[other])])


def figures(case, size, runs):
    moved = case.touch or size
    median = {name: statistics.median(run['total_s'] for run in side) for name, side in runs.items()}
    result = {'ours_gbps': round(moved / median['ours'] / 1e9, 3), 'ratio_to_limit': ratio(runs, 'limit'),
              'ratio_to_qemu': ratio(runs, 'qemu')}
    for name, side in runs.items():
        cost = round(statistics.median(run['cpu_s'] for run in side) / (moved / 1e9), 3)
        if name == 'ours':
            result['cpu_s_per_gb'] = cost
        else:
            result[f'{name}_gbps'] = round(moved / median[name] / 1e9, 3)
            result[f'{name}_cpu_s_per_gb'] = cost
    result['total_ns'] = latency(run['total_s'] * 1e9 for run in runs['ours'])
    result['downtime_ns'] = latency(run['source']['downtime_ns'] for run in runs['ours'])
    result['others_cpus'] = round(statistics.median(run['others_cpus'] for side in runs.values() for run in side), 2)
    return result


def measure(options, machine, case, size):
    """The figures of a case, its memory and its rounds."""
    runs = run_pairs(options, machine, case, size, options.pairs)
    record = {**figures(case, size, runs), **engine_memory(machine, case, size)}
    if case.rounds:
        record['round_ns'] = latency(ns for run in runs['ours'] for ns in run['source']['round_ns'])
    return record


def run_case(options, machine, case):
    size = case.fixed_size or options.size
    record = {'case': case.name, **measure(options, machine, case, size), 'pairs': options.pairs, 'channels': case.channels,
              'size_bytes': size, 'pages': machine.pages, 'memory': machine.memory}
    if case.touch:
        record['single_pages'] = measure(options, machine, dataclasses.replace(case, piece=4096), size)
    if case.sizes:
        record['sizes'] = [{'size_bytes': size, 'total_ns': record['total_ns']}]
        for other in case.sizes:
            more = [run_ours(machine, case, other) for _ in range(options.pairs)]
            memory = engine_memory(machine, case, other)
            record['sizes'].append({'size_bytes': other, 'total_ns': latency(run['total_s'] * 1e9 for run in more), **memory})
    if machine.pages == '4k' and case.fill == 'random' and options.huge_pairs:
        huge = Machine(options.build, 'huge', machine.memory, machine.patience_s)
        record['huge_pages'] = figures(case, size, run_pairs(options, huge, case, size, options.huge_pairs))
    return record


def run_downtime_case(options, machine, case):
    runs = []
    for i in range(options.runs):
        runs.append(run_downtime(machine))
        options.say(f'  {case.name} {i + 1}/{options.runs}: gap {runs[-1]["guest_gap_ns"] / 1e6:.2f} ms, downtime '
                    f'{runs[-1]["downtime_ns"] / 1e6:.2f} ms, {runs[-1]["rounds"]} rounds, '
                    f'{runs[-1]["reached_bytes_per_second"] / 1e6:.0f} MB/s written before')
    split = {f'{part}_ns': latency(run[f'downtime_{part}_ns'] for run in runs) for part in ('stop', 'ram', 'state', 'ready', 'run')}
    seconds = [run['total_ns'] / 1e9 for run in runs]
    return {'case': case.name, 'ours_gbps': round(statistics.median(run['bytes_sent'] / s / 1e9 for run, s in zip(runs, seconds)), 3),
            'ratio_to_limit': None, 'ratio_to_qemu': None, 'cpu_s_per_gb': None, 'peak_engine_mib': None,
            'guest_gap_ns': latency(run['guest_gap_ns'] for run in runs), 'downtime_ns': latency(run['downtime_ns'] for run in runs),
            'downtime_split': split, 'total_ns': latency(run['total_ns'] for run in runs),
            'rounds': spread([run['rounds'] for run in runs], 1), 'throttle_percent': spread([run['throttle_percent'] for run in runs]),
            'reached_bytes_per_second': spread([run['reached_bytes_per_second'] for run in runs], 0),
            'chunks_mended': sum(run['chunks_mended'] for run in runs), 'runs': options.runs}


# ---- telling ----------------------------------------------------------------------------------------------------------------------

def told(value, form='{:.2f}'):
    return form.format(value) if value is not None else '-'


def told_spread(value):
    return f'{value["min"]:.2f}/{value["median"]:.2f}/{value["max"]:.2f}' if value else '-'


HEAD = f'{"case":<22}{"ours GB/s":>10}  {"to the limit":<16}{"to QEMU":<16}{"CPU s/GB":>9}{"engine MiB":>11}  else'


def table_rows(record):
    """One line a case, one more for its huge pages, one for each further size."""
    def row(name, part, more=''):
        return (f'{name:<22}{told(part.get("ours_gbps")):>10}  {told_spread(part.get("ratio_to_limit")):<16}'
                f'{told_spread(part.get("ratio_to_qemu")):<16}{told(part.get("cpu_s_per_gb")):>9}'
                f'{told(part.get("peak_engine_mib"), "{:.1f}"):>11}  {more}').rstrip()
    def latencies(part):
        return [f'{key[:-3]} {part[key]["p50"] / 1e6:.2f}/{part[key]["p99"] / 1e6:.2f}/{part[key]["max"] / 1e6:.2f} ms'
                for key in ('round_ns', 'guest_gap_ns') if key in part]
    notes = latencies(record)
    if 'reached_bytes_per_second' in record:
        notes.append(f'guest wrote {record["reached_bytes_per_second"]["median"] / 1e6:.0f} MB/s')
    if record.get('sizes'):
        notes += [f'{part["size_bytes"] // GIB} GiB in {part["total_ns"]["p50"] / 1e6:.2f} ms' for part in record['sizes']]
    rows = [row(record['case'], record, ', '.join(notes))]
    rows += [row('  ' + key.replace('_', ' '), record[key], ', '.join(latencies(record[key])))
             for key in ('huge_pages', 'single_pages') if key in record]
    return rows


def parse_size(text):
    match = re.fullmatch(r'(\d+)([KMGT]?)', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text}: not a size')
    return int(match[1]) << {'': 0, 'K': 10, 'M': 20, 'G': 30, 'T': 40}[match[2]]


def parse(arguments):
    parser = argparse.ArgumentParser(prog='scripts/bench ram')
    parser.add_argument('build')
    parser.add_argument('--json', action='store_true')
    parser.add_argument('--case', action='append', nargs='+', choices=list(CASES), default=[])
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--huge-pairs', type=int, default=3)
    parser.add_argument('--runs', type=int, default=20)
    parser.add_argument('--size', type=parse_size, default=2 * GIB)
    parser.add_argument('--memory', choices=('anon', 'memfd'), default='anon')
    parser.add_argument('--pages', choices=('4k', 'huge'), default='4k')
    parser.add_argument('--patience', type=float, default=5)
    parser.add_argument('--qemu', choices=('auto', 'installed', 'current', 'none'), default='auto')
    parser.add_argument('--qemu-root', default='qemu-current')
    return parser.parse_args(arguments)


def setting(options, machine):
    with open('/proc/sys/net/ipv4/tcp_congestion_control', encoding='ascii') as control:
        tcp = control.read().strip()
    version = options.qemu_found.version if options.qemu_found else None
    return {'type': 'setting', 'tcp_congestion_control': tcp, 'own_network': os.environ.get('BENCH_OWN_NETWORK') == '1',
            'cpus': os.cpu_count(), 'kernel': os.uname().release, 'qemu': version, 'pages': machine.pages, 'memory': machine.memory}


def main():
    options = parse(sys.argv[1:])
    options.say = lambda text: print(text, file=sys.stderr, flush=True)
    end_tidily()
    machine = Machine(options.build, options.pages, options.memory, options.patience)
    names = [name for group in options.case for name in group] or list(CASES)
    records, failures = [], 0
    options.qemu_found = qemu.find(options.qemu, options.qemu_root)
    try:
        options.say(json.dumps(setting(options, machine)))
        for name in names:
            case = CASES[name]
            options.say(f'{name}: {case.what}')
            try:
                records.append((run_downtime_case if name == 'downtime-500' else run_case)(options, machine, case))
            except (BenchError, OSError, ValueError) as error:
                options.say(f'vmferry: bench: {name}: {error}')
                failures += 1
                continue
            if options.json:
                print(json.dumps(records[-1]), flush=True)
    finally:
        if options.qemu_found:
            options.qemu_found.close()
    if not options.json:
        print('\n'.join([HEAD, *(row for record in records for row in table_rows(record))]))
        print('ratios: min/median/max of pairs, above 1 we are faster')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
