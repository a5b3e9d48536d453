#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that are restored at once and use their disks while these are still in the image."""
import json
import os
import shutil
import signal
import socket
import subprocess

import story

MIB = 1 << 20
DISK = 40 * MIB + 512  # more than memory, and no whole number of pages
LIMIT = ('--downtime-limit', '30s')  # storage may be slow to sync
GUEST = ('--guest', 'dirty=4M,set=2M,disk=8M,disk-set=32M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def has(stage, name):
    return os.path.exists(path_of(stage, name))


def content(stage, name):
    with open(path_of(stage, name), 'rb') as file:
        return file.read()


def works(machine, more=50):
    """The guest goes on using its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + more, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def image_of(stage, layers=0):
    """Of a guest that has been at its disk for a while: the image, or the youngest of layers over it."""
    machine = stage.host('host-a').run('vm', *GUEST, '--disk', f'root={path_of(stage, "disk")},size={DISK}')
    works(machine, 3000)
    done(machine.host, 'save', 'vm', path_of(stage, 'image0'), '--disks', 'all', *LIMIT)
    for number in range(layers):
        works(machine, 200)
        done(machine.host, 'save', 'vm', path_of(stage, f'image{number + 1}'), '--disks', 'all', *LIMIT,
             '--parent', path_of(stage, f'image{number}'))
    done(machine.host, 'quit', 'vm')
    return path_of(stage, f'image{layers}')


def restore(host, image, *args):
    disk = path_of(host.stage, 'new')
    return story.Machine(host, 'vm', host.start('restore', image, 'vm', '--lazy', '--disk', f'root={disk}', '--json', *args))


def line_of(machine, kind, **members):
    """The next JSON line of this type."""
    while True:
        line = machine.process.stdout.readline()
        assert line, machine.process.stderr.read()
        found = json.loads(line)
        if found['type'] == kind and members.items() <= found.items():
            return found


def whole(machine):
    """Until all is there; the summary."""
    summary = line_of(machine, 'summary')
    assert summary['lazy'] and summary['disk_total_bytes'] == DISK and summary['disk_remaining_bytes'] == 0, summary
    assert has(machine.host.stage, 'new') and not has(machine.host.stage, 'new.partial')
    return summary


def it_runs_on_a_disk_that_is_not_there(stage):
    machine = restore(stage.host('host-b'), image_of(stage, 2))
    line_of(machine, 'event', id='restore.started')
    summary = whole(machine)
    assert 0 < summary['start_ns'] <= summary['total_ns'], summary
    assert summary['disk_fault_max_ns'] >= summary['disk_fault_p99_ns'] >= summary['disk_fault_p50_ns'], summary
    assert (summary['disk_faults'] > 0) == (summary['disk_fault_max_ns'] > 0), summary
    works(machine, 3000)


class Server:
    """nbdkit over an image, which can be told to answer nothing for a while."""

    def __init__(self, stage, image):
        if not shutil.which('nbdkit'):
            raise story.Skip('nbdkit is not installed')
        self.path, self.control = path_of(stage, 'nbd'), path_of(stage, 'pause')
        stage.processes.append(subprocess.Popen(
            ['nbdkit', '-f', '-r', '-U', self.path, '--filter=pause', 'file', image, f'pause-control={self.control}'],
            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        story.wait_until(lambda: os.path.exists(self.path) and os.path.exists(self.control), 'nbdkit')
        self.uri = f'nbd+unix:///?socket={self.path}'

    def tell(self, word):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(story.PATIENCE_S)
            control.connect(self.control)
            control.sendall(word)
            assert control.recv(1) == word.upper()


def at_rest(stage, host, server):
    """Its memory is there, of its disk what it has asked for, and nothing more comes."""
    machine = restore(host, server.uri, '--fault', 'restore.disks.rest=stop')
    pid = machine.process.pid
    story.wait_until(lambda: story.is_stopped(pid), 'the stop')
    server.tell(b'p')
    os.kill(pid, signal.SIGCONT)
    assert has(stage, 'new.partial') and not has(stage, 'new')
    return machine


def it_moves_on_while_its_disk_comes(stage):
    """From an export, with its disk; the migration begins on a disk of which most is still in the image."""
    server = Server(stage, image_of(stage))
    machine = at_rest(stage, stage.host('host-b'), server)
    there = stage.host('host-c').run('vm', *GUEST, '--incoming', 'unix:' + path_of(stage, 'socket'),
                                     '--disk', f'root={path_of(stage, "moved")}')
    moving = machine.host.start('migrate', 'vm', there.uri, '--disks', 'all', '--json', '--switchover-timeout', '30s', *LIMIT)
    story.wait_until(lambda: (machine.status()['migration'] or {}).get('status') in ('setup', 'active'), 'the migration')
    assert has(stage, 'new.partial') and not has(stage, 'new') and not has(stage, 'moved')
    server.tell(b'r')
    out, error = moving.communicate(timeout=story.PATIENCE_S)
    assert moving.returncode == 0, (out, error)
    assert machine.wait() == 0
    works(there, 3000)
    assert has(stage, 'new') and not has(stage, 'new.partial')


def it_is_quit_while_its_disk_comes(stage):
    image = image_of(stage)
    machine = at_rest(stage, stage.host('host-b'), Server(stage, image))
    refused = done(machine.host, 'backup', 'vm', 'root', path_of(stage, 'backup'), code=1)
    assert 'still being restored' in refused.stderr, refused
    done(machine.host, 'quit', 'vm', '--force')
    machine.wait()
    assert not has(stage, 'new')
    again = restore(stage.host('host-c'), image)  # nbdkit may abort when a caller goes whose request it has paused
    whole(again)
    works(again)


def a_host_that_dies_leaves_no_half_of_a_disk(stage):
    image = image_of(stage)
    first = content(stage, 'image0')
    for number, point in enumerate(('restore.disks', 'restore.start', 'restore.disks.rest', 'restore.disks.filled', 'restore.disks.named')):
        machine = restore(stage.host(f'killed-{number}'), image, '--fault', f'{point}=kill')
        assert machine.wait() == -signal.SIGKILL, point
        assert has(stage, 'new') == (point == 'restore.disks.named')
        again = restore(stage.host(f'again-{number}'), image, '--force')
        whole(again)
        works(again)
        done(again.host, 'quit', 'vm')
        os.unlink(path_of(stage, 'new'))
    assert content(stage, 'image0') == first


def damage_holds_it(stage):
    """It hears nothing of it, whether it has asked for the part or not."""
    image = image_of(stage)
    octets = bytearray(content(stage, 'image0'))
    used = [at for at in range(20 * MIB, len(octets) - 65536, 4096) if any(octets[at:at + 4096])]
    for share in (0.5, 0.7, 0.9):
        octets[used[int(len(used) * share)] + 99] ^= 8
    with open(image, 'wb') as file:
        file.write(octets)
    machine = restore(stage.host('host-b'), image)
    why = story.wait_until(lambda: (machine.status()['migration'] or {}).get('hold_reason'), 'the hold')
    assert 'a part of a disk cannot be had' in why and 'disk root, page ' in why, why
    status = machine.status()
    assert status['status'] == 'finish-migrate' and status['guest_errors'] == 0, status
    assert 'stands still: a part of a disk cannot be had' in done(machine.host, 'status', 'vm').stdout
    refused = done(machine.host, 'cont', 'vm', code=4)
    assert 'held' in refused.stderr, refused
    assert not has(stage, 'new') and has(stage, 'new.partial')
    done(machine.host, 'resolve', 'vm', '--discard')
    assert machine.wait() == 1
    assert not has(stage, 'new')


def an_export_is_written_first(stage):
    """Nothing would say that it is not whole."""
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    image = image_of(stage)
    with open(path_of(stage, 'export'), 'wb') as file:
        file.write(b'\xff' * DISK)
    path = path_of(stage, 'nbd')
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-U', path, 'file', path_of(stage, 'export')],
                                            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    story.wait_until(lambda: os.path.exists(path), 'nbdkit')
    host = stage.host('host-b')
    machine = story.Machine(host, 'vm', host.start('restore', image, 'vm', '--lazy', '--json',
                                                   '--disk', f'root=nbd+unix:///?socket={path},no-lock'))
    summary = line_of(machine, 'summary')
    assert summary['disk_faults'] == 0 and summary['disk_total_bytes'] == DISK, summary
    works(machine, 3000)


if __name__ == '__main__':
    story.run(it_runs_on_a_disk_that_is_not_there, it_moves_on_while_its_disk_comes, it_is_quit_while_its_disk_comes,
              a_host_that_dies_leaves_no_half_of_a_disk, damage_holds_it, an_export_is_written_first)
