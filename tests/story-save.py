#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that are saved while they run: what is said, what becomes of the guest, what stands under the image's name whatever happens."""
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import story

GUEST = ('--guest', 'dirty=8M,set=4M')
VERIFY = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-image')
OVERHEAD = 4 << 20    # bytes of an image that are not the guest's: blocks begin at multiples of 2 MiB


def machine_at(host, name='vm', *args):
    machine = host.run(name, *(args or GUEST))
    story.wait_until(lambda: machine.status()['pages_written'] > 1000, 'pages written')
    return machine


def lives(machine):
    before = machine.status()
    assert before['status'] == 'running' and before['guest_errors'] == 0, before
    story.wait_until(lambda: machine.status()['beats'] > before['beats'] + 2, 'beats')


def is_image(path, *options):
    """To an independent reader."""
    subprocess.run([sys.executable, '-B', VERIFY, '--pages', path, *options], check=True, stdout=subprocess.DEVNULL)


def content(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').digest() if hasattr(hashlib, 'file_digest') else hashlib.sha256(file.read()).digest()


def saved(host, path, *options, name='vm'):
    done = host.vmferry('save', name, path, '--json', *options)
    assert done.code == 0, done
    summary = done.lines[-1]
    assert (summary['type'], summary['outcome'], summary['image']) == ('summary', 'completed', True), done
    assert summary['target'] == f'file:{path}', done
    is_image(path)
    return summary


def restored(stage, name, path, *options):
    host = stage.host(name)
    machine = story.Machine(host, 'vm', host.start('restore', path, 'vm', '--host-name', name, *options))
    story.wait_until(lambda: machine.status()['status'] == 'running', 'the guest')
    lives(machine)


def a_guest_goes_on_and_so_does_its_image(stage):
    host = stage.host()
    machine = machine_at(host)
    path = os.path.join(stage.directory, 'image')
    beats = machine.status()['beats']
    summary = saved(host, path)
    assert 0 < summary['downtime_ns'] < summary['total_ns'] and summary['rounds'] >= 2 and summary['was_running'], summary
    assert summary['verified'] == 'not-applicable' and summary['channels'] == 2, summary
    assert sum(summary['channel_bytes']) > 1 << 20, summary    # who writes how much of it is up to them
    assert machine.status()['beats'] >= beats
    lives(machine)
    restored(stage, 'host-b', path)
    summary = saved(host, path, '--audit', 'before', '--channels', '1', '--buffered', '--io', 'threads')
    assert summary['verified'] == 'full' and summary['channels'] == 1, summary
    lives(machine)


def the_last_line_says_it_in_words(stage):
    host = stage.host()
    machine = machine_at(host)
    done = host.vmferry('save', 'vm', 'image', cwd=stage.directory)    # a path that is meant from there
    assert done.code == 0, done
    assert re.fullmatch(rf'vmferry: vm is saved to file:{stage.directory}/image and runs on at host-a: downtime [\d.]+ [mu]?s, \d+ rounds, '
                        r'[\d.]+ \w+ written in [\d.]+ m?s, verified: not-applicable\n', done.stdout), done
    is_image(os.path.join(stage.directory, 'image'))
    assert machine.status()['migration']['outcome'] == 'completed'
    assert host.vmferry('stop', 'vm').code == 0
    told = host.vmferry('status', 'vm').stdout    # of the save, whatever was done since
    assert f'vm is saved to file:{stage.directory}/image and runs on at host-a: downtime ' in told, told
    assert host.vmferry('save', 'vm', 'image', cwd=stage.directory).code == 0
    assert host.vmferry('cont', 'vm').code == 0
    told = host.vmferry('status', 'vm').stdout
    assert f'vm is saved to file:{stage.directory}/image and stopped at host-a: ' in told, told


def what_comes_then(stage):
    host = stage.host()
    machine = machine_at(host)
    path = os.path.join(stage.directory, 'image')
    for options in (('--then', 'stop'), ('--then', 'stop', '--stop')):
        assert saved(host, path, *options)['verified'] == 'full'
        assert machine.status()['status'] == 'paused'
        assert host.vmferry('cont', 'vm').code == 0
        lives(machine)
    assert saved(host, path, '--stop')['pages_resent'] == 0
    lives(machine)
    assert host.vmferry('stop', 'vm').code == 0
    assert saved(host, path)['verified'] == 'full'    # it stood still all along, and goes on doing so
    assert machine.status()['status'] == 'paused'
    assert host.vmferry('cont', 'vm').code == 0
    done = host.vmferry('save', 'vm', path, '--then', 'quit')
    assert done.code == 0 and 'and stopped at host-a' in done.stdout, done
    assert machine.wait() == 0
    is_image(path)
    machine = machine_at(host)
    assert host.vmferry('save', 'vm', path, '--then', 'quit', '--detach').code == 0
    assert machine.wait() == 0
    is_image(path)


def nothing_was_touched(machine, folder, before):
    lives(machine)
    assert os.listdir(folder) == ['image'] and content(os.path.join(folder, 'image')) == before


def with_an_old_image(stage, *guest):
    host = stage.host()
    machine = machine_at(host, 'vm', *guest)
    folder = os.path.join(stage.directory, 'images')
    os.mkdir(folder)
    path = os.path.join(folder, 'image')
    saved(host, path)
    return host, machine, folder, path, content(path)


def await_setup(machine):
    story.wait_until(lambda: (machine.status()['migration'] or {}).get('status') == 'setup', 'the save')


def await_active(machine):
    story.wait_until(lambda: (machine.status()['migration'] or {}).get('status') == 'active', 'the save')


def cancelled_saves_leave_what_was(stage):
    host, machine, folder, path, before = with_an_old_image(stage)

    def interrupt(process):
        process.send_signal(signal.SIGINT)

    def tell(_):
        assert host.vmferry('cancel', 'vm').code == 0

    def ask(_):
        machine.qmp().run('migrate_cancel')
    for how, options in ((interrupt, ()), (tell, ()), (ask, ('--stop',))):
        process = host.start('save', 'vm', path, '--max-bandwidth', '100KB', '--json', *options)
        await_active(machine)
        how(process)
        stdout, stderr = process.communicate(timeout=story.PATIENCE_S)
        assert process.returncode == 1 and story.Done(1, stdout, stderr).lines[-1]['outcome'] == 'cancelled', (stdout, stderr)
        nothing_was_touched(machine, folder, before)
    saved(host, path)


def a_full_disk(stage):
    host = stage.host()
    machine = machine_at(host, 'vm', '--guest', 'dirty=64M,set=12M')
    story.wait_until(lambda: machine.status()['pages_written'] > 6000, 'more memory than there is room')
    folder = os.path.join(stage.directory, 'small')
    os.mkdir(folder)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=6M', 'none', folder], stderr=subprocess.DEVNULL, check=False).returncode:
        raise story.Skip('a file system of 6 MiB cannot be mounted here')
    try:
        path = os.path.join(folder, 'image')
        with open(path, 'w', encoding='ascii') as file:
            file.write('what was there before')
        before = content(path)
        done = host.vmferry('save', 'vm', path, '--json')
        errors = [line for line in done.lines if line['type'] == 'error']
        assert done.code == 1 and [error['id'] for error in errors] == ['storage.full'], done
        assert 'No space left' in errors[0]['message'] and done.lines[-1]['outcome'] == 'failed', done
        nothing_was_touched(machine, folder, before)
    finally:
        subprocess.run(['umount', folder], check=True)


def a_dirty_log_that_loses_a_write(stage):
    """Memory that stands still is compared with what was written: a difference is no image, and the guest has lost nothing."""
    for seed in range(1, 40):
        host = stage.host(f'host-{seed}')
        machine = machine_at(host, 'vm', '--guest', 'dirty=16M,set=8M', '--fault', f'log.lose-one:{seed}')
        path = os.path.join(stage.directory, f'image-{seed}')
        done = host.vmferry('save', 'vm', path, '--then', 'stop', '--json')
        status = machine.status()
        found = done.code == 1
        if found:
            error = [line for line in done.lines if line['type'] == 'error'][0]
            page = f'{status["lost_write_block"]} page {status["lost_write_page"]}'
            assert error['id'] == 'ram.audit' and page in error['message'].replace(': page', ' page'), (page, done)
            assert not os.path.exists(path)
            lives(machine)
        else:    # harmless: the page was written again
            assert done.code == 0 and done.lines[-1]['verified'] == 'full', done
        host.vmferry('quit', 'vm')
        if found:
            return
    raise AssertionError('no seed made a difference')


def without_its_machine_a_save_has_failed(stage):
    host, machine, _, path, before = with_an_old_image(stage)
    saver = host.start('save', 'vm', path, '--max-bandwidth', '100KB')
    await_active(machine)
    machine.process.kill()
    stdout, stderr = saver.communicate(timeout=story.PATIENCE_S)
    assert saver.returncode == 1 and 'vm ended at host-a, and its guest with it' in stdout, (saver.returncode, stdout, stderr)
    assert content(path) == before


def ten_seconds_of_dirtying_do_not_grow_the_file(stage):
    host = stage.host()
    machine = machine_at(host, 'vm', '--guest', 'dirty=32M,set=12M')
    path = os.path.join(stage.directory, 'image')
    saver = host.start('save', 'vm', path, '--pause-before-switchover', '--json')
    story.wait_until(lambda: (machine.status()['migration'] or {}).get('status') == 'pre-switchover', 'the pause')
    time.sleep(10)
    largest = os.stat(path + '.partial').st_size
    assert host.vmferry('cont', 'vm').code == 0
    stdout, stderr = saver.communicate(timeout=story.PATIENCE_S)
    assert saver.returncode == 0, (stdout, stderr)
    summary, file = story.Done(0, stdout, stderr).lines[-1], os.stat(path)
    memory = summary['ram_total_bytes']
    assert summary['pages_resent'] * 4096 > 2 * memory, summary    # far more was written than there is
    assert largest <= file.st_size <= memory + 4 * OVERHEAD and file.st_blocks * 512 <= memory + OVERHEAD, (file, memory)
    is_image(path)
    lives(machine)


def storage_behind_a_lock(stage):
    host = stage.host()
    path = os.path.join(stage.directory, 'image')
    machine = machine_at(host, 'vm', *GUEST, '--lock', os.path.join(stage.directory, 'lock'))
    done = host.vmferry('save', 'vm', path)
    assert done.code == 2 and '--ram-only' in done.stderr and not os.path.exists(path), done
    lives(machine)
    saved(host, path, '--ram-only')
    lives(machine)
    saved(host, path, '--then', 'stop')


def qemus_words(stage):
    host = stage.host()
    machine = machine_at(host)
    path = os.path.join(stage.directory, 'image')
    qmp = machine.qmp()
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'mapped-ram', 'state': True},
                                                      {'capability': 'events', 'state': True}])
    assert {'capability': 'mapped-ram', 'state': True} in qmp.run('query-migrate-capabilities')
    answer = qmp.command('migrate', uri='tcp:127.0.0.1:1')
    assert 'mapped-ram' in answer['error']['desc'], answer
    qmp.run('migrate', uri=f'file:{path}')
    qmp.event('MIGRATION', status='completed')
    qmp.event('X_VMFERRY_MIGRATION_ENDED', outcome='completed', image=True, verified='full')
    assert qmp.run('query-migrate')['status'] == 'completed' and qmp.run('query-status')['status'] == 'paused'
    is_image(path)
    qmp.run('cont')
    lives(machine)
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'mapped-ram', 'state': False}])
    answer = qmp.command('migrate', uri=f'file:{path}', x_vmferry_ram_only=True)
    assert 'x-vmferry-image' in answer['error']['desc'], answer
    qmp.run('migrate', uri=f'file:{path}', x_vmferry_image=True, x_vmferry_then='cont')
    qmp.event('X_VMFERRY_MIGRATION_ENDED', outcome='completed')
    lives(machine)
    is_image(path)


