#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Source or target is killed while a disk is copied, at moments all over it: the first pass, the rounds, the handover.

The moments come from a seed: a phase, and how long into it. What came of them is said at the end, by phase.
"""
import collections
import os
import random
import time

import story

MIB = 1 << 20
DISK = 24 * MIB
KILLS = int(os.environ.get('VMF_KILLS', '15'))  # a side; 50 take a minute and more
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=4M')
PHASES = ('bulk', 'rounds', 'handover')
INTO_S = {'bulk': 0.25, 'rounds': 0.1, 'handover': 0.12}  # how far a moment may lie behind its phase's begin

Moment = collections.namedtuple('Moment', 'phase round into_s')


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def source_of(stage, name, host):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)},size={DISK}')


def target_of(stage, name, host):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)}', '--incoming', 'tcp:127.0.0.1:0')


def works(machine):
    """The guest goes on writing its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + 50, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def content(stage, name):
    with open(path_of(stage, name), 'rb') as file:
        return file.read()


def moments(seed):
    rng = random.Random(seed)
    for number in range(KILLS):
        phase = PHASES[number % len(PHASES)]
        yield Moment(phase, rng.randint(2, 4), rng.uniform(0, INTO_S[phase]))


def pause_at_the_end(qmp, state):
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'events', 'state': True},
                                                      {'capability': 'pause-before-switchover', 'state': state}])


def migrate_until(source, target, moment):
    """Returns at the moment, or at the end if that comes first."""
    qmp = source.qmp()
    pause_at_the_end(qmp, True)
    # So slow that a pass takes a while, and so patient that the guest need not be slow.
    qmp.run('migrate-set-parameters', **{'x-vmferry-disks': 'all', 'max-bandwidth': 40 * MIB, 'downtime-limit': 2000,
                                         'x-vmferry-switchover-timeout-ns': 30 * 10**9, 'x-vmferry-minimum-rounds': 5})
    qmp.run('migrate', uri=target.uri)
    if moment.phase == 'rounds':
        while True:
            event = qmp.event('MIGRATION_PASS')
            if event['data']['pass'] >= moment.round:
                break
    if moment.phase == 'handover':
        qmp.event('MIGRATION', status='pre-switchover')
        qmp.run('migrate-continue', state='pre-switchover')
    time.sleep(moment.into_s)
    qmp.close()


def end_of(source):
    """What the source says of it once it has something to say: where the guest is."""
    def known():
        status = source.status()
        migration = status['migration']
        return status['status'] if migration and (migration['ended'] or migration['outcome'] == 'held') else None
    return story.wait_until(known, 'an end of the migration')


def kill(machine):
    machine.process.kill()
    machine.wait()


def say(name, seen):
    for phase in PHASES:
        words = ', '.join(f'{what} {n}' for (where, what), n in sorted(seen.items()) if where == phase)
        print(f'{name}, {phase}: {words}', flush=True)


def target_dies_at_any_moment(stage):
    """The guest goes on where it was, and no write of its is lost; what is left of the copy says that it is none."""
    seen = collections.Counter()
    source = source_of(stage, 'disk', 'first')
    works(source)
    for number, moment in enumerate(moments(20261130)):
        target = target_of(stage, 'copy', f'host-{number}')
        migrate_until(source, target, moment)
        kill(target)
        end = end_of(source)
        seen[moment.phase, end] += 1
        if end == 'running':
            if os.path.exists(path_of(stage, 'copy')):      # it had its name already, which the dead cannot take away
                assert moment.phase == 'handover', moment
                os.unlink(path_of(stage, 'copy'))
            works(source)
            continue
        # It ran there already, or may have: that guest is gone, and its disk is whole.
        assert moment.phase == 'handover' and os.path.exists(path_of(stage, 'copy')), (moment, end)
        kill(source)
        for name in os.listdir(stage.directory):
            if name.startswith(('disk', 'copy')):
                os.unlink(path_of(stage, name))
        source = source_of(stage, 'disk', f'again-{number}')
        works(source)
    target = target_of(stage, 'copy', 'host-last')
    pause_at_the_end(source.qmp(), False)
    moved = source.host.vmferry('migrate', 'vm', target.uri, '--disks', 'all', '--downtime-limit', '2s', '--verify-disks')
    assert moved.code == 0, moved
    works(target)
    assert not os.path.exists(path_of(stage, 'copy.partial'))
    say('the target dies', seen)


def source_dies_at_any_moment(stage):
    """Its guest dies with it, or is at the target with a disk that is whole; a copy that is not does not claim to be."""
    seen = collections.Counter()
    for number, moment in enumerate(moments(30112026)):
        source = source_of(stage, f'disk{number}', f'source-{number}')
        works(source)
        target = target_of(stage, f'copy{number}', f'target-{number}')
        migrate_until(source, target, moment)
        kill(source)

        def known():
            status = target.host.vmferry('status', 'vm', '--json')
            if status.code != 0:
                return 'ended'
            status = status.lines[-1]
            if status['status'] == 'inmigrate':  # a caller that has not said what it brings is none: it waits for another
                return 'waiting' if (status['migration'] or {}).get('status') in (None, 'none', 'setup') else None
            return status['status']
        end = story.wait_until(known, 'what the target makes of it')
        whole = os.path.exists(path_of(stage, f'copy{number}'))
        if end == 'running':
            assert whole, moment
            works(target)
        elif end == 'finish-migrate':  # held: the source's guest stood, so both have the same
            assert whole and content(stage, f'disk{number}') == content(stage, f'copy{number}'), moment
        else:
            assert not whole, moment
        seen[moment.phase, end] += 1
        kill(target)
        for name in (f'disk{number}', f'copy{number}', f'copy{number}.partial'):
            if os.path.exists(path_of(stage, name)):
                os.unlink(path_of(stage, name))
    say('the source dies', seen)


if __name__ == '__main__':
    story.run(target_dies_at_any_moment, source_dies_at_any_moment)
