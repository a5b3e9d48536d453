# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cases of scripts/bench block: how long a guest's writes take while its disk is copied or mirrored."""
import os
import statistics
import tempfile
import time

from places import drop_caches
from processes import BenchError, Child, Noise, wait_until_quiet
from ram import told, told_spread
from sides import outcome

SETTLE_S = 3   # storage goes on with what it was given before
WARM_UP_S = 0.5
ALONE_S = 4
MIRROR_S = 5
GOAL = 1.5  # times what 99 of 100 writes take alone

# What a guest that is not mirrored, slowed down or mirrored is measured beside, and what that ratio is to be at most.
CASES = {'latency': ('copy', 1.5), 'latency-goal': ('alone', 2.0), 'latency-mirror': ('both-ends', 1.5)}


class Load:
    """The programs, and what the guest does: so many writes a second, so many under way at most."""

    def __init__(self, programs, options):
        self.guest = os.path.join(options.build, 'bench', 'disk-guest')
        self.both_ends = os.path.join(options.build, 'bench', 'raw-mirror')
        self.copy, self.patience_s = programs.copy, programs.patience_s
        self.words = [f'--rate={options.rate}', f'--depth={options.depth}']
        self.bandwidth = [f'--bandwidth={options.bandwidth}'] if options.bandwidth else []


def get_rid(*paths):
    for path in paths:
        if os.path.exists(path):
            os.unlink(path)


def measured(result, noise, cpu_ns):
    return outcome(result['live_ns'], cpu_ns, noise, p50_us=result['latency']['p50_us'], p99_us=result['latency']['p99_us'],
                   writes_per_s=result['latency']['n'] / (result['live_ns'] / 1e9), result=result)


def begin(load):
    drop_caches()
    time.sleep(SETTLE_S)
    wait_until_quiet(load.patience_s)


def migrate(load, place, *words):
    """The guest is migrated with its disk; its CPU time is that of both ends, the guest's own included."""
    copy = place.path('ours')
    get_rid(copy)
    with tempfile.TemporaryDirectory(prefix='bench-') as directory:
        common = (f'--uri=unix:{directory}/socket', *load.words, *words)
        with Child(load.guest, 'target', copy, *common) as target:
            target.line('listening')
            with Child(load.guest, 'source', place.path('disk'), *common) as source:
                source.line('ready')
                begin(load)
                noise = Noise()
                source.go()
                sent, came = source.line('result'), target.line('result')
    if sent['verified'] not in ('transport', 'full'):
        raise BenchError(f'ours: verified: {sent["verified"]}')
    return measured(sent, noise, sent['cpu_ns'] + came['cpu_ns'])


def alone(load, place, meanwhile):
    """The guest stays; @meanwhile does what else is to be done while it is measured, and says what CPU time that took."""
    with Child(load.guest, 'alone', place.path('disk'), *load.words) as guest:
        guest.line('ready')
        begin(load)
        guest.go()
        time.sleep(WARM_UP_S)
        noise = Noise()
        guest.go()
        cpu_ns = meanwhile()
        guest.go()
        result = guest.line('result')
    return measured(result, noise, result['cpu_ns'] + cpu_ns)


def run_alone(load, place, _state):
    def wait():
        time.sleep(ALONE_S)
        return 0
    return alone(load, place, wait)


def run_beside_copy(load, place, state):
    """Beside a plain direct copy that is as fast as ours was just before."""
    copy = place.path('copy')
    get_rid(copy)
    with Child(load.copy, f'--rate={state["rate"]}', place.path('disk'), copy) as child:
        child.line('ready')

        def wait():
            child.go()
            return child.line('result')['cpu_ns']
        return alone(load, place, wait)


def run_ours(load, place, state):
    run = migrate(load, place, *load.bandwidth)
    state['rate'] = int(run['result']['bytes'] / run['total_s'])
    return run


def run_with_goal(load, place, state):
    return migrate(load, place, f'--goal={max(int(state["alone_us"] * GOAL), 1)}')


def run_mirrored(load, place, _state):
    run = migrate(load, place, '--mirror', f'--seconds={MIRROR_S}')
    if not run['result']['mirrored']:
        raise BenchError('ours: nothing was mirrored')
    return run


