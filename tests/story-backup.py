#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dirty bitmaps and backups of a guest that writes all the while: what base and increments hold is the disk, whatever was killed."""
import json
import os
import random
import shutil
import signal
import socket
import subprocess

import story

MIB = 1 << 20
GUEST = ('--guest', 'dirty=8M,set=4M,disk=8M,disk-set=6M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def disk_of(stage):
    return ('--disk', f'root={os.path.join(stage.directory, "disk")},size=16M')


def bitmaps(machine, *disk):
    lines = done(machine.host, 'bitmap', 'vm', *disk, '--json').lines
    return {line['bitmap']: line for line in lines if line['type'] == 'status'}


def writes(machine, number=200):
    """So many more by the guest, which finds nothing wrong with them."""
    before = machine.status()['disks'][0]['writes']
    story.wait_until(lambda: machine.status()['disks'][0]['writes'] > before + number, 'writes')
    status = machine.status()
    assert status['guest_errors'] == 0 and status['disks'][0]['failures'] == 0, status


def same(stage, machine):
    """The backup is the disk, once the guest stands and what it wrote last was added."""
    done(machine.host, 'stop', 'vm')
    done(machine.host, 'backup', 'vm', 'root', os.path.join(stage.directory, 'backup'), '--bitmap', 'daily')
    with open(os.path.join(stage.directory, 'disk'), 'rb') as disk, open(os.path.join(stage.directory, 'backup'), 'rb') as backup:
        assert disk.read() == backup.read(), 'the backup differs from the disk'
    done(machine.host, 'cont', 'vm')


def base(stage, machine):
    done(machine.host, 'bitmap', 'vm', 'root', 'add', 'daily', '--persistent', '--granularity', '4K')
    done(machine.host, 'backup', 'vm', 'root', os.path.join(stage.directory, 'backup'), '--bitmap', 'daily', '--full')


def a_chain_of_backups(stage):
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    writes(machine)
    base(stage, machine)
    for _ in range(5):
        writes(machine)
        line = done(machine.host, 'backup', 'vm', 'root', os.path.join(stage.directory, 'backup'), '--bitmap', 'daily', '--json').lines[-1]
        assert line['type'] == 'summary' and line['outcome'] == 'completed' and line['done_bytes'] == line['total_bytes'] > 0, line
        assert line['total_bytes'] <= 8 * MIB, line
    same(stage, machine)
    writes(machine)


def machine_that_is_killed(stage):
    """In the middle of its backups, ten times: the bitmap has all that its base does not."""
    chance = random.Random(8)
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    base(stage, machine)
    for _ in range(10):
        writes(machine, 20)
        backup = machine.host.start('backup', 'vm', 'root', os.path.join(stage.directory, 'backup'), '--bitmap', 'daily',
                                    '--max-bandwidth', '8M')
        story.wait_until(lambda: chance.random() < 0.2, 'a moment')
        machine.process.kill()
        machine.wait()
        backup.communicate(timeout=story.PATIENCE_S)
        machine = machine.host.run('vm', *GUEST, *disk_of(stage))
        daily = bitmaps(machine)['daily']
        assert daily['persistent'] and daily['recording'] and not daily['inconsistent'], daily
        same(stage, machine)


def backup_that_is_cancelled(stage):
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    base(stage, machine)
    writes(machine)
    done(machine.host, 'stop', 'vm')  # what it is about to write is copied ahead of the limit, and may be all
    backup = machine.host.start('backup', 'vm', 'root', os.path.join(stage.directory, 'backup'), '--bitmap', 'daily',
                                '--max-bandwidth', '4K', '--json')
    story.wait_until(lambda: bitmaps(machine)['daily']['busy'], 'the backup')
    refused = machine.host.vmferry('bitmap', 'vm', 'root', 'clear', 'daily')
    assert refused.code == 1 and 'a backup uses it' in refused.stderr, refused
    backup.send_signal(signal.SIGINT)
    stdout, _ = backup.communicate(timeout=story.PATIENCE_S)
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert backup.returncode == 1 and lines[-1]['outcome'] == 'cancelled' and lines[-2]['id'] == 'cancelled', lines
    assert not bitmaps(machine)['daily']['busy']
    done(machine.host, 'cont', 'vm')
    same(stage, machine)
    done(machine.host, 'stop', 'vm')
    full = machine.host.start('backup', 'vm', 'root', os.path.join(stage.directory, 'other'), '--max-bandwidth', '4K')
    qmp = machine.qmp()
    story.wait_until(lambda: qmp.run('query-block-jobs'), 'the job')
    qmp.run('block-job-cancel', device='root')
    qmp.event('BLOCK_JOB_CANCELLED', device='root', type='backup')
    full.communicate(timeout=story.PATIENCE_S)
    assert full.returncode == 1 and not os.path.exists(os.path.join(stage.directory, 'other'))
    assert not os.path.exists(os.path.join(stage.directory, 'other.partial'))


def qmps_words(stage):
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    qmp = machine.qmp()
    qmp.run('block-dirty-bitmap-add', node='root', name='a', granularity=512, persistent=True)
    qmp.run('block-dirty-bitmap-add', node='root', name='b', disabled=True)
    writes(machine)
    qmp.run('block-dirty-bitmap-merge', node='root', target='b', bitmaps=['a', {'node': 'root', 'name': 'a'}])
    inserted = qmp.run('query-block')[0]['inserted']
    a, b = inserted['dirty-bitmaps']
    assert inserted['node-name'] == 'root' and inserted['image']['virtual-size'] == 16 * MIB, inserted
    assert a['recording'] and a['persistent'] and a['granularity'] == 512 and a['count'] > 0, a
    assert not b['recording'] and not b['persistent'] and b['granularity'] == 65536 and b['count'] > 0, b
    qmp.run('block-dirty-bitmap-disable', node='root', name='a')
    qmp.run('block-dirty-bitmap-clear', node='root', name='a')
    writes(machine)
    assert qmp.run('query-block')[0]['inserted']['dirty-bitmaps'][0]['count'] == 0
    qmp.run('block-dirty-bitmap-enable', node='root', name='a')
    writes(machine)
    assert qmp.run('query-block')[0]['inserted']['dirty-bitmaps'][0]['count'] > 0
    for bad in ({'name': 'c', 'granularity': 3}, {'name': 'c', 'granularity': -1}, {'name': 'c', 'granularity': 0}, {'name': 'a'},
                {'name': ''}):
        assert qmp.command('block-dirty-bitmap-add', node='root', **bad)['error']['x-vmferry-id'] == 'usage', bad
    for command, arguments in (('block-dirty-bitmap-remove', {'node': 'root', 'name': 'c'}),
                               ('block-dirty-bitmap-clear', {'node': 'x', 'name': 'a'}),
                               ('block-dirty-bitmap-merge', {'node': 'root', 'target': 'a', 'bitmaps': [{'node': 'x', 'name': 'b'}]}),
                               ('block-dirty-bitmap-merge', {'node': 'root', 'target': 'a', 'bitmaps': [7]}),
                               ('drive-backup', {'device': 'root', 'target': 'file:/x', 'sync': 'none'}),
                               ('drive-backup', {'device': 'root', 'target': 'file:/x', 'sync': 'incremental'}),
                               ('drive-backup', {'device': 'x', 'target': 'file:/x', 'sync': 'full'})):
        assert qmp.command(command, **arguments)['error']['x-vmferry-id'] == 'usage', (command, arguments)
    target = 'file:' + os.path.join(stage.directory, 'backup')
    qmp.run('drive-backup', device='root', target=target, sync='full', bitmap='b', job_id='night')
    end = qmp.event('BLOCK_JOB_COMPLETED', device='night')['data']
    assert end['len'] == end['offset'] == 16 * MIB and 'error' not in end, end
    qmp.run('block-dirty-bitmap-remove', node='root', name='a')
    assert not os.path.exists(os.path.join(stage.directory, 'disk.bitmaps'))


def shared_disk_takes_its_bitmaps_along(stage):
    """They lie beside the disk: who acquires it next goes on with them."""
    source = stage.host('host-a').run('vm', *GUEST, *disk_of(stage))
    base(stage, source)
    target = stage.host('host-b').run('vm', *GUEST, *disk_of(stage), '--incoming', 'tcp:127.0.0.1:0')
    done(source.host, 'migrate', 'vm', target.uri, '--switchover-timeout', '30s')
    writes(target)
    daily = bitmaps(target)['daily']
    assert daily['persistent'] and daily['recording'] and not daily['inconsistent'], daily
    same(stage, target)


def bitmaps_move_with_a_copied_disk(stage):
    """Under another name, and not persistent any more; one that means nothing there fails it."""
    source = stage.host('host-a').run('vm', *GUEST, *disk_of(stage))
    done(source.host, 'bitmap', 'vm', 'root', 'add', 'daily', '--persistent')
    done(source.host, 'bitmap', 'vm', 'root', 'add', 'other', '--granularity', '512')
    writes(source)
    there = ('--disk', f'root={os.path.join(stage.directory, "copy")}')
    out = json.dumps([{'node-name': 'root', 'alias': 'system', 'bitmaps': [
        {'name': 'daily', 'alias': 'nightly', 'transform': {'persistent': False}}]}])
    into = json.dumps([{'node-name': 'root', 'alias': 'system'}])
    target = stage.host('host-b').run('vm', *GUEST, *there, '--incoming', 'tcp:127.0.0.1:0')
    failed = source.host.vmferry('migrate', 'vm', target.uri, '--disks', 'all', '--bitmaps', out, '--downtime-limit', '30s')
    assert failed.code == 1 and 'no disk here' in failed.stderr, failed
    writes(source)
    for bad in ('[', '{}', '[{}]', '[{"node-name":"x"}]', '[{"node-name":"root","y":1}]'):
        assert source.host.vmferry('migrate', 'vm', 'tcp:127.0.0.1:1', '--bitmaps', bad).code == 2, bad
    target = stage.host('host-c').run('vm', *GUEST, *there, '--incoming', 'tcp:127.0.0.1:0', '--bitmaps', into)
    done(source.host, 'migrate', 'vm', target.uri, '--disks', 'all', '--bitmaps', out, '--switchover-timeout', '30s',
         '--downtime-limit', '30s')
    writes(target)
    moved = bitmaps(target)
    assert list(moved) == ['nightly'] and moved['nightly']['recording'] and not moved['nightly']['persistent'], moved
    assert moved['nightly']['dirty_bytes'] > 0, moved
    last = stage.host('host-d').run('vm', *GUEST, '--disk', f'root={os.path.join(stage.directory, "copy")}', '--incoming', 'defer')
    last.qmp().run('migrate-incoming', uri='tcp:127.0.0.1:0')
    uri = story.wait_until(lambda: last.status()['incoming_uri'], 'the address')
    qmp = target.qmp()
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'dirty-bitmaps', 'state': True}])
    qmp.run('migrate-set-parameters', **{'block-bitmap-mapping': [
        {'node-name': 'root', 'alias': 'root', 'bitmaps': [{'name': 'nightly', 'alias': 'again', 'transform': {'persistent': True}}]}]})
    qmp.run('migrate', uri=uri)
    story.wait_until(lambda: last.status()['running'], 'the guest')
    again = bitmaps(last)['again']
    assert again['persistent'] and again['recording'] and os.path.exists(os.path.join(stage.directory, 'copy.bitmaps')), again