def what_is_refused(stage):
    host = stage.host()
    machine = machine_at(host)
    path = os.path.join(stage.directory, 'image')
    for options, code, said in ((('--then', 'go'), 2, '--then'), (('--channels', '0'), 2, '--channels'), (('--audit', 'never'), 2, 'audit'),
                                (('--progress', '99'), 2, '--progress'), (('--io', 'magic'), 2, "--io: 'magic'")):
        done = host.vmferry('save', 'vm', path, *options)
        assert done.code == code and said in done.stderr, (options, done)
    done = host.vmferry('save', 'vm', os.path.join(stage.directory, 'nowhere', 'image'))
    assert done.code == 1 and 'No such file' in done.stderr and 'vm still runs at host-a: the save failed' in done.stdout, done
    assert host.vmferry('save', 'other', path).code == 1
    for name in ('', 'tcp:127.0.0.1:9', 'unix:image', 'C:image'):
        done = host.vmferry('save', 'vm', name, cwd=stage.directory)
        assert done.code == 2 and done.stdout == '', done
    assert host.vmferry('save', 'vm', path, '--parent', 'exec:cat').code == 2
    assert not [entry for entry in os.listdir(stage.directory) if ':' in entry]
    for odd in (stage.directory, '/dev/null'):
        done = host.vmferry('save', 'vm', odd)
        assert done.code == 1 and 'vm still runs at host-a: the save failed' in done.stdout, done
    assert not os.path.exists(path) and not os.path.exists(path + '.partial')
    lives(machine)


