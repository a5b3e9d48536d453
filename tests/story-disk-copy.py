#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests whose disks are copied along: they arrive whole, or the guest goes on where it is with the disk that it has."""
import errno
import os
import resource
import signal
import subprocess

import story

MIB = 1 << 20
DISK = 24 * MIB
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=4M')
VERIFY_STREAM = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-stream')
COPY = ('--disks', 'all', '--switchover-timeout', '30s', '--downtime-limit', '30s')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def path_of(stage, name):
    return os.path.join(stage.directory, name)


def source_of(stage, name, host='host-a', *more):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)},size={DISK}', *more)


def target_of(stage, name, host='host-b', *more):
    return stage.host(host).run('vm', *GUEST, '--disk', f'root={path_of(stage, name)}', '--incoming', 'tcp:127.0.0.1:0', *more)


def works(machine):
    """The guest goes on writing its disk, and finds nothing wrong with it."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + 50, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def content(stage, name):
    with open(path_of(stage, name), 'rb') as file:
        return file.read()


def disk_moves_with_the_guest(stage):
    """From file to file: the guest finds what it wrote; the last one arrives paused, and both files are the same then."""
    machine = source_of(stage, 'disk0')
    for number in range(3):
        works(machine)
        target = target_of(stage, f'disk{number + 1}', f'host-{number}')
        asked = done(machine.host, 'migrate', 'vm', target.uri, *COPY, '--dry-run')
        assert 'would take it' in asked.stdout + asked.stderr, asked
        assert not os.path.exists(path_of(stage, f'disk{number + 1}.partial'))
        if number == 2:
            done(machine.host, 'stop', 'vm')
        more = ('--mirror',) if number == 1 else ()
        checked = ('--audit', 'before', '--verify-disks')
        moved = done(machine.host, 'migrate', 'vm', target.uri, *COPY, *more, *checked, '--keep', '--json').lines[-1]
        assert moved['disk_total_bytes'] == DISK and moved['disk_remaining_bytes'] == 0 and moved['disk_sent_bytes'] > 0, moved
        assert target.status()['disks'][0]['locked'] and not machine.status()['disks'][0]['locked']
        assert machine.host.vmferry('cont', 'vm').code == 1
        before, machine = machine, target
        if number < 2:
            done(before.host, 'quit', 'vm')
            before.wait()
    assert content(stage, 'disk2') == content(stage, 'disk3')
    done(machine.host, 'cont', 'vm')
    works(machine)


def what_is_left_behind_can_be_started(stage):
    """docs/operations.rst says so, and what keeps it from that."""
    source = source_of(stage, 'disk', 'host-a', '--lock', path_of(stage, 'lock'))
    works(source)
    target = target_of(stage, 'copy', 'host-b', '--lock', path_of(stage, 'lock'))
    done(source.host, 'migrate', 'vm', target.uri, *COPY)
    source.wait()
    disk = ('--disk', f'root={path_of(stage, "disk")}')
    refused = source.host.vmferry('run', 'vm', '--daemon', *GUEST, *disk, '--lock', path_of(stage, 'lock'))
    assert refused.code == 1 and 'another holds it' in refused.stderr, refused
    second = source.host.run('vm', *GUEST, *disk)
    works(second)
    works(target)


def place_that_cannot_take_it(stage):
    """Smaller, in use, a filesystem: said before a byte moves, and by a dry run too; the guest stays."""
    source = source_of(stage, 'disk')
    works(source)
    with open(path_of(stage, 'small'), 'wb') as file:
        file.truncate(DISK - 512)
    in_use = source_of(stage, 'in-use', 'host-c')
    places = {'small': 'bytes, the disk that comes', 'in-use': 'another uses it'}
    if subprocess.run(['sh', '-c', 'command -v mkswap'], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        with open(path_of(stage, 'swap'), 'wb') as file:
            file.truncate(DISK)
        subprocess.run(['mkswap', '-q', path_of(stage, 'swap')], check=True, stderr=subprocess.DEVNULL)
        places['swap'] = 'swap'
    for name, what in places.items():
        before = content(stage, name) if name != 'in-use' else None
        target = target_of(stage, name, f'host-{name}')
        for more in (('--dry-run',), ()):
            refused = source.host.vmferry('migrate', 'vm', target.uri, *COPY, *more)
            if name == 'swap' and refused.code == 0:
                raise story.Skip('built without libblkid')
            assert refused.code == 1 and 'disk.place' in refused.stderr and what in refused.stderr, refused
            assert 'hint: name another place' in refused.stderr, refused
        assert before is None or content(stage, name) == before
        works(source)
    works(in_use)
    if 'swap' in places:
        forced = target_of(stage, 'swap', 'host-forced', '--force')
        done(source.host, 'migrate', 'vm', forced.uri, *COPY)
        works(forced)


def device_that_is_in_use(stage):
    """Mounted, say: it is not copied to, whatever is said. What is copied to is not mounted meanwhile."""
    source = source_of(stage, 'disk')
    works(source)
    with open(path_of(stage, 'area'), 'wb') as file:
        file.truncate(DISK)
    with story.device_of(path_of(stage, 'area')) as device:
        target = target_of(stage, device, 'host-b', '--force')
        with story.in_use(device):
            for more in (('--dry-run',), ()):
                refused = source.host.vmferry('migrate', 'vm', target.uri, *COPY, *more)
                assert refused.code == 1 and 'disk.place' in refused.stderr and 'it is mounted, or in use' in refused.stderr, refused
        assert not any(content(stage, 'area'))
        target = target_of(stage, device, 'host-c', '--force')
        migration = source.host.start('migrate', 'vm', target.uri, *COPY, '--pause-before-switchover')
        story.wait_until(lambda: (source.status()['migration'] or {}).get('status') == 'pre-switchover', 'it is copied')
        try:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        except OSError as busy:
            assert busy.errno == errno.EBUSY, busy
        else:
            raise AssertionError('anybody could mount it')
        done(source.host, 'cont', 'vm')
        assert migration.wait(story.PATIENCE_S) == 0
        works(target)
        target.process.kill()
        target.wait()


def disks_that_are_not_there(stage):
    source = source_of(stage, 'disk')
    target = target_of(stage, 'copy')
    for names in ('data', 'root,data'):
        wrong = source.host.vmferry('migrate', 'vm', target.uri, '--disks', names)
        assert wrong.code == 2 and "'data'" in wrong.stderr, wrong
    # Not copied, and nothing there that could be shared.
    shared = source.host.vmferry('migrate', 'vm', target.uri, '--disks', 'none')
    assert shared.code == 1 and 'disk.size' in shared.stderr, shared
    works(source)


def handover_that_is_cut_leaves_one_disk(stage):
    """At each step one side dies: the guest goes on at one end, with the disk of that end."""
    points = ('source.storage.release.done', 'source.send.switchover.done', 'target.arrived', 'target.storage.acquire.done',
              'target.send.ready.due', 'source.send.run.due')
    for number, point in enumerate(points):
        side = point.split('.')[0]
        fault = ('--fault', f'{point}=kill')
        source = source_of(stage, f'disk{number}', f'source-{number}', *(fault if side == 'source' else ()))
        works(source)
        target = target_of(stage, f'copy{number}', f'target-{number}', *(fault if side == 'target' else ()))
        source.host.vmferry('migrate', 'vm', target.uri, *COPY)
        dead, alive = (source, target) if side == 'source' else (target, source)
        assert dead.wait() == -signal.SIGKILL, point
        if alive is source:
            story.wait_until(lambda m=source: m.status()['running'], f'{point}: the guest goes on')
            works(source)
        alive.process.kill()
        alive.wait()


def full_target_is_heard_of(stage):
    """The file may not grow there: the guest stays, its disk untouched, and what is left there is marked."""
    source = source_of(stage, 'disk')
    works(source)

    def limit():
        story.die_with_parent()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))

    host = stage.host('host-b')
    process = subprocess.Popen([stage.vmferry, 'run', 'vm', '--backend', stage.backend, '--memory', '16M', *GUEST, '--disk',
                                f'root={path_of(stage, "copy")}', '--incoming', 'tcp:127.0.0.1:0'], env=host.environment,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    stage.processes.append(process)
    target = story.Machine(host, 'vm', process)
    failed = source.host.vmferry('migrate', 'vm', target.uri, *COPY)
    assert failed.code == 1 and 'disk root' in failed.stderr, failed
    assert not os.path.exists(path_of(stage, 'copy'))
    works(source)


def programs_see_disks(stage):
    """Parameters, statistics and QEMU's own object."""
    source = source_of(stage, 'disk')
    works(source)
    target = target_of(stage, 'copy')
    qmp = source.qmp()
    assert qmp.run('query-migrate-parameters')['x-vmferry-disks'] == 'none'
    assert 'error' in qmp.command('migrate-set-parameters', x_vmferry_disks=1)
    qmp.run('migrate-set-parameters', x_vmferry_disks='root')
    assert qmp.run('query-migrate-parameters')['x-vmferry-disks'] == 'root'
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'events', 'state': True}])
    qmp.run('migrate', uri=target.uri)
    qmp.event('MIGRATION', status='completed')
    info = qmp.run('query-migrate')
    assert info['disk']['total'] == DISK and info['disk']['remaining'] == 0 and info['disk']['transferred'] > 0, info
    qmp.close()
    works(target)


