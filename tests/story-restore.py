#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that come back from images: at once or lazily, from files, layers and NBD exports; and what becomes of them without a page."""
import json
import os
import shutil
import signal
import subprocess
import sys

import story

GUEST = ('--guest', 'dirty=16M,set=4M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def lives(machine, beats=20):
    before = machine.status()['beats']
    story.wait_until(lambda: machine.status()['beats'] > before + beats, 'beats')
    assert machine.status()['guest_errors'] == 0


def images(stage, n=1):
    """Of one guest, as it runs on."""
    host = stage.host('host-a')
    source = host.run('vm', *GUEST)
    paths = []
    for number in range(n):
        before = source.status()['pages_written']
        story.wait_until(lambda: source.status()['pages_written'] > before + 1500, 'pages written')
        image = os.path.join(stage.directory, f'image{number}')
        done(host, 'save', 'vm', image)
        paths.append(image)
    done(host, 'quit', 'vm')
    return paths


def image_of(stage):
    return images(stage)[0]


def restore(host, image, *args):
    return story.Machine(host, 'vm', host.start('restore', image, 'vm', '--host-name', host.name, *args))


def line_of(machine, kind, **members):
    """The next JSON line of this type."""
    while True:
        line = machine.process.stdout.readline()
        assert line, machine.process.stderr.read()
        found = json.loads(line)
        if found['type'] == kind and members.items() <= found.items():
            return found


def damage(path, share=0.5):
    """One bit of a page that stands that far into the used part of the pages."""
    with open(path, 'rb') as file:
        octets = bytearray(file.read())
    used = [at for at in range(4 << 20, len(octets) - (64 << 10), 4096) if any(octets[at:at + 4096])]
    at = used[int(len(used) * share)]
    octets[at + 99] ^= 8
    with open(path, 'wb') as file:
        file.write(octets)
    return at


def held(machine):
    """Until it is, and why."""
    why = story.wait_until(lambda: (machine.status()['migration'] or {}).get('hold_reason'), 'the hold')
    assert machine.status()['migration']['status'] == 'device', machine.status()
    return why


def ended(machine, code):
    assert machine.wait() == code, machine.process.stderr.read()


# ---- whole images


def a_guest_comes_back(stage):
    image = image_of(stage)
    machine = restore(stage.host('host-b'), image, '--json')
    assert machine.uri is None
    summary = line_of(machine, 'summary')
    assert summary['outcome'] == 'completed' and summary['running'] and not summary['lazy'] and summary['target'] == 'host-b', summary
    assert summary['verified'] == 'transport' and summary['bytes_received'] > 4 << 20 and summary['total_ns'] >= summary['start_ns'] > 0
    lives(machine)
    assert machine.status()['memory_bytes'] >= 16 << 20
    done(machine.host, 'quit', 'vm')
    ended(machine, 0)
    assert 'restored from' in restore_in_words(stage, image)


def restore_in_words(stage, image):
    machine = restore(stage.host('host-words'), image)
    line = machine.process.stdout.readline()
    done(machine.host, 'quit', 'vm')
    return line


def it_can_stay_paused(stage):
    image = image_of(stage)
    for number, args in enumerate(((), ('--lazy',))):
        host = stage.host(f'host-{number}')
        machine = restore(host, image, '--paused', '--json', *args)
        assert not line_of(machine, 'summary')['running']
        status = machine.status()
        assert status['status'] == 'paused' and status['beats'] > 0, status
        done(host, 'cont', 'vm')
        lives(machine)
        assert machine.status()['beats'] > status['beats']


def a_daemon_is_there_when_its_guest_is(stage):
    image = image_of(stage)
    for number, args in enumerate(((), ('--lazy',))):
        host = stage.host(f'host-{number}')
        started = done(host, 'restore', image, 'vm', '--daemon', *args)
        assert '"type":"listening"' in started.stdout.splitlines()[0], started
        status = host.vmferry('status', 'vm', '--json').lines[-1]
        stage.pids.append(status['pid'])
        assert status['status'] == 'running', status
        done(host, 'quit', 'vm')


def a_daemon_that_cannot_says_so(stage):
    image = image_of(stage)
    damage(image)
    failed = done(stage.host('host-b'), 'restore', image, 'vm', '--daemon', code=1)
    assert 'does not match its digest' in failed.stderr, failed


def layers(stage):
    first, second, third = images(stage, 3)
    host = stage.host('host-b')
    inside = os.path.join(stage.directory, 'layers')
    os.mkdir(inside)
    layer2, layer3 = (os.path.join(inside, name) for name in ('two', 'three'))
    done(host, 'rebase', second, layer2, '--parent', first)
    done(host, 'rebase', third, layer3, '--parent', layer2)
    for number, args in enumerate(((), ('--lazy',))):
        machine = restore(stage.host(f'host-{number}'), layer3, '--json', *args)
        assert line_of(machine, 'summary')['outcome'] == 'completed'
        lives(machine)
    moved = os.path.join(stage.directory, 'moved')
    os.rename(first, moved)
    lost = done(host, 'restore', layer3, 'vm', '--json', code=1)
    assert lost.lines[-1]['id'] == 'image.parent', lost
    other = done(host, 'restore', layer3, 'vm', '--json', '--parent', second, code=1)
    assert other.lines[-1]['id'] == 'image.parent', other
    lives(restore(host, layer3, '--parent', moved))


def the_same_by_qmp_and_by_run(stage):
    image = image_of(stage)
    deferred = stage.host('host-b').run('vm', '--incoming', 'defer')
    client = deferred.qmp()
    client.run('migrate-set-capabilities', capabilities=[{'capability': 'mapped-ram', 'state': True}])
    client.run('migrate-incoming', uri=f'file:{image}')
    client.event('MIGRATION', status='completed')
    lives(deferred)
    lives(stage.host('host-c').run('vm', '--incoming', f'file:{image}'))
    lazy = stage.host('host-e').run('vm', '--incoming', 'defer')
    client = lazy.qmp()
    client.run('migrate-set-capabilities', capabilities=[{'capability': 'events', 'state': True}])
    refused = client.command('migrate-incoming', uri='tcp:127.0.0.1:0', x_vmferry_lazy=True)
    assert 'only an image' in refused['error']['desc'], refused
    client.run('migrate-incoming', uri=f'file:{image}', x_vmferry_lazy=True)
    client.event('MIGRATION', status='postcopy-active')
    client.event('MIGRATION', status='completed')
    lives(lazy)
    no_image = stage.host('host-d').run('vm', '--incoming', 'defer')
    client = no_image.qmp()
    client.run('migrate-set-capabilities', capabilities=[{'capability': 'mapped-ram', 'state': True}])
    client.run('migrate-incoming', uri=f'file:{os.path.realpath(__file__)}')
    ended(no_image, 1)


# ---- what is refused


def what_does_not_fit_is_named(stage):
    image = image_of(stage)
    host = stage.host('host-b')
    machine = host.run('vm', '--memory', '8M', '--incoming', f'file:{image}')
    ended(machine, 1)
    assert 'memory.size: here 8388608, there 16777216' in machine.process.stderr.read()
    locked = done(host, 'restore', image, 'vm', '--lock', os.path.join(stage.directory, 'lock'), '--json', code=1)
    assert 'storage.lock: here file, there nothing' in locked.lines[-1]['message'], locked


def mistakes_are_told(stage):
    host = stage.host('host-b')
    image = os.path.join(stage.directory, 'none')
    for args in (('restore',), ('restore', image), ('restore', image, 'vm', '--io', 'dma'), ('restore', image, 'vm', '--channels', '0'),
                 ('restore', image, 'vm', '--lazy=often'), ('restore', 'nbd:localhost:1', 'vm', '--lazy=record')):
        assert done(host, *args, code=2).stdout == ''
    assert done(host, 'restore', image, 'vm', '--json', code=1).lines[-1]['id'] == 'io'
    stream = os.path.join(stage.directory, 'text')
    with open(stream, 'w', encoding='ascii') as file:
        file.write('no image at all\n' * 1000)
    assert done(host, 'restore', stream, 'vm', '--json', code=1).lines[-1]['id'] == 'image.magic'


def damage_is_refused(stage):
    image = image_of(stage)
    damage(image)
    failed = done(stage.host('host-b'), 'restore', image, 'vm', '--json', code=1).lines[-1]
    assert failed['id'] == 'image.page' and 'RAM block ram, page ' in failed['message'], failed


# ---- lazily


def a_guest_runs_before_its_memory_is_there(stage):
    image = image_of(stage)
    machine = restore(stage.host('host-b'), image, '--json', '--lazy')
    line_of(machine, 'event', id='restore.started')
    summary = line_of(machine, 'summary')
    assert summary['lazy'] and summary['faults'] > 0 and summary['fault_max_ns'] >= summary['fault_p99_ns'] >= summary['fault_p50_ns'] > 0
    assert 0 < summary['start_ns'] <= summary['total_ns'] and summary['working_set_ns'] is None, summary
    lives(machine)


def the_order_of_touches_is_used(stage):
    image = image_of(stage)
    recorded = restore(stage.host('host-b'), image, '--json', '--lazy=record')
    line_of(recorded, 'summary')
    assert os.path.getsize(image + '.order') > 64
    again = restore(stage.host('host-c'), image, '--json', '--lazy')
    summary = line_of(again, 'summary')
    assert 0 < summary['working_set_ns'], summary
    with open(image + '.order', 'r+b') as file:
        file.write(b'nonsense')
    passed_over = restore(stage.host('host-d'), image, '--json', '--lazy')
    line_of(passed_over, 'event', event='X_VMFERRY_EVENT')
    assert line_of(passed_over, 'summary')['working_set_ns'] is None
    lives(passed_over)


def what_becomes_of_the_order_is_told_as_text(stage):
    image = image_of(stage)
    with open(image + '.order', 'w', encoding='ascii') as file:
        file.write('x')
    machine = restore(stage.host('host-b'), image, '--lazy')
    assert 'restored from' in machine.process.stdout.readline()
    done(machine.host, 'quit', 'vm')
    ended(machine, 0)
    told = machine.process.stderr.read()
    assert f'vmferry: vm: order of touches {image}.order: too short: it is passed over\n' in told, told
    os.remove(image + '.order')
    os.mkdir(image + '.order')
    machine = restore(stage.host('host-c'), image, '--lazy=record')
    assert 'restored from' in machine.process.stdout.readline()
    done(machine.host, 'quit', 'vm')
    ended(machine, 0)
    told = machine.process.stderr.read()
    assert 'too short' not in told and f'vmferry: vm: order of touches {image}.order: Is a directory: it is not written\n' in told, told


def it_is_its_owners_while_it_is_loaded(stage):
    machine = restore(stage.host('host-b'), image_of(stage), '--json', '--lazy=record')
    line_of(machine, 'event', id='restore.started')
    assert machine.status()['migration']['status'] == 'postcopy-active'
    done(machine.host, 'stop', 'vm')
    beats = machine.status()['beats']
    assert machine.status()['status'] == 'paused'
    done(machine.host, 'cont', 'vm')
    lives(machine)
    assert machine.status()['beats'] > beats
    line_of(machine, 'summary')
    lives(machine)


def it_moves_on_before_all_is_there(stage):
    image = image_of(stage)
    host, other = stage.host('host-b'), stage.host('host-c')
    target = other.run('vm', '--incoming', f'unix:{os.path.join(stage.directory, "s")}')
    machine = restore(host, image, '--json', '--lazy=record')
    line_of(machine, 'event', id='restore.started')
    assert machine.status()['migration']['status'] == 'postcopy-active'
    moved = done(host, 'migrate', 'vm', target.uri, '--audit', 'before', '--switchover-timeout', '60s', '--json').lines[-1]
    assert moved['verified'] == 'full' and moved['pages_data'] * 4096 > 4 << 20, moved
    ended(machine, 0)
    lives(target)


def it_is_quit_while_it_is_loaded(stage):
    image = image_of(stage)
    for number, end in enumerate((lambda m: done(m.host, 'quit', 'vm'), lambda m: m.process.send_signal(signal.SIGTERM))):
        machine = restore(stage.host(f'host-{number}'), image, '--json', '--lazy=record')
        line_of(machine, 'event', id='restore.started')
        end(machine)
        ended(machine, 0)
        assert not os.path.exists(image + '.order')


def a_killed_one_leaves_the_image_as_it_was(stage):
    image = image_of(stage)
    with open(image, 'rb') as file:
        before = file.read()
    host = stage.host('host-b')
    machine = restore(host, image, '--json', '--lazy=record')
    line_of(machine, 'event', id='restore.started')
    machine.process.kill()
    machine.wait()
    again = restore(host, image, '--json', '--lazy')
    line_of(again, 'summary')
    lives(again)
    with open(image, 'rb') as file:
        assert file.read() == before


def a_damaged_page_holds_it(stage):
    image = image_of(stage)
    damage(image)
    host = stage.host('host-b')
    machine = restore(host, image, '--lazy')
    assert 'does not match its digest' in held(machine)
    status = machine.status()
    assert status['status'] == 'finish-migrate' and status['migration']['hold_id'] == 'restore.held', status
    assert status['guest_errors'] == 0
    assert 'stands still: a part of its memory cannot be had' in done(host, 'status', 'vm').stdout
    for args, word in ((('cont', 'vm'), 'held'), (('quit', 'vm'), 'held'), (('migrate', 'vm', 'unix:/nowhere'), 'held'),
                       (('resolve', 'vm', '--run', '--fenced'), 'cannot run')):
        refused = done(host, *args, code=4)
        assert word in refused.stderr, (args, refused)
    told = done(host, 'resolve', 'vm', code=4)
    assert "'vmferry resolve vm --discard' gives up" in told.stdout, told
    assert machine.status()['beats'] == status['beats']
    told = done(host, 'resolve', 'vm', '--discard')
    assert told.stdout.startswith('vmferry: vm is given up: its machine has ended, and the image is as it was\n'), told
    ended(machine, 1)
    told = machine.process.stderr.read().splitlines()
    said = [line for line in told if line.startswith('vmferry: vm stands still at host-b: a part of its memory cannot be had: ')]
    assert len(said) == 1 and 'does not match its digest' in said[0], told
    assert said[0].endswith("; 'vmferry resolve vm' says more, and settles it"), told
    assert 'does not match its digest' in told[-2] and told[-2] != said[0], told


def a_daemon_s_log_says_that_it_is_held(stage):
    image = image_of(stage)
    for share in (0.2, 0.5, 0.8):
        damage(image, share)
    host = stage.host('host-b')
    begun = host.vmferry('restore', image, 'vm', '--lazy=record', '--daemon', '--host-name', 'host-b')
    assert begun.code == 0, begun
    log = os.path.join(host.runtime_dir, 'vm.log')

    def told():
        with open(log, encoding='utf-8') as file:
            return begun.stderr + file.read()   # it may be found before the daemon leaves the terminal alone
    story.wait_until(lambda: 'stands still at host-b: a part of its memory cannot be had: ' in told(), 'the hold in the log')
    assert 'does not match its digest' in told()
    done(host, 'quit', 'vm', '--force')


def a_page_that_the_guest_asks_for_holds_it_too(stage):
    """Recording keeps reading ahead from finding it first: the guest itself comes to the page."""
    image = image_of(stage)
    for share in (0.2, 0.5, 0.8):
        damage(image, share)
    host = stage.host('host-b')
    machine = restore(host, image, '--lazy=record')
    assert 'does not match its digest' in held(machine)
    assert machine.status()['guest_errors'] == 0
    done(host, 'quit', 'vm', '--force')
    ended(machine, 4)
    hint = machine.process.stderr.read().splitlines()[-1]
    assert hint.startswith('vmferry: hint: ') and 'resolve' not in hint and "'vmferry verify' says" in hint, hint
    assert not os.path.exists(image + '.order')


def nbd_server(stage, image, *args):
    """nbdkit over the image; its URI."""
    if not shutil.which('nbdkit'):
        raise story.Skip('nbdkit is not installed')
    path = os.path.join(stage.directory, f'nbd{len(stage.processes)}')
    filters, settings = args[:args.index('--')], args[args.index('--') + 1:]
    stage.processes.append(subprocess.Popen(['nbdkit', '-f', '-r', '-U', path, *filters, 'file', image, *settings], stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE, preexec_fn=story.die_with_parent))
    story.wait_until(lambda: os.path.exists(path), 'the NBD server')
    return f'nbd+unix:///?socket={path}'


def restore_nbd(host, uri, *args):
    try:
        return restore(host, uri, *args)
    except AssertionError as error:
        if 'libnbd' in str(error):
            raise story.Skip('built without libnbd') from error
        raise


def it_is_saved_before_all_is_there(stage):
    uri = nbd_server(stage, image_of(stage), '--filter=rate', '--', 'rate=12M')
    machine = restore_nbd(stage.host('host-b'), uri, '--json', '--lazy')
    line_of(machine, 'event', id='restore.started')
    assert machine.status()['migration']['status'] == 'postcopy-active'
    saved = os.path.join(stage.directory, 'saved')
    assert done(machine.host, 'save', 'vm', saved, '--json').lines[-1]['outcome'] == 'completed'
    lives(machine)
    summary = line_of(machine, 'summary')  # of the restore, which the save did not wait for
    assert summary['lazy'] and summary['outcome'] == 'completed' and summary['side'] == 'target', summary
    again = restore(stage.host('host-c'), saved, '--json')
    assert line_of(again, 'summary')['bytes_received'] > 4 << 20
    lives(again)


def nbd_exports(stage):
    uri = nbd_server(stage, image_of(stage), '--')
    for number, args in enumerate(((), ('--lazy',))):
        machine = restore_nbd(stage.host(f'host-{number}'), uri, '--json', *args)
        assert line_of(machine, 'summary')['outcome'] == 'completed'
        lives(machine)


def storage_that_fails_holds_it(stage):
    image = image_of(stage)
    trigger = os.path.join(stage.directory, 'trigger')
    uri = nbd_server(stage, image, '--filter=error', '--', 'error-pread=EIO', 'error-pread-rate=100%', f'error-file={trigger}')
    whole = restore_nbd(stage.host('host-b'), uri, '--json', '--lazy', '--paused')
    line_of(whole, 'summary')
    with open(trigger, 'w', encoding='ascii'):
        pass
    failed = done(stage.host('host-c'), 'restore', uri, 'vm', '--json', code=1).lines[-1]
    assert failed['type'] == 'error' and failed['message'].count('nbd+unix:') == 1, failed
    os.unlink(trigger)
    slow = nbd_server(stage, image, '--filter=error', '--filter=rate', '--', 'error-pread=EIO', 'error-pread-rate=100%',
                      f'error-file={trigger}', 'rate=8M')
    machine = restore(stage.host('host-d'), slow, '--lazy')
    story.wait_until(lambda: machine.status()['migration']['status'] == 'postcopy-active', 'the guest')
    with open(trigger, 'w', encoding='ascii'):
        pass
    why = held(machine)     # by a page, or by the tables that say which pages there are: then by the place in the file
    assert 'Input/output error' in why and (': RAM block ram, page ' in why or ': read: 4096 bytes at offset ' in why), why
    assert machine.status()['guest_errors'] == 0
    done(machine.host, 'resolve', 'vm', '--discard')
    ended(machine, 1)


story.run(a_guest_comes_back, it_can_stay_paused, a_daemon_is_there_when_its_guest_is, a_daemon_that_cannot_says_so,
          layers, the_same_by_qmp_and_by_run, what_does_not_fit_is_named, mistakes_are_told, damage_is_refused,
          a_guest_runs_before_its_memory_is_there, the_order_of_touches_is_used, it_is_its_owners_while_it_is_loaded,
          it_moves_on_before_all_is_there, it_is_saved_before_all_is_there, it_is_quit_while_it_is_loaded,
          a_killed_one_leaves_the_image_as_it_was, a_damaged_page_holds_it, a_daemon_s_log_says_that_it_is_held,
          what_becomes_of_the_order_is_told_as_text, a_page_that_the_guest_asks_for_holds_it_too, nbd_exports, storage_that_fails_holds_it)