def layers(stage):
    host = stage.host()
    machine = machine_at(host, 'vm', '--guest', 'dirty=1M,set=12M')
    story.wait_until(lambda: machine.status()['pages_written'] > 3500, 'a working set')
    base, first, second = (os.path.join(stage.directory, name) for name in ('base', 'first', 'second'))
    whole = saved(host, base)
    layer = saved(host, first, '--parent', base)
    assert layer['bytes_sent'] < whole['bytes_sent'] / 2, (layer['bytes_sent'], whole['bytes_sent'])
    lives(machine)
    done = host.vmferry('save', 'vm', 'second', '--parent', 'first', '--audit', 'before', cwd=stage.directory)
    assert done.code == 0, done
    is_image(second)
    moved = os.path.join(stage.directory, 'moved')
    os.mkdir(moved)
    for path in (base, first, second):
        os.rename(path, os.path.join(moved, os.path.basename(path)))    # they find each other there
    restored(stage, 'host-b', os.path.join(moved, 'second'))

    def refused(code, said, *options):
        files = sorted(os.listdir(moved))
        done = host.vmferry('save', 'vm', *options)
        assert done.code == code and said in done.stderr, done
        assert sorted(os.listdir(moved)) == files
        lives(machine)
    base, second, third = (os.path.join(moved, name) for name in ('base', 'second', 'third'))
    refused(2, 'is an image that is read', base, '--parent', second)
    refused(1, 'No such file', third, '--parent', os.path.join(moved, 'nowhere'))
    os.rename(base, base + '.away')
    refused(1, 'parent', third, '--parent', second)
    os.rename(base + '.away', base)
    other = host.run('other', '--memory', '12M')
    done = host.vmferry('save', 'other', third, '--parent', second)
    assert done.code == 1 and 'another RAM layout' in done.stderr and not os.path.exists(third), done
    lives(other)