def disk_lies_in_a_stream(stage):
    """Written to a file with its disk, which the independent reader finds right, and read from there as another disk."""
    source = source_of(stage, 'disk')
    works(source)
    stream = path_of(stage, 'stream')
    done(source.host, 'migrate', 'vm', f'file:{stream}', '--disks', 'all')
    read = subprocess.run(['/usr/bin/python3', '-B', VERIFY_STREAM, stream], capture_output=True, text=True, check=False)
    assert read.returncode == 0 and f'copied disks: root ({DISK} octets' in read.stdout, read
    target = stage.host('host-b').run('vm', *GUEST, '--disk', f'root={path_of(stage, "copy")}', '--incoming', f'file:{stream}', '--paused')
    story.wait_until(lambda: target.status()['status'] == 'paused', 'it has arrived')
    assert content(stage, 'disk') == content(stage, 'copy')
    done(target.host, 'cont', 'vm')
    works(target)


def silent_server_is_given_up(stage):
    """By a target that looks at the place, or writes the copy, and by a machine whose own disk it is."""
    source = source_of(stage, 'disk')
    for silent in ('read', 'write'):
        disk, has_come = story.disk_on_silent_server(stage, silent, silent, DISK)
        target = stage.host(f'host-{silent}').run('vm', *GUEST, '--disk', disk, '--incoming', 'tcp:127.0.0.1:0')
        migration = source.host.start('migrate', 'vm', target.uri, *COPY)
        has_come()
        done(target.host, 'quit', 'vm', '--force')
        assert target.wait() == 0, target.process.stderr.read()
        migration.communicate(timeout=story.PATIENCE_S)
        assert migration.returncode == 1
        works(source)
    for way in ('quit', 'signal'):
        disk, has_come = story.disk_on_silent_server(stage, way, 'write', DISK)
        machine = stage.host(f'host-{way}').run('vm', *GUEST, '--disk', disk)
        has_come()
        if way == 'quit':
            done(machine.host, 'quit', 'vm', '--force')
        else:
            machine.process.terminate()
        assert machine.wait() == 0


if __name__ == '__main__':
    story.run(disk_moves_with_the_guest, disk_lies_in_a_stream, what_is_left_behind_can_be_started,
              place_that_cannot_take_it, device_that_is_in_use, disks_that_are_not_there, handover_that_is_cut_leaves_one_disk,
              full_target_is_heard_of, programs_see_disks, silent_server_is_given_up)