def run_both_ends(load, place, state):
    """Onto the disk and a copy of it that was made the same way."""
    copy = place.path('copy')
    if not state.get('copied'):
        get_rid(copy)
        with Child(load.copy, place.path('disk'), copy) as child:
            child.line('ready')
            child.go()
            child.line('result')
        state['copied'] = True
    with Child(load.both_ends, f'--seconds={ALONE_S}', *load.words, place.path('disk'), copy) as child:
        child.line('ready')
        begin(load)
        noise = Noise()
        child.go()
        result = child.line('result')
    return measured(result, noise, result['cpu_ns'])


SIDES = {'latency': {'ours': run_ours, 'copy': run_beside_copy},
         'latency-mirror': {'ours': run_mirrored, 'both-ends': run_both_ends}}


def mean_of(first, second):
    return {**first, **{what: (first[what] + second[what]) / 2 for what in ('p50_us', 'p99_us', 'writes_per_s', 'others_cpus')}}


def run_goal(load, place, state):
    """Alone before and after, since storage is not the same from one minute to the next; the goal comes from the run before."""
    before = run_alone(load, place, state)
    state['alone_us'] = before['p99_us']
    ours = run_with_goal(load, place, state)
    return {'alone': mean_of(before, run_alone(load, place, state)), 'ours': ours}


def run_pair(load, name, place, state, turn):
    """One run of each side, the first in turn. Where one side needs what another one has found, that is from the pair before."""
    if name == 'latency-goal':
        return run_goal(load, place, state)
    pair = {}
    order = list(SIDES[name])
    for side in order[turn % len(order):] + order[:turn % len(order)]:
        pair[side] = SIDES[name][side](load, place, state)
    return pair


def run_case(options, programs, name, place, fill):
    load, state, pairs = Load(programs, options), {}, []
    fill(place.path('disk'), options.size, options.size)
    other, limit = CASES[name]
    for turn in range(options.pairs):
        # The first pair begins with the side that finds out.
        pairs.append(run_pair(load, name, place, state, turn))
        options.say(f'  {name} {place.name} {turn + 1}/{options.pairs}: ' + ', '.join(
            f'{side} p50 {run["p50_us"]:.0f} p99 {run["p99_us"]:.0f} us, {run["writes_per_s"]:.0f}/s in {run["total_s"]:.1f} s '
            f'(others {run["others_cpus"]:.1f} CPUs)' for side, run in pairs[-1].items()))
    return record_of(options, name, place, pairs, other, limit)


def spread_of(values, digits):
    return {'min': round(min(values), digits), 'median': round(statistics.median(values), digits), 'max': round(max(values), digits)}


def record_of(options, name, place, pairs, other, limit):
    record = {'case': name, 'storage': place.name, 'beside': other, 'limit': limit,
              'p99_ratio': spread_of([pair['ours']['p99_us'] / pair[other]['p99_us'] for pair in pairs], 3),
              'p50_ratio': spread_of([pair['ours']['p50_us'] / pair[other]['p50_us'] for pair in pairs], 3)}
    for side in pairs[0]:
        key = side.replace('-', '_')
        for what, digits in (('p50_us', 1), ('p99_us', 1), ('writes_per_s', 0)):
            record[f'{key}_{what}'] = spread_of([pair[side][what] for pair in pairs], digits)
        record[f'{key}_cpu_s_per_s'] = round(statistics.median(pair[side]['cpu_s'] / pair[side]['total_s'] for pair in pairs), 3)
    ours = [pair['ours']['result'] for pair in pairs]
    record['ours_copied_mbps'] = spread_of([result['bytes'] / result['total_ns'] * 1e3 for result in ours], 0)
    record['others_cpus'] = spread_of([run['others_cpus'] for pair in pairs for run in pair.values()], 2)
    record.update(bandwidth=options.bandwidth, rate=options.rate, depth=options.depth, size_bytes=options.size, pairs=options.pairs)
    return record


HEAD = f'{"case":<16}{"storage":<9}{"beside":<11}{"p99 ratio":<18}{"at most":>8}{"ours p99 us":>13}{"other":>9}{"CPU":>7}{"other":>7}'


def row(record):
    other = record['beside'].replace('-', '_')
    return (f'{record["case"]:<16}{record["storage"]:<9}{record["beside"]:<11}{told_spread(record["p99_ratio"]):<18}{record["limit"]:>8}'
            f'{told(record["ours_p99_us"]["median"]):>13}{told(record[f"{other}_p99_us"]["median"]):>9}'
            f'{told(record["ours_cpu_s_per_s"]):>7}{told(record[f"{other}_cpu_s_per_s"]):>7}')