def an_nbd_export(stage):
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    with open(os.path.join(stage.directory, 'backup'), 'wb') as file:
        file.write(b'\xff' * 16 * MIB)
    path = os.path.join(stage.directory, 'nbd')
    server = subprocess.Popen(['nbdkit', '-f', '-U', path, 'file', os.path.join(stage.directory, 'backup')],
                              preexec_fn=story.die_with_parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    stage.processes.append(server)
    story.wait_until(lambda: os.path.exists(path), 'the server')
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    writes(machine)
    uri = f'nbd+unix:///?socket={path}'
    done(machine.host, 'bitmap', 'vm', 'root', 'add', 'daily')
    first = machine.host.vmferry('backup', 'vm', 'root', uri, '--bitmap', 'daily', '--full')
    if first.code == 77:
        raise story.Skip('built without libnbd')
    assert first.code == 0, first
    writes(machine)
    done(machine.host, 'backup', 'vm', 'root', uri, '--bitmap', 'daily')
    with open(os.path.join(stage.directory, 'backup'), 'r+b') as file:  # the sectors that nobody writes are zeros in the disk
        file.seek(12 * MIB)
        kept = file.read(4 * MIB)
        file.seek(12 * MIB)
        file.write(b'\xff' * 4 * MIB)
    refused = machine.host.vmferry('backup', 'vm', 'root', uri, '--bitmap', 'daily', '--json')
    assert refused.code == 1, refused
    errors = [line for line in refused.lines if line['type'] == 'error']
    assert errors[0]['id'] == 'disk.base' and 'it differs at offset ' in errors[0]['message'], refused
    with open(os.path.join(stage.directory, 'backup'), 'r+b') as file:
        file.seek(12 * MIB)
        file.write(kept)
    done(machine.host, 'backup', 'vm', 'root', uri, '--bitmap', 'daily')
    server.kill()
    server.wait()
    failed = machine.host.vmferry('backup', 'vm', 'root', uri, '--bitmap', 'daily')
    assert failed.code == 1, failed
    same(stage, machine)


class SilentServer:
    """Takes connections and says nothing, so that a backup to it begins for as long as it is let."""

    def __init__(self, stage):
        path = os.path.join(stage.directory, 'silent')
        self.uri = f'nbd+unix:///?socket={path}'
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(story.PATIENCE_S)
        self.socket.bind(path)
        self.socket.listen()

    def asked_by(self, qmp, *behind):
        """A client asks for a backup to it, and for other things behind that; returned is the connection that came of it."""
        backup = {'execute': 'drive-backup', 'id': 'backup', 'arguments': {'device': 'root', 'target': self.uri, 'sync': 'full'}}
        qmp.send(json.dumps(backup) + ''.join(json.dumps({'execute': name, 'id': name}) for name in behind))
        return self.socket.accept()[0]


def needs_nbd(qmp):
    answer = qmp.command('drive-backup', device='root', target='nbd+unix:///?socket=/nowhere', sync='full')
    if answer['error']['x-vmferry-id'] == 'unsupported':
        raise story.Skip('built without libnbd')


def while_a_backup_begins(stage):
    """All others are served, and can end it; who asked for it is answered in the order of its requests."""
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    server, asker, witness = SilentServer(stage), machine.qmp(), machine.qmp()
    needs_nbd(witness)
    with server.asked_by(asker, 'query-name', 'query-status'):
        jobs = witness.run('query-block-jobs')
        assert [(job['device'], job['status'], job['len']) for job in jobs] == [('root', 'created', 0)], jobs
        assert witness.run('query-status')['running']
        witness.run('stop')
        witness.run('cont')
        again = witness.command('drive-backup', device='root', target=server.uri, sync='full')
        assert again['error']['x-vmferry-id'] == 'state', again
        witness.run('block-job-cancel', device='root')
        answer = asker.answer()
        assert answer['id'] == 'backup' and answer['error']['x-vmferry-id'] == 'cancelled', answer
        assert [asker.answer()['id'] for _ in range(2)] == ['query-name', 'query-status']
    assert witness.run('query-block-jobs') == []
    with server.asked_by(asker, 'stop'):
        asker.close()
        assert witness.run('query-block-jobs')[0]['status'] == 'created'
        witness.run('block-job-cancel', device='root')
        story.wait_until(lambda: not witness.run('query-block-jobs'), 'the end of the job')
    assert witness.run('query-status')['running']
    backup = machine.host.start('backup', 'vm', 'root', server.uri, '--json')
    with server.socket.accept()[0]:
        backup.send_signal(signal.SIGINT)
        stdout, _ = backup.communicate(timeout=story.PATIENCE_S)
    assert backup.returncode == 1 and json.loads(stdout.splitlines()[-1])['id'] == 'cancelled', stdout
    writes(machine)


def quit_while_a_backup_begins(stage):
    server = SilentServer(stage)
    for arguments in ({}, {'x_vmferry_force': True}):
        machine = stage.host(f'host-{len(arguments)}').run('vm', *GUEST, *disk_of(stage))
        asker, witness = machine.qmp(), machine.qmp()
        needs_nbd(witness)
        with server.asked_by(asker, 'stop'):
            witness.run('quit', **arguments)
            answer = asker.answer()
            assert answer['id'] == 'backup' and answer['error']['x-vmferry-id'] == 'cancelled', answer
            assert asker.answer() is None and machine.wait() == 0


def own_disk_that_says_nothing(stage):
    """Then the moment of a backup does not come, and that is all: it can be cancelled, and the machine ended."""
    disk, has_come = story.disk_on_silent_server(stage, 'own', 'write', 16 * MIB)
    machine = stage.host().run('vm', *GUEST, '--disk', disk)
    has_come()
    asker, witness = machine.qmp(), machine.qmp()
    backup = {'execute': 'drive-backup', 'arguments': {
        'device': 'root', 'target': 'file:' + os.path.join(stage.directory, 'backup'), 'sync': 'full'}}
    for ends in ('block-job-cancel', 'quit'):
        asker.send(json.dumps(backup))
        story.wait_until(lambda: witness.run('query-block-jobs'), 'the job')
        assert witness.run('query-block-jobs')[0]['status'] == 'created' and witness.run('query-status')['running']
        witness.run(ends, **({'device': 'root'} if ends == 'block-job-cancel' else {'x_vmferry_force': True}))
        assert asker.answer()['error']['x-vmferry-id'] == 'cancelled'
    assert machine.wait() == 0
    assert not any(name.startswith('backup') for name in os.listdir(stage.directory))


def a_bitmap_of_qemus_server(stage):
    if not all(shutil.which(program) for program in ('qemu-img', 'qemu-io', 'qemu-nbd')):
        raise story.Skip('qemu-img, qemu-io or qemu-nbd is not installed')
    image, path = os.path.join(stage.directory, 'image'), os.path.join(stage.directory, 'nbd')
    subprocess.run(['qemu-img', 'create', '-q', '-f', 'qcow2', image, '16M'], check=True)
    subprocess.run(['qemu-img', 'bitmap', '--add', '-g', '65536', image, 'theirs'], check=True)
    for at, size in ((0, 4096), (3 * MIB + 512, 512), (10 * MIB, 2 * MIB)):
        subprocess.run(['qemu-io', '-f', 'qcow2', '-c', f'write -P 7 {at} {size}', image], check=True, stdout=subprocess.DEVNULL)
    server = subprocess.Popen(['qemu-nbd', '-r', '-t', '-f', 'qcow2', '-B', 'theirs', '-k', path, image],
                              preexec_fn=story.die_with_parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stage.processes.append(server)
    story.wait_until(lambda: os.path.exists(path), 'the server')
    machine = stage.host().run('vm', *disk_of(stage))
    done(machine.host, 'bitmap', 'vm', 'root', 'add', 'ours', '--persistent')
    uri = f'nbd+unix:///?socket={path}'
    got = machine.host.vmferry('bitmap', 'vm', 'root', 'import', 'ours', uri, 'theirs')
    if got.code == 77 and 'libnbd' in got.stderr:
        raise story.Skip('built without libnbd')
    assert got.code == 0, got
    assert bitmaps(machine)['ours']['dirty_bytes'] == 2 * MIB + 2 * 65536, bitmaps(machine)
    missing = machine.host.vmferry('bitmap', 'vm', 'root', 'import', 'ours', uri, 'nobodys')
    assert missing.code == 77 and 'no such bitmap' in missing.stderr, missing
    none = machine.host.vmferry('bitmap', 'vm', 'root', 'import', 'none', uri, 'theirs')
    assert none.code == 2, none
    other = stage.host('host-b').run('vm', '--disk', f'root={os.path.join(stage.directory, "small")},size={16 * MIB - 4096}')
    done(other.host, 'bitmap', 'vm', 'root', 'add', 'ours')
    refused = other.host.vmferry('bitmap', 'vm', 'root', 'import', 'ours', uri, 'theirs')
    assert refused.code == 2 and 'it tells of another disk' in refused.stderr, refused
    assert bitmaps(other)['ours']['dirty_bytes'] == 0, bitmaps(other)


def refused_of(result, *words):
    assert result.code == 1 and all(word in result.stderr for word in words), result


def what_a_machine_uses(stage):
    """Another's disk and its bitmaps, and a second disk of the same machine: none is replaced, by a backup or by an image."""
    places = [os.path.join(stage.directory, name) for name in ('second', 'theirs', 'theirs.bitmaps')]
    host = stage.host()
    machine = host.run('vm', *GUEST, *disk_of(stage), '--disk', f'second={places[0]},size=16M')
    other = stage.host('host-b').run('other', '--disk', f'root={places[1]},size=16M')
    done(other.host, 'bitmap', 'other', 'root', 'add', 'theirs', '--persistent')
    for place in places:
        before = os.stat(place)
        for arguments in (('backup', 'vm', 'root', place), ('backup', 'vm', 'root', place, '--force'), ('save', 'vm', place, '--ram-only'),
                          ('save', 'vm', place, '--ram-only', '--force'), ('migrate', 'vm', f'file:{place}', '--then', 'cont')):
            refused_of(host.vmferry(*arguments), place, 'another uses it')
            after = os.stat(place)
            assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size), after
            assert not os.path.exists(f'{place}.partial')
    third = f'root={os.path.join(stage.directory, "third")},size=16M,bitmaps={places[2]}'
    refused_of(stage.host('host-c').vmferry('run', 'third', '--disk', third), places[2], 'another uses it')
    writes(machine)


def what_a_device_holds(stage):
    """One with a swap area is not overwritten unless that is said, and one that is in use not in any case."""
    story.knows_signatures(stage)
    swap = os.path.join(stage.directory, 'swap')
    with open(swap, 'wb') as file:
        file.truncate(64 * MIB)
    machine = stage.host().run('vm', *GUEST, *disk_of(stage))
    writes(machine)
    done(machine.host, 'bitmap', 'vm', 'root', 'add', 'daily')
    with story.device_of(swap) as device:
        for way in (('backup', 'vm', 'root', device), ('save', 'vm', device, '--ram-only')):
            subprocess.run(['mkswap', '-q', device], check=True, stderr=subprocess.DEVNULL)
            with open(device, 'rb') as file:
                head = file.read(4096)
            with story.in_use(device):
                refused_of(machine.host.vmferry(*way, '--force'), device, 'busy')
            refused_of(machine.host.vmferry(*way), device, 'it holds something of type swap', '--force')
            with open(device, 'rb') as file:
                assert file.read(4096) == head, 'it was written all the same'
            done(machine.host, *way, '--force')
        done(machine.host, 'backup', 'vm', 'root', device, '--bitmap', 'daily', '--full', '--force')
        with story.in_use(device):
            refused_of(machine.host.vmferry('backup', 'vm', 'root', device, '--bitmap', 'daily'), device, 'busy')
        done(machine.host, 'backup', 'vm', 'root', device, '--bitmap', 'daily')
    writes(machine)


if __name__ == '__main__':
    story.run(a_chain_of_backups, machine_that_is_killed, backup_that_is_cancelled, qmps_words, shared_disk_takes_its_bitmaps_along,
              bitmaps_move_with_a_copied_disk, an_nbd_export, while_a_backup_begins, quit_while_a_backup_begins, own_disk_that_says_nothing,
              a_bitmap_of_qemus_server,
              what_a_machine_uses, what_a_device_holds)
