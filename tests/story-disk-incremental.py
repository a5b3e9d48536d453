#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose disks go to where a base of them lies: a backup, then what was written since. A base of another is refused, untouched."""
import os
import random
import shutil
import subprocess
import time

import story

MIB = 1 << 20
DISK = 24 * MIB
SET = 4 * MIB
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=4M')
VERIFY_STREAM = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-stream')
COPY = ('--disks', 'all', '--incremental', 'move', '--switchover-timeout', '30s', '--downtime-limit', '3s')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def source_of(stage, name, host='host-a'):
    """Its disk has data that the guest never writes behind what it does."""
    with open(path_of(stage, name), 'wb') as file:
        file.write(random.Random(name).randbytes(DISK - 4 * MIB))
        file.truncate(DISK)
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)}')


def target_of(stage, name, host='host-b'):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)}', '--incoming', 'tcp:127.0.0.1:0')


def works(machine):
    """The guest goes on writing its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + 50, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def back_up(stage, machine, name, *more):
    if not more:
        done(machine.host, 'bitmap', 'vm', 'root', 'add', 'move')
    done(machine.host, 'backup', 'vm', 'root', path_of(stage, name), '--bitmap', 'move', *(more or ('--full',)))
    works(machine)


def content(stage, name):
    with open(path_of(stage, name), 'rb') as file:
        return file.read()


def names(stage, name):
    """What there is of it: the disk, or what says that it is none."""
    return [ending for ending in ('', '.partial') if os.path.exists(path_of(stage, name + ending))]


def backup_then_the_rest(stage):
    """From machine to machine, most of the disk ahead of the guest. The last one arrives paused, and both files are the same then."""
    machine = source_of(stage, 'disk0')
    for number in range(3):
        works(machine)
        back_up(stage, machine, f'disk{number + 1}')
        if number == 1:  # a backup may be brought up to date before
            back_up(stage, machine, f'disk{number + 1}', '--bitmap', 'move')
        target = target_of(stage, f'disk{number + 1}', f'host-{number}')
        asked = done(machine.host, 'migrate', 'vm', target.uri, *COPY, '--dry-run')
        assert 'would take it' in asked.stdout + asked.stderr, asked
        if number == 2:
            done(machine.host, 'stop', 'vm')
        checked = ('--audit', 'before', '--verify-disks')
        moved = done(machine.host, 'migrate', 'vm', target.uri, *COPY, *checked, '--keep', '--json').lines[-1]
        assert DISK - SET - MIB <= moved['disk_base_bytes'] < DISK and moved['disk_remaining_bytes'] == 0, moved
        if number == 2:  # in one pass: no more than the guest may have changed
            assert 0 < moved['disk_sent_bytes'] <= SET, moved
        assert names(stage, f'disk{number + 1}') == [''], os.listdir(stage.directory)
        before, machine = machine, target
        if number < 2:
            done(before.host, 'quit', 'vm')
            before.wait()
    assert content(stage, 'disk2') == content(stage, 'disk3')
    done(machine.host, 'cont', 'vm')
    works(machine)


def base_of_another(stage):
    """Of another disk, of another size, or none at all: said by name; the base is untouched, the guest goes on."""
    source = source_of(stage, 'disk')
    works(source)
    back_up(stage, source, 'base')
    shutil.copy(path_of(stage, 'base'), path_of(stage, 'changed'))
    with open(path_of(stage, 'changed'), 'r+b') as file:
        file.seek(17 * MIB + 5)
        file.write(b'x')
    with open(path_of(stage, 'foreign'), 'wb') as file:
        file.write(random.Random(2).randbytes(DISK))
    with open(path_of(stage, 'small'), 'wb') as file:
        file.truncate(DISK - 512)
    words = {'changed': f'disk.base: disk root: its base differs at offset {17 * MIB},', 'foreign': 'its base differs at offset ',
             'small': 'the base has', 'nothing': 'there is no base'}
    for name, what in words.items():
        before = content(stage, name) if name != 'nothing' else None
        target = target_of(stage, name, f'host-{name}')
        refused = source.host.vmferry('migrate', 'vm', target.uri, *COPY, '--json')
        errors = [line for line in refused.lines if line['type'] == 'error']
        assert refused.code == 1 and what in errors[0]['message'], refused
        assert before is None or content(stage, name) == before
        assert names(stage, name) == ([] if before is None else ['']), name
        works(source)
    target = target_of(stage, 'base', 'host-last')
    done(source.host, 'migrate', 'vm', target.uri, *COPY, '--verify-disks')
    works(target)


def bitmaps_that_cannot_say(stage):
    source = source_of(stage, 'disk')
    works(source)
    back_up(stage, source, 'base')
    target = target_of(stage, 'base')
    for args in (('--incremental', 'move'), ('--disks', 'none', '--incremental', 'move')):
        wrong = source.host.vmferry('migrate', 'vm', target.uri, *args)
        assert wrong.code == 2 and 'no disk is copied' in wrong.stderr, wrong
    wrong = source.host.vmferry('migrate', 'vm', target.uri, '--disks', 'all', '--incremental', 'nobodys')
    assert wrong.code == 2 and 'nobodys' in wrong.stderr, wrong
    done(source.host, 'bitmap', 'vm', 'root', 'disable', 'move')
    wrong = source.host.vmferry('migrate', 'vm', target.uri, *COPY)
    assert wrong.code == 1 and 'disabled' in wrong.stderr, wrong
    # Enabled again it has not what was written meanwhile, which its digests show. A guest that runs could write all of that once more.
    works(source)
    done(source.host, 'stop', 'vm')
    done(source.host, 'bitmap', 'vm', 'root', 'clear', 'move')
    done(source.host, 'bitmap', 'vm', 'root', 'enable', 'move')
    wrong = source.host.vmferry('migrate', 'vm', target.uri, *COPY)
    assert wrong.code == 1 and 'its base differs' in wrong.stderr, wrong
    done(source.host, 'cont', 'vm')
    works(source)


def target_that_dies_leaves_a_base(stage):
    """At any moment, again and again: it is the base, untouched, or PATH.partial, which is as good."""
    rng = random.Random(20261130)
    source = source_of(stage, 'disk')
    works(source)
    back_up(stage, source, 'copy')
    for number in range(8):
        target = target_of(stage, 'copy', f'host-{number}')
        migration = source.host.start('migrate', 'vm', target.uri, *COPY, '--pause-before-switchover')
        time.sleep(rng.uniform(0, 0.2))
        target.process.kill()
        target.wait()
        assert migration.wait(story.PATIENCE_S) == 1
        assert len(names(stage, 'copy')) == 1, os.listdir(stage.directory)
        works(source)
    target = target_of(stage, 'copy', 'host-last')
    done(source.host, 'migrate', 'vm', target.uri, *COPY, '--verify-disks')
    works(target)
    assert names(stage, 'copy') == ['']


def programs_say_it(stage):
    """By parameters, and in a stream that lies in a file, which the independent reader finds right."""
    source = source_of(stage, 'disk')
    works(source)
    back_up(stage, source, 'base')
    qmp = source.qmp()
    assert qmp.run('query-migrate-parameters')['x-vmferry-incremental-bitmap'] == ''
    assert 'error' in qmp.command('migrate-set-parameters', x_vmferry_incremental_bitmap=1)
    qmp.run('migrate-set-parameters', x_vmferry_incremental_bitmap='move')
    qmp.run('migrate-set-parameters', x_vmferry_disks='root')
    assert qmp.run('query-migrate-parameters')['x-vmferry-incremental-bitmap'] == 'move'
    stream = path_of(stage, 'stream')
    done(source.host, 'migrate', 'vm', f'file:{stream}')
    read = subprocess.run(['/usr/bin/python3', '-B', VERIFY_STREAM, stream], capture_output=True, text=True, check=False)
    assert read.returncode == 0 and ' in a base)' in read.stdout, read
    target = stage.host('host-b').run('vm', *GUEST, '--disk', f'root={path_of(stage, "base")}', '--incoming', f'file:{stream}', '--paused')
    story.wait_until(lambda: target.status()['status'] == 'paused', 'it has arrived')
    assert content(stage, 'disk') == content(stage, 'base')
    qmp.run('migrate-set-parameters', x_vmferry_incremental_bitmap='')
    qmp.close()
    done(target.host, 'cont', 'vm')
    works(target)


if __name__ == '__main__':
    story.run(backup_then_the_rest, base_of_another, bitmaps_that_cannot_say, target_that_dies_leaves_a_base, programs_say_it)
