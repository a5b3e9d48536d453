#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that are saved as they are at one moment and run on: from the command line and by QMP, to their end or not."""
import os

import story

GUEST = ('--memory', '96M', '--guest', 'dirty=100M,set=64M')


def done(host, *args, code=0):
    result = host.vmferry(*args)
    assert result.code == code, (args, result)
    return result


def lives(machine, beats=20):
    before = machine.status()['beats']
    story.wait_until(lambda: machine.status()['beats'] > before + beats, 'beats')
    assert machine.status()['guest_errors'] == 0 and machine.status()['running']


def busy(stage, *args):
    """A machine whose guest has begun to write all over."""
    host = stage.host('host-a')
    machine = host.run('vm', *GUEST, *args)
    story.wait_until(lambda: machine.status()['pages_written'] > 20000, 'pages written')
    return host, machine


def comes_back(stage, name, path, *args):
    host = stage.host(name)
    machine = story.Machine(host, 'vm', host.start('restore', path, 'vm', '--host-name', name, *args))
    story.wait_until(lambda: machine.status()['status'] == 'running', 'the guest')
    lives(machine, 200)
    done(host, 'quit', 'vm')


def skip_where_there_is_none(result):
    if result.code == story.SKIP:
        raise story.Skip(result.stderr)
    assert result.code == 0, result


def it_runs_on_and_comes_back(stage):
    host, machine = busy(stage)
    now, audited, layer = (os.path.join(stage.directory, name) for name in ('now', 'audited', 'layer'))
    result = host.vmferry('save', 'vm', now, '--point-in-time', '--json')
    skip_where_there_is_none(result)
    summary = result.lines[-1]
    assert summary['outcome'] == 'completed' and summary['verified'] == 'not-applicable', summary
    assert summary['rounds'] == 1 and summary['pages_resent'] == 0 and 0 < summary['downtime_ns'] < summary['total_ns'], summary
    assert any(line.get('id') == 'point-in-time' for line in result.lines), result
    lives(machine)
    summary = done(host, 'save', 'vm', audited, '--point-in-time', '--audit', 'before', '--json').lines[-1]
    assert summary['verified'] == 'full' and summary['audit_ns'] > 0, summary
    summary = done(host, 'save', 'vm', layer, '--point-in-time', '--audit', 'before', '--parent', audited, '--json').lines[-1]
    assert summary['verified'] == 'full', summary
    lives(machine)
    for path in (now, audited, layer):
        assert done(host, 'verify', path, '--parents', '--json').lines[-1]['whole']
    done(host, 'quit', 'vm')
    comes_back(stage, 'host-b', now)
    comes_back(stage, 'host-c', layer, '--lazy')


def it_is_cancelled(stage):
    host, machine = busy(stage)
    path = os.path.join(stage.directory, 'image')
    done(host, 'save', 'vm', path, '--point-in-time', '--max-bandwidth', '1M', '--detach')
    story.wait_until(lambda: machine.status()['migration']['downtime_ns'] > 0 or machine.status()['migration']['ended'], 'the moment')
    if machine.status()['migration']['error']:
        raise story.Skip(machine.status()['migration']['error'])
    lives(machine)
    done(host, 'stop', 'vm')    # its owner's word still goes
    done(host, 'cont', 'vm')
    lives(machine)
    done(host, 'cancel', 'vm')
    story.wait_until(lambda: machine.status()['migration']['ended'], 'the end')
    assert machine.status()['migration']['outcome'] == 'cancelled'
    assert not [name for name in os.listdir(stage.directory) if name.startswith('image')]
    lives(machine)
    skip_where_there_is_none(host.vmferry('save', 'vm', path, '--point-in-time'))


def the_same_by_qmp(stage):
    host, machine = busy(stage)
    path = os.path.join(stage.directory, 'image')
    client = machine.qmp()
    for name in ('background-snapshot', 'events'):
        client.run('migrate-set-capabilities', capabilities=[{'capability': name, 'state': True}])
    states = {entry['capability']: entry['state'] for entry in client.run('query-migrate-capabilities')}
    assert states['background-snapshot'] and not states['mapped-ram'], states
    assert 'mapped-ram' in client.command('migrate', uri=f'file:{path}')['error']['desc']
    client.run('migrate-set-capabilities', capabilities=[{'capability': 'mapped-ram', 'state': True}])
    client.run('migrate', uri=f'file:{path}', **{'x-vmferry-then': 'stop'})
    client.event('X_VMFERRY_MIGRATION_ENDED', outcome='failed')
    client.run('migrate', uri=f'file:{path}')
    client.event('MIGRATION', status='completed')
    lives(machine)
    done(host, 'quit', 'vm')
    comes_back(stage, 'host-b', path)


def mistakes_are_told(stage):
    host, machine = busy(stage, '--lock', os.path.join(stage.directory, 'lock'))
    path = os.path.join(stage.directory, 'image')
    for args in (('--stop',), ('--then', 'stop'), ('--then', 'quit'), ('--pause-before-switchover',), ()):
        extra = ('--ram-only',) if args else ()     # the lock stands for disks
        refused = done(host, 'save', 'vm', path, '--point-in-time', '--json', *args, *extra, code=2)
        assert any(line['type'] == 'error' and line['id'] == 'usage' for line in refused.lines), refused
        assert not os.path.exists(path)
    lives(machine)


story.run(it_runs_on_and_comes_back, it_is_cancelled, the_same_by_qmp, mistakes_are_told)