def a_chain_of_five(stage):
    host = stage.host()
    machine = machine_at(host)
    paths = [os.path.join(stage.directory, f'layer{number}') for number in range(5)]
    for path, parent in zip(paths, [None, *paths]):
        before = machine.status()['pages_written']
        story.wait_until(lambda: machine.status()['pages_written'] > before + 200, 'pages written')
        summary = saved(host, path, '--audit', 'before', *(('--parent', parent) if parent else ()))
        assert summary['verified'] == 'full', summary
    layers_told = host.vmferry('inspect', paths[-1], '--json').lines[-1]['layers']
    assert [layer['uri'] for layer in layers_told] == [f'file:{path}' for path in reversed(paths)], layers_told
    for number, options in enumerate(((), ('--lazy',))):
        restored(stage, f'host-five-{number}', paths[-1], *options)


def ten_seconds_at_500_mb_a_second(stage):
    """A file no larger than memory and a hundredth, whatever the guest does; a plain stream has all of it."""
    story.needs_kvm(stage)
    host = stage.host()
    machine = host.run('vm', '--backend', 'kvm', '--memory', '512M', '--small-pages', '--guest', 'dirty=500MB,set=256M')
    story.wait_until(lambda: machine.status()['pages_written'] > 1 << 16, 'the working set')
    sizes = {}
    for name, seconds in (('image', 10), ('stream', 3)):
        path = os.path.join(stage.directory, name)
        what = ('save', 'vm', path) if name == 'image' else ('migrate', 'vm', f'file:{path}', '--then', 'cont')
        mover = host.start(*what, '--pause-before-switchover', '--json')
        story.wait_until(lambda: (machine.status()['migration'] or {}).get('status') == 'pre-switchover', 'the pause')
        before = machine.status()['pages_written']
        time.sleep(seconds)
        reached = (machine.status()['pages_written'] - before) * 4096 / seconds
        assert host.vmferry('cont', 'vm').code == 0
        stdout, stderr = mover.communicate(timeout=story.PATIENCE_S)
        assert mover.returncode == 0, (stdout, stderr)
        sizes[name] = os.stat(path).st_size
        memory = story.Done(0, stdout, stderr).lines[-1]['ram_total_bytes']
        print(f'{name}: {sizes[name] / memory:.3f} of memory, after {seconds} s at {reached / 1e6:.0f} MB/s')
    assert sizes['image'] <= memory * 1.01, (sizes, memory)
    assert sizes['stream'] > memory * 0.5, (sizes, memory)
    is_image(os.path.join(stage.directory, 'image'))
    lives(machine)


