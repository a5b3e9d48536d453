#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests with disks: they move between hosts that share the file, one host has it at every point of a handover, images know it again."""
import fcntl
import os
import resource
import signal
import struct
import subprocess

import story

MIB = 1 << 20
F_OFD_SETLK = 37
GUEST = ('--guest', 'dirty=8M,set=4M,disk=4M,disk-set=4M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def disk_of(stage, *settings, name='disk'):
    return ('--disk', ','.join((f'root={os.path.join(stage.directory, name)}', 'size=16M', *settings)))


def works(machine):
    """The guest goes on writing its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + 50, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def holds(machine):
    return machine.status()['disks'][0]['locked']


def shared_disk_moves(stage):
    """There and back, and there again: one file, one owner, no error that the guest could find."""
    machines = [stage.host('host-a').run('vm', *GUEST, *disk_of(stage))]
    for number in range(4):
        works(machines[-1])
        target = stage.host(f'host-{number}').run('vm', *GUEST, *disk_of(stage), '--incoming', 'tcp:127.0.0.1:0')
        assert not holds(target)
        done(machines[-1].host, 'migrate', 'vm', target.uri, '--audit', 'before', '--switchover-timeout', '30s', '--keep')
        assert holds(target) and not holds(machines[-1])
        refused = machines[-1].host.vmferry('cont', 'vm')
        assert refused.code == 1, refused
        machines.append(target)
    works(machines[-1])


def second_owner_is_refused(stage):
    first = stage.host('host-a').run('vm', *GUEST, *disk_of(stage))
    works(first)
    refused = stage.host('host-b').vmferry('run', 'vm', '--backend', stage.backend, '--memory', '16M', *disk_of(stage), '--json')
    assert refused.code == 1 and refused.lines[-1]['id'] == 'storage.locked', refused
    works(first)
    first.process.kill()
    first.wait()
    works(stage.host('host-c').run('vm', *GUEST, *disk_of(stage)))  # its lock went with it


def lock_that_the_target_cannot_have(stage):
    """Another VMM writes the file that the target's name leads to, with QEMU's locks: the guest stays."""
    source = stage.host('host-a').run('vm', *GUEST, *disk_of(stage))
    works(source)
    other = os.path.join(stage.directory, 'other')
    with open(other, 'wb') as file:
        file.truncate(16 * MIB)
    with open(other, 'r+b') as file:
        for octet in (100, 101, 103, 201, 203):
            fcntl.fcntl(file, F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_RDLCK, os.SEEK_SET, octet, 1, 0))
        target = stage.host('host-b').run('vm', *GUEST, *disk_of(stage, name='other'), '--incoming', 'tcp:127.0.0.1:0')
        refused = source.host.vmferry('migrate', 'vm', target.uri)
        assert refused.code == 1 and 'another uses it' in refused.stderr, refused
    assert source.status()['running'] and holds(source)
    works(source)


def a_handover_that_is_cut_has_one_owner(stage):
    """Whatever step one side dies at: never two writers, and whoever has the guest in the end finds its disk as it left it."""
    points = ('source.storage.release.due', 'source.storage.release.done', 'source.send.switchover.done', 'target.storage.acquire.due',
              'target.storage.acquire.done', 'target.send.ready.due', 'source.send.run.due', 'source.send.run.done')
    for number, point in enumerate(points):
        side = point.split('.')[0]
        fault = ('--fault', f'{point}=kill')
        settings = (*GUEST, *disk_of(stage, name=f'disk{number}'))
        source = stage.host(f'source-{number}').run('vm', *settings, *(fault if side == 'source' else ()))
        works(source)
        target = stage.host(f'target-{number}').run('vm', *settings, '--incoming', 'tcp:127.0.0.1:0', *(fault if side == 'target' else ()))
        source.host.vmferry('migrate', 'vm', target.uri)
        dead, alive = (source, target) if side == 'source' else (target, source)
        assert dead.wait() == -signal.SIGKILL, point
        if alive is source or point == 'source.send.run.done':
            story.wait_until(lambda m=alive: m.status()['running'], f'{point}: the guest goes on')
            works(alive)
        else:
            status = alive.host.vmferry('status', 'vm', '--json')  # it may have ended with the migration
            assert status.code != 0 or not status.lines[-1]['running'], point
        alive.process.kill()
        alive.wait()
        again = stage.host(f'again-{number}').run('vm', *settings)
        works(again)
        again.process.kill()
        again.wait()


def image_knows_its_disk(stage):
    host = stage.host('host-a')
    first = host.run('vm', *GUEST, *disk_of(stage))
    works(first)
    image = os.path.join(stage.directory, 'image')
    refused = host.vmferry('save', 'vm', image)
    assert refused.code == 2 and '--ram-only' in refused.stderr and not os.path.exists(image), refused
    works(first)
    done(host, 'save', 'vm', image, '--then', 'stop')
    other = stage.host('host-b')
    busy = other.vmferry('restore', image, 'vm', *disk_of(stage))
    assert busy.code == 1 and 'another uses it' in busy.stderr, busy
    done(host, 'quit', 'vm')
    first.wait()
    without = other.vmferry('restore', image, 'vm')
    assert without.code == 1 and 'disk.0' in without.stderr, without
    back = story.Machine(other, 'vm', other.start('restore', image, 'vm', *disk_of(stage)))
    story.wait_until(lambda: back.status()['running'], 'the guest is back')
    works(back)
    done(other, 'quit', 'vm')
    back.wait()
    stale = other.vmferry('restore', image, 'vm', *disk_of(stage), '--json')
    assert stale.code == 1 and stale.lines[-1]['id'] == 'image.disk', stale
    forced = story.Machine(other, 'vm', other.start('restore', image, 'vm', *disk_of(stage), '--force-stale-disks', '--paused'))
    assert 'restored from' in forced.process.stdout.readline()
    done(other, 'quit', 'vm')
    forced.wait()
    told = forced.process.stderr.read()
    assert told.startswith('vmferry: vm: disk root: ') or told.startswith('vmferry: vm: disk.0: '), told


def full_storage_is_the_guests_to_know(stage):
    """The file may not grow: writes fail, the guest is told, and everybody lives, also on the way to another host."""
    path = os.path.join(stage.directory, 'disk')
    with open(path, 'wb') as file:
        file.truncate(16 * MIB)
    host = stage.host('host-a')

    def limit():
        story.die_with_parent()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, resource.RLIM_INFINITY))

    process = subprocess.Popen([stage.vmferry, 'run', 'vm', '--backend', stage.backend, '--memory', '16M', *GUEST,
                                '--disk', f'root={path}'],
                               env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=limit)
    stage.processes.append(process)
    machine = story.Machine(host, 'vm', process)
    story.wait_until(lambda: machine.status()['disks'][0]['failures'] > 10, 'failures')
    before = machine.status()
    story.wait_until(lambda: machine.status()['beats'] > before['beats'] + 100, 'beats')
    target = stage.host('host-b').run('vm', *GUEST, '--disk', f'root={path}', '--incoming', 'tcp:127.0.0.1:0')
    done(host, 'migrate', 'vm', target.uri, '--audit', 'before', '--switchover-timeout', '30s')
    works(target)


if __name__ == '__main__':
    story.run(shared_disk_moves, second_owner_is_refused, lock_that_the_target_cannot_have, a_handover_that_is_cut_has_one_owner,
              image_knows_its_disk, full_storage_is_the_guests_to_know)
