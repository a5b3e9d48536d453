#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that move from and to exports of nbdkit, whose error filter fails what a side asks of them.

What fails is named at both ends, the guest goes on where it is with every write of its, and moves once the storage is well.
"""
import os
import shutil
import subprocess

import story

MIB = 1 << 20
DISK = 16 * MIB
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=4M')
COPY = ('--disks', 'all', '--switchover-timeout', '30s', '--downtime-limit', '30s')


class Export:
    """nbdkit over a file of its own. What its settings say fails between fail() and mend()."""

    def __init__(self, stage, name, *settings):
        if not shutil.which('nbdkit'):
            raise story.Skip('nbdkit is not installed')
        self.file = path_of(stage, name)
        self.trigger = path_of(stage, f'{name}.fails')
        self.socket = path_of(stage, f'{name}.nbd')
        with open(self.file, 'wb') as file:
            file.truncate(DISK)
        stage.processes.append(subprocess.Popen(
            ['nbdkit', '-f', '-U', self.socket, '--filter=error', 'file', self.file, f'error-file={self.trigger}', *settings],
            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        story.wait_until(lambda: os.path.exists(self.socket), 'nbdkit')

    def fail(self):
        with open(self.trigger, 'wb'):
            pass

    def mend(self):
        os.unlink(self.trigger)

    @property
    def disk(self):
        return ('--disk', f'root=nbd+unix:///?socket={self.socket},no-lock')

    @property
    def content(self):
        with open(self.file, 'rb') as file:
            return file.read()


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def run(stage, host, disk, *more):
    try:
        return stage.host(host).run('vm', *GUEST, *disk, *more)
    except AssertionError as error:
        if 'libnbd' in str(error):
            raise story.Skip('built without libnbd') from error
        raise


def target_of(stage, host, disk):
    return run(stage, host, disk, '--incoming', 'tcp:127.0.0.1:0')


def disk_of(machine):
    status = machine.status()
    assert status['guest_errors'] == 0, status
    return status['disks'][0]


def works(machine, more=50):
    """The guest goes on writing its disk and reading what it wrote; nothing fails, and nothing is wrong with it."""
    before = disk_of(machine)
    story.wait_until(lambda: disk_of(machine)['writes'] > before['writes'] + more, 'writes')
    assert machine.status()['running'] and disk_of(machine)['failures'] == before['failures'], machine.status()


def moves(stage, machine, host, disk, here, there):
    """All of the disk is at the target, and the guest finds nothing missing. @here, @there: what reads it."""
    target = target_of(stage, host, disk)
    done(machine.host, 'stop', 'vm')
    done(machine.host, 'migrate', 'vm', target.uri, *COPY, '--verify-disks')
    assert here() == there()
    done(target.host, 'cont', 'vm')
    works(target, 500)
    assert disk_of(target)['failures'] == 0, target.status()
    return target


def named_by_target(target, what):
    assert target.wait() == 1
    said = target.process.stderr.read()
    assert 'disk root' in said and what in said, said


def export_that_cannot_be_written(stage):
    """From the first write on."""
    export = Export(stage, 'export', 'error-pwrite=EIO', 'error-pwrite-rate=100%')
    with open(path_of(stage, 'disk'), 'wb') as file:
        file.truncate(DISK)
    source = run(stage, 'host-a', ('--disk', f'root={path_of(stage, "disk")}'))
    works(source)
    target = target_of(stage, 'host-b', export.disk)
    export.fail()
    failed = done(source.host, 'migrate', 'vm', target.uri, *COPY, '--json', code=1)
    errors = [line for line in failed.lines if line['type'] == 'error']
    assert len(errors) == 1 and 'disk root' in errors[0]['message'] and 'Input/output error' in errors[0]['message'], failed
    named_by_target(target, 'Input/output error')
    works(source)
    export.mend()

    def here():
        with open(path_of(stage, 'disk'), 'rb') as file:
            return file.read()
    moves(stage, source, 'host-c', export.disk, here, lambda: export.content)


def export_that_fills_up(stage):
    """When all has been written once, and what the guest writes follows; from one export to another."""
    export = Export(stage, 'export')
    full = Export(stage, 'full', 'error-pwrite=ENOSPC', 'error-pwrite-rate=100%')
    source = run(stage, 'host-a', export.disk)
    works(source)
    target = target_of(stage, 'host-b', full.disk)
    qmp = source.qmp()
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'events', 'state': True},
                                                      {'capability': 'pause-before-switchover', 'state': True}])
    qmp.run('migrate-set-parameters', **{'x-vmferry-disks': 'all', 'downtime-limit': 2000})
    qmp.run('migrate', uri=target.uri)
    qmp.event('MIGRATION', status='pre-switchover')
    works(source)
    full.fail()
    migration = story.wait_until(lambda: (now := source.status()['migration'])['ended'] and now, 'the end of the migration')
    assert migration['outcome'] == 'failed' and 'disk root' in migration['error']['message'], migration
    assert 'No space left on device' in migration['error']['message'], migration
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'pause-before-switchover', 'state': False}])
    qmp.close()
    named_by_target(target, 'No space left on device')
    works(source)
    full.mend()
    moves(stage, source, 'host-c', full.disk, lambda: export.content, lambda: full.content)


def export_that_cannot_be_read(stage):
    """By the source, nor by its guest, which hears of it and writes on: what it wrote is there when it can read again."""
    export = Export(stage, 'export', 'error-pread=EIO', 'error-pread-rate=100%')
    source = run(stage, 'host-a', export.disk)
    works(source)
    place = ('--disk', f'root={path_of(stage, "copy")}')
    target = target_of(stage, 'host-b', place)
    export.fail()
    failed = done(source.host, 'migrate', 'vm', target.uri, *COPY, code=1)
    assert 'disk root' in failed.stderr and 'Input/output error' in failed.stderr, failed
    assert not os.path.exists(path_of(stage, 'copy')) and os.path.exists(path_of(stage, 'copy.partial'))
    before = disk_of(source)
    story.wait_until(lambda: disk_of(source)['written_bytes'] > before['written_bytes'] + MIB, 'writes')
    assert source.status()['running'] and disk_of(source)['failures'] > 0, source.status()
    export.mend()
    story.wait_until(lambda: disk_of(source)['read_bytes'] > before['read_bytes'], 'a read')
    works(source)

    def there():
        with open(path_of(stage, 'copy'), 'rb') as file:
            return file.read()
    moves(stage, source, 'host-c', place, lambda: export.content, there)


def export_that_cannot_be_looked_at(stage):
    """Nobody knows what it holds, so nothing replaces it unless that is said."""
    export = Export(stage, 'export', 'error-pread=EIO', 'error-pread-rate=100%')
    source = run(stage, 'host-a', ('--disk', f'root={path_of(stage, "disk")},size={DISK}'))
    works(source)
    target = target_of(stage, 'host-b', export.disk)
    export.fail()
    for more in (('--dry-run',), ()):
        refused = done(source.host, 'migrate', 'vm', target.uri, *COPY, *more, code=1)
        assert 'disk.place' in refused.stderr and 'Input/output error' in refused.stderr, refused
    assert export.content == bytes(DISK)
    works(source)
    forced = run(stage, 'host-c', export.disk, '--incoming', 'tcp:127.0.0.1:0', '--force')
    done(source.host, 'migrate', 'vm', forced.uri, *COPY)
    export.mend()
    story.wait_until(lambda: disk_of(forced)['read_bytes'] > 0, 'a read')
    works(forced)


if __name__ == '__main__':
    story.run(export_that_cannot_be_written, export_that_fills_up, export_that_cannot_be_read, export_that_cannot_be_looked_at)
