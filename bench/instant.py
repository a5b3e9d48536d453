# SPDX-License-Identifier: LGPL-2.1-or-later
"""The case point-in-time: a guest of 4 GiB that writes all over its data is saved as it is at one moment, and runs on."""
import os
import statistics

from places import drop_caches
from processes import Child, Noise
from ram import GIB, spread, told
from sides import MIB, outcome

CASES = ('point-in-time',)
RATES = (100, 500)   # MB a second that are written
SIZE = 4 * GIB


def save(machine, place, rate, *more):
    path = place.path('instant')
    drop_caches()
    with Child(machine.guest, 'save-instant', f'file:{path}', f'--size={SIZE}', '--fill=chunks', '--audit=off', f'--rate={rate * 1000000}',
               *machine.kind(), *more) as child:
        child.line('ready')
        machine.warm(256 * MIB)
        noise = Noise()
        child.go()
        result, pause = child.line('result'), child.line('pause')
        run = outcome(result['total_ns'], result['cpu_ns'] - pause['writer_cpu_ns'], noise, result=result, pause_ms=pause['pause_ns'] / 1e6,
                      written_mbps=pause['pages_written'] * 4096e3 / result['total_ns'])
    os.unlink(path)
    return run


def figures(options, machine, place, rate, runs):
    watched = save(machine, place, rate, '--watch-memory')
    record = {'case': 'point-in-time', 'storage': place.name, 'dirty_mbps': rate}
    for key in ('pause_ms', 'total_s', 'written_mbps', 'others_cpus'):
        record[key] = spread([run[key] for run in runs])
    record['cpu_s'] = round(statistics.median(run['cpu_s'] for run in runs), 3)
    record['peak_engine_mib'] = round(watched['result']['engine_peak_bytes'] / MIB, 2)
    record.update(size_bytes=SIZE, pairs=options.pairs, pages=machine.pages, memory=machine.memory)
    return record


def run(options, machine, _, place):
    """Its records, one a rate."""
    runs = {rate: [] for rate in RATES}
    for pair in range(options.pairs):
        turn = pair % len(RATES)
        for rate in RATES[turn:] + RATES[:turn]:
            runs[rate].append(save(machine, place, rate))
        options.say(f'  point-in-time {place.name} {pair + 1}/{options.pairs}: ' + ', '.join(
            f'{rate} MB/s: pause {runs[rate][-1]["pause_ms"]:.2f} ms' for rate in RATES))
    return [figures(options, machine, place, rate, runs[rate]) for rate in RATES]


HEAD = f'{"case":<20}{"storage":<9}{"MB/s":>6}{"pause ms":>10}{"most":>8}{"save s":>8}{"meanwhile":>10}{"CPU s":>7}{"MiB":>7}'


def row(record):
    return (f'{record["case"]:<20}{record["storage"]:<9}{record["dirty_mbps"]:>6}{told(record["pause_ms"]["median"]):>10}'
            f'{told(record["pause_ms"]["max"]):>8}{told(record["total_s"]["median"]):>8}{told(record["written_mbps"]["median"]):>10}'
            f'{told(record["cpu_s"]):>7}{told(record["peak_engine_mib"]):>7}')
