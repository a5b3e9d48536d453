#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests saved with their disks: one file holds all of it, and gives it back elsewhere."""
import os
import shutil
import signal
import subprocess

import story

MIB = 1 << 20
DISK = 24 * MIB + 512  # no whole number of pages
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=4M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def run(stage, name='disk', host='host-a', *more):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)},size={DISK}', *more)


def restore(stage, image, name, host, *more):
    host = stage.host(host)
    machine = story.Machine(host, 'vm', host.start('restore', path_of(stage, image), 'vm', '--disk', f'root={path_of(stage, name)}', *more))
    story.wait_until(lambda: machine.status()['status'] in ('running', 'paused'), 'the guest')
    return machine


def works(machine, more=50):
    """The guest goes on writing its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + more, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def content(stage, name):
    with open(path_of(stage, name), 'rb') as file:
        return file.read()


def saved_while_it_writes(stage):
    """The guest goes on; what comes back, in memory and on disk, is of one instant. Layers over it too."""
    machine = run(stage)
    works(machine)
    summary = done(machine.host, 'save', 'vm', path_of(stage, 'image'), '--disks', 'all', '--verify-disks', '--json').lines[-1]
    assert summary['outcome'] == 'completed' and summary['disk_total_bytes'] == DISK, summary
    works(machine)
    done(machine.host, 'save', 'vm', path_of(stage, 'layer'), '--disks', 'root', '--parent', path_of(stage, 'image'))
    works(machine)
    for number, (image, args) in enumerate((('image', ()), ('layer', ()), ('layer', ('--lazy',)), ('image', ('--buffered',)))):
        works(restore(stage, image, f'new{number}', f'host-{number}', *args))
        assert not os.path.exists(path_of(stage, f'new{number}.partial'))
    works(machine)


def saved_while_it_stands(stage):
    """Octet by octet: the last sector, which is no whole page, included."""
    with open(path_of(stage, 'disk'), 'wb') as file:
        file.truncate(DISK)
        file.seek(DISK - 512)
        file.write(b'the end!' * 64)
    machine = run(stage)
    works(machine)
    done(machine.host, 'save', 'vm', path_of(stage, 'image'), '--disks', 'all', '--stop', '--then', 'stop')
    back = restore(stage, 'image', 'new', 'host-b', '--paused')
    assert content(stage, 'new') == content(stage, 'disk')
    done(back.host, 'cont', 'vm')
    works(back)


def saved_as_it_is_now(stage):
    """At a point in time: the writes of the guest wait for what they are about to change to be read."""
    machine = run(stage)
    works(machine)
    slow = ('--max-bandwidth', '12M')  # so that all that the guest writes is written again meanwhile
    result = machine.host.vmferry('save', 'vm', path_of(stage, 'image'), '--disks', 'all', '--point-in-time', '--json', *slow)
    if result.code == story.SKIP:
        raise story.Skip(result.stderr)
    assert result.code == 0, result
    works(machine)
    done(machine.host, 'save', 'vm', path_of(stage, 'layer'), '--disks', 'all', '--point-in-time', *slow,
         '--parent', path_of(stage, 'image'))
    works(machine)
    for number, image in enumerate(('image', 'layer')):
        works(restore(stage, image, f'new{number}', f'host-{number}'), 1500)  # of which a set has 1024


def what_is_refused(stage):
    machine = run(stage)
    works(machine)
    image = path_of(stage, 'image')
    for args, word in ((('--disks', 'all', '--ram-only'), 'memory alone'), (('--disks', 'swap'), 'swap'), ((), '--disks all'),
                       (('--disks', 'all', '--point-in-time', '--verify-disks'), 'point in time')):
        refused = done(machine.host, 'save', 'vm', image, *args, code=2)
        assert word in refused.stderr and not os.path.exists(image), refused
    done(machine.host, 'save', 'vm', path_of(stage, 'bare'), '--ram-only')
    refused = done(machine.host, 'save', 'vm', image, '--disks', 'all', '--parent', path_of(stage, 'bare'), '--json', code=1)
    assert [line['id'] for line in refused.lines if line['type'] == 'error'] == ['image.parent'], refused
    done(machine.host, 'save', 'vm', image, '--disks', 'all')
    works(machine)
    other = stage.host('host-b')
    without = done(other, 'restore', image, 'vm', code=1)
    assert 'disk' in without.stderr, without
    swap = bytearray(DISK)
    swap[1024], swap[1028], swap[4086:4096] = 1, 100, b'SWAPSPACE2'
    with open(path_of(stage, 'swap'), 'wb') as file:
        file.write(swap)
    process = other.start('restore', image, 'vm', '--disk', f'root={path_of(stage, "swap")}')
    story.wait_until(lambda: process.poll() is not None or content(stage, 'swap') != swap, 'an answer')
    if process.poll() is None:
        raise story.Skip('built without libblkid')
    assert process.wait() == 1 and 'swap' in process.stderr.read() and content(stage, 'swap') == swap
    in_use = other.vmferry('restore', image, 'vm', '--disk', f'root={path_of(stage, "disk")}')
    assert in_use.code == 1, in_use
    works(machine)


def given_back_to_an_export(stage):
    """What was there before counts for nothing, where the image has zeros too."""
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    machine = run(stage)
    works(machine)
    done(machine.host, 'save', 'vm', path_of(stage, 'image'), '--disks', 'all', '--then', 'stop')
    with open(path_of(stage, 'export'), 'wb') as file:
        file.write(b'\xff' * DISK)
    socket = path_of(stage, 'nbd')
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-U', socket, 'file', path_of(stage, 'export')],
                                            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    story.wait_until(lambda: os.path.exists(socket), 'nbdkit')
    host = stage.host('host-b')
    back = story.Machine(host, 'vm', host.start('restore', path_of(stage, 'image'), 'vm', '--paused', '--disk',
                                                f'root=nbd+unix:///?socket={socket},no-lock'))
    story.wait_until(lambda: back.process.poll() is not None or back.status()['status'] == 'paused', 'the guest')
    assert back.process.poll() is None, back.process.stderr.read()
    assert content(stage, 'export')[:DISK] == content(stage, 'disk')


def a_file_system_is_clean(stage):
    """Saved while it writes its memory, at a point in time; the file system on its disk is what it was."""
    if not shutil.which('mkfs.ext4') or not shutil.which('e2fsck'):
        raise story.Skip('mkfs.ext4 and e2fsck are not installed')
    tree = path_of(stage, 'tree')
    os.mkdir(tree)
    for number in range(200):
        with open(os.path.join(tree, f'file{number}'), 'wb') as file:
            file.write(bytes([number]) * (number * 97))
    with open(path_of(stage, 'disk'), 'wb') as file:
        file.truncate(32 * MIB)
    subprocess.run(['mkfs.ext4', '-q', '-F', '-d', tree, path_of(stage, 'disk')], check=True)
    before = content(stage, 'disk')
    machine = stage.host('host-a').run('vm', '--guest', 'dirty=8M,set=4M', '--disk', f'root={path_of(stage, "disk")}')
    result = machine.host.vmferry('save', 'vm', path_of(stage, 'image'), '--disks', 'all', '--point-in-time')
    if result.code == story.SKIP:
        raise story.Skip(result.stderr)
    assert result.code == 0, result
    back = restore(stage, 'image', 'new', 'host-b', '--paused')
    assert back.status()['guest_errors'] == 0
    assert subprocess.run(['e2fsck', '-fn', path_of(stage, 'new')], capture_output=True, check=False).returncode == 0
    assert content(stage, 'new') == before == content(stage, 'disk')


def whoever_dies_leaves_what_was(stage):
    """Killed on the way: no image, or the old one; no disk, or the old one."""
    machine = run(stage)
    works(machine)
    done(machine.host, 'save', 'vm', path_of(stage, 'image'), '--disks', 'all')
    first = content(stage, 'image')
    done(machine.host, 'quit', 'vm')
    for number, args in enumerate(((), ('--point-in-time',))):
        dying = run(stage, f'disk{number}', f'dying-{number}', '--fault', 'source.image.commit.due=kill')
        works(dying)
        result = dying.host.vmferry('save', 'vm', path_of(stage, 'image'), '--disks', 'all', *args)
        assert result.code != 0 and dying.wait() == -signal.SIGKILL, result
        assert content(stage, 'image') == first
    for number, point in enumerate(('restore.disks', 'restore.loaded', 'restore.start')):
        host = stage.host(f'killed-{number}')
        machine = story.Machine(host, 'vm', host.start('restore', path_of(stage, 'image'), 'vm', '--disk',
                                                       f'root={path_of(stage, f"new{number}")}', '--fault', f'{point}=kill'))
        assert machine.wait() == -signal.SIGKILL, point
        works(restore(stage, 'image', f'new{number}', f'again-{number}', '--force'))


if __name__ == '__main__':
    story.run(saved_while_it_writes, saved_while_it_stands, saved_as_it_is_now, what_is_refused, given_back_to_an_export,
              a_file_system_is_clean, whoever_dies_leaves_what_was)