def an_nbd_export(stage):
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    socket = os.path.join(stage.directory, 'nbd')
    server = subprocess.Popen(['nbdkit', '-f', '-U', socket, 'memory', '64M'], preexec_fn=story.die_with_parent,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stage.processes.append(server)
    story.wait_until(lambda: os.path.exists(socket), 'the server')
    host = stage.host()
    machine = machine_at(host)
    uri = f'nbd+unix:///?socket={socket}'
    done = host.vmferry('save', 'vm', uri)
    if done.code == 77:
        raise story.Skip('built without libnbd')
    assert done.code == 0, done
    lives(machine)
    other_name = host.vmferry('save', 'vm', f'nbd:unix:{socket}', '--parent', uri)
    assert other_name.code == 2 and 'is an image that is read' in other_name.stderr, other_name
    lives(machine)
    restored(stage, 'host-b', uri)


def a_server_that_says_nothing(stage):
    """A save that waits for it can be cancelled, and so can one that it leaves half way."""
    host = stage.host()
    machine = machine_at(host)
    path = os.path.join(stage.directory, 'silent')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        done = host.vmferry('save', 'vm', f'nbd+unix:///?socket={path}', '--detach')
        if done.code == 77:
            raise story.Skip('built without libnbd')
        assert 'is being saved to nbd+unix:' in done.stdout, done
        await_setup(machine)
        assert host.vmferry('cancel', 'vm').code == 0
        story.wait_until(lambda: machine.status()['migration']['ended'], 'the end')
    assert machine.status()['migration']['outcome'] == 'cancelled', machine.status()
    assert machine.status()['migration']['error']['message'] == 'save: cancelled', machine.status()
    lives(machine)
    if not shutil.which('nbdkit'):
        return
    path = os.path.join(stage.directory, 'slow')
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-U', path, '--filter=delay', 'memory', '64M', 'wdelay=1000'],
                                            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    story.wait_until(lambda: os.path.exists(path), 'the server')
    assert host.vmferry('save', 'vm', f'nbd+unix:///?socket={path}', '--detach').code == 0
    await_setup(machine)
    time.sleep(0.5)    # it is connected by now, as likely as not
    assert host.vmferry('cancel', 'vm').code == 0
    story.wait_until(lambda: machine.status()['migration']['ended'], 'the end')
    assert machine.status()['migration']['outcome'] == 'cancelled', machine.status()
    lives(machine)


def a_server_that_fails(stage):
    """Its error is told, the guest goes on, and a save that comes later is whole."""
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    host = stage.host()
    machine = machine_at(host)
    path, trigger = os.path.join(stage.directory, 'failing'), os.path.join(stage.directory, 'trigger')
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-U', path, '--filter=error', 'memory', '64M', 'error-pwrite=EIO',
                                             'error-pwrite-rate=100%', f'error-pwrite-file={trigger}'],
                                            preexec_fn=story.die_with_parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    story.wait_until(lambda: os.path.exists(path), 'the server')
    with open(trigger, 'w', encoding='ascii'):
        pass
    uri = f'nbd+unix:///?socket={path}'
    done = host.vmferry('save', 'vm', uri, '--json')
    if done.code == 77:
        raise story.Skip('built without libnbd')
    errors = [line for line in done.lines if line['type'] == 'error']
    assert done.code == 1 and [error['id'] for error in errors] == ['io'] and 'Input/output error' in errors[0]['message'], done
    lives(machine)
    os.unlink(trigger)
    assert host.vmferry('save', 'vm', uri).code == 0
    assert host.vmferry('verify', uri).code == 0
    lives(machine)


story.run(a_guest_goes_on_and_so_does_its_image, the_last_line_says_it_in_words, what_comes_then, cancelled_saves_leave_what_was,
          a_full_disk, a_dirty_log_that_loses_a_write, without_its_machine_a_save_has_failed,
          ten_seconds_of_dirtying_do_not_grow_the_file, ten_seconds_at_500_mb_a_second, layers, a_chain_of_five, storage_behind_a_lock,
          qemus_words, what_is_refused, an_nbd_export, a_server_that_says_nothing, a_server_that_fails)
