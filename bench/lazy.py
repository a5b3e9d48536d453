# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cases of lazy restores: how soon the guest runs, what its faults cost, what a recorded order saves it."""
import dataclasses
import os
import statistics

from places import drop_caches, fill_cache, measure
from processes import Child
from ram import GIB, spread, told, told_spread
from sides import MIB

SPARSE = 32    # of a guest that is large and mostly holes: data in each so many-th chunk


@dataclasses.dataclass(frozen=True)
class Case:
    """Restoring a guest of that size; it touches so many pages as fast as it gets them."""
    name: str
    size: int
    every: int = 0       # chunks with data: 0: three of four
    touches: int = 20000
    ordered: bool = False

    def data(self):
        chunks = self.size // (2 * MIB)
        return (chunks // self.every if self.every else chunks // 4 * 3) * 2 * MIB


CASES = {case.name: case for case in (
    Case('restore-lazy-0.5g', GIB // 2),
    Case('restore-lazy-4g', 4 * GIB),
    Case('restore-lazy-64g', 64 * GIB, every=SPARSE),
    # Few enough for all of them to be seen while the order is recorded.
    Case('restore-lazy-order', 4 * GIB, touches=8000, ordered=True),
)}


class Sides:
    """Our runs and the limit's, of one case in one place. Files are made when they are first asked for, and stay."""

    def __init__(self, machine, case, place):
        self.machine, self.case, self.place = machine, case, place
        self.layout = [f'--size={case.size}', f'--every={case.every}', *machine.kind()]

    def path(self, kind):
        return self.place.path(f'{kind}-{self.case.size}-{self.case.every}')

    def image(self):
        path = self.path('image')
        if not os.path.exists(path):
            measure(self.machine, self.case.data(), Child(self.machine.guest, 'save', f'file:{path}', '--fill=chunks', '--channels=2',
                                                          '--audit=off', *self.layout))
        return path

    def plain_file(self):
        path = self.path('plain')
        if not os.path.exists(path):
            measure(self.machine, self.case.data(), Child(self.machine.image_limit, 'write', f'--file={path}', '--threads=2', *self.layout))
        return path

    def in_cache(self, path, cached):
        """What the storage answers with: the page cache, or itself."""
        drop_caches()
        if cached:
            fill_cache(path)
        return ['--buffered'] if cached else []

    def ours(self, cached, *more, kind='touches'):
        path = self.image()
        how = self.in_cache(path, cached)
        return measure(self.machine, self.case.data(), Child(self.machine.guest, 'restore-lazy', f'file:{path}', '--audit=off',
                                                             f'--touches={self.case.touches}', *self.layout, *how, *more), kind)

    def limit(self, cached):
        path = self.plain_file()
        how = self.in_cache(path, cached)
        return measure(self.machine, self.case.data(), Child(self.machine.image_limit, 'fault', f'--file={path}', '--prefetch',
                                                             f'--touches={self.case.touches}', *self.layout, *how))

    def order(self):
        """The file with the order of a run that recorded it."""
        path = self.path('order')
        if not os.path.exists(path):
            self.ours(False, f'--order={path}', '--record')
        return path

    def peak_engine_mib(self):
        """Of a run that is watched and not timed."""
        run = self.ours(False, '--watch-memory', kind='result')
        return round(run['result']['engine_peak_bytes'] / MIB, 2)


def interleave(options, case, place, sides):
    """One run of each side a pair, the first in turn."""
    names, runs = list(sides), {name: [] for name in sides}
    for pair in range(options.pairs):
        turn = pair % len(names)
        for name in names[turn:] + names[:turn]:
            runs[name].append(sides[name]())
        options.say(f'  {case.name} {place.name} {pair + 1}/{options.pairs}: ' + ', '.join(
            f'{name} first {runs[name][-1]["result"]["first_ns"] / 1e6:.1f} ms, p50 {runs[name][-1]["result"]["fault_p50_ns"] / 1e3:.0f} us'
            for name in names))
    return runs


def values(runs, key, unit=1):
    return [run['result'][key] / unit for run in runs]


def quotients(of, by, key):
    """By pair. Of one that met no fault there is none."""
    return spread([one['result'][key] / other['result'][key] for one, other in zip(of, by) if other['result'][key]])


def common(options, machine, case, place, runs, peak):
    return {'cpu_s': round(statistics.median(run['cpu_s'] for run in next(iter(runs.values()))), 3), 'peak_engine_mib': peak,
            'others_cpus': spread([run['others_cpus'] for side in runs.values() for run in side], 2), 'size_bytes': case.size,
            'data_bytes': case.data(), 'touches': case.touches, 'storage': place.name, 'pairs': options.pairs, 'pages': machine.pages,
            'memory': machine.memory}


def faults(runs, cached):
    """Ours beside the limit's: how soon the guest got its first page, and what its faults cost it."""
    ours, limit = runs[f'ours {cached}'], runs[f'limit {cached}']
    record = {'start_ms': spread(values(ours, 'start_ns', 1e6)), 'first_ms': spread(values(ours, 'first_ns', 1e6)),
              'limit_first_ms': spread(values(limit, 'first_ns', 1e6)),
              'faults': round(statistics.median(values(ours, 'faults'))), 'limit_faults': round(statistics.median(values(limit, 'faults')))}
    for key in ('p50', 'p99', 'max'):
        record[f'fault_{key}_us'] = spread(values(ours, f'fault_{key}_ns', 1e3), 1)
        record[f'limit_fault_{key}_us'] = spread(values(limit, f'fault_{key}_ns', 1e3), 1)
        record[f'ratio_{key}_to_limit'] = quotients(limit, ours, f'fault_{key}_ns')
    return record


def run_plain(options, machine, case, place):
    sides = Sides(machine, case, place)
    sides.image(), sides.plain_file()
    kinds = ('cold', 'cached') if place.name == 'disk' else ('cached',)
    plan = {}
    for kind in kinds:
        plan[f'ours {kind}'] = lambda kind=kind: sides.ours(kind == 'cached')
        plan[f'limit {kind}'] = lambda kind=kind: sides.limit(kind == 'cached')
    runs, peak = interleave(options, case, place, plan), sides.peak_engine_mib()
    return [{'case': case.name, 'cache': kind, **faults(runs, kind),
             **common(options, machine, case, place, {name: runs[name] for name in (f'ours {kind}', f'limit {kind}')}, peak)}
            for kind in kinds]


def run_ordered(options, machine, case, place):
    """With the order of a run before it, beside without."""
    sides = Sides(machine, case, place)
    order = sides.order()
    runs = interleave(options, case, place, {'recorded': lambda: sides.ours(False, f'--order={order}'),
                                             'unrecorded': lambda: sides.ours(False)})
    most = {name: spread(values(side, 'most_ns', 1e6)) for name, side in runs.items()}
    return [{'case': case.name, 'cache': 'cold', 'recorded_90_ms': most['recorded'], 'unrecorded_90_ms': most['unrecorded'],
             'ratio_90': quotients(runs['unrecorded'], runs['recorded'], 'most_ns'),
             'recorded_faults': round(statistics.median(values(runs['recorded'], 'faults'))),
             'unrecorded_faults': round(statistics.median(values(runs['unrecorded'], 'faults'))),
             **common(options, machine, case, place, runs, sides.peak_engine_mib())}]


def run(options, machine, name, place):
    """Its records."""
    case = CASES[name]
    return (run_ordered if case.ordered else run_plain)(options, machine, case, place)


HEAD = (f'{"case":<20}{"storage":<9}{"cache":<8}{"first ms":>9}{"limit":>9}{"p50 us":>9}{"limit":>9}  {"ratio":<16}'
        f'{"p99 us":>9}{"limit":>9}  {"ratio":<16}{"CPU s":>7}{"MiB":>7}')
ORDER_HEAD = f'{"case":<20}{"storage":<9}{"recorded ms":>12}{"not ms":>9}  {"ratio":<16}{"CPU s":>7}{"MiB":>7}'


def middle(value):
    return told(value and value['median'])


def row(record):
    head = f'{record["case"]:<20}{record["storage"]:<9}'
    tail = f'{told(record["cpu_s"]):>7}{told(record["peak_engine_mib"]):>7}'
    if 'ratio_90' in record:
        return (f'{head}{middle(record["recorded_90_ms"]):>12}{middle(record["unrecorded_90_ms"]):>9}  '
                f'{told_spread(record["ratio_90"]):<16}{tail}')
    times = ''.join(f'{middle(record[f"fault_{key}_us"]):>9}{middle(record[f"limit_fault_{key}_us"]):>9}  '
                    f'{told_spread(record[f"ratio_{key}_to_limit"]):<16}' for key in ('p50', 'p99'))
    return f'{head}{record["cache"]:<8}{middle(record["first_ms"]):>9}{middle(record["limit_first_ms"]):>9}{times}{tail}'
