#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMFERRY_LOG: what two machines write into one file while a guest moves between them, and when it cannot."""
import os
import re

import story

LINE = re.compile(r'(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (\S+) (source|target) (\S+) (.*)')


def hosts(stage, path):
    pair = stage.host('host-a'), stage.host('host-b')
    for host in pair:
        host.environment['VMFERRY_LOG'] = path
    return pair


def read(path):
    """(time, machine, side, id, text) of each line."""
    with open(path, encoding='utf-8') as log:
        matches = [LINE.fullmatch(line.rstrip('\n')) for line in log]
    assert matches and all(matches), path
    return [match.groups() for match in matches]


def of(lines, machine, side):
    return [(identity, text) for _, name, where, identity, text in lines if (name, where) == (machine, side)]


def a_migration_is_in_the_log(stage):
    path = os.path.join(stage.directory, 'log')
    a, b = hosts(stage, path)
    target = b.run('vm', '--incoming', 'tcp:127.0.0.1:0')
    source = a.run('vm')
    qmp = source.qmp()
    qmp.run('migrate-set-capabilities', capabilities=[{'capability': 'events', 'state': False}])    # for QMP, not for the log
    done = a.vmferry('migrate', 'vm', target.uri)
    assert done.code == 0, done
    b.vmferry('quit', 'vm')
    assert (source.wait(), target.wait()) == (0, 0)
    lines = read(path)
    for side in ('source', 'target'):
        told = of(lines, 'vm', side)
        assert [text for identity, text in told if identity == 'status'] == ['setup', 'active', 'device', 'completed'], told
        assert told[-1] == ('ended', 'completed'), told
    for side in ('source', 'target'):
        times = [line[0] for line in lines if line[2] == side]
        assert times == sorted(times), times


def a_failure_says_why(stage):
    path = os.path.join(stage.directory, 'log')
    a, _ = hosts(stage, path)
    source = a.run('vm')
    assert a.vmferry('migrate', 'vm', 'tcp:127.0.0.1:1').code == 1
    told = of(read(path), 'vm', 'source')
    assert told[0] == ('status', 'setup') and told[-2] == ('status', 'failed'), told
    assert told[-1][0] == 'ended' and told[-1][1].startswith('failed: ') and 'Connection refused' in told[-1][1], told
    assert source.status()['status'] == 'running'


def it_may_go_to_stderr(stage):
    a, _ = hosts(stage, '-')
    source = a.run('vm')
    assert a.vmferry('migrate', 'vm', 'tcp:127.0.0.1:1').code == 1
    a.vmferry('quit', 'vm')
    assert source.wait() == 0
    lines = [LINE.fullmatch(line) for line in source.process.stderr.read().splitlines()]
    assert all(lines) and ('status', 'failed') in [line.groups()[3:] for line in lines], lines


def a_log_that_cannot_be_opened_is_said(stage):
    a, _ = hosts(stage, stage.directory)
    done = a.vmferry('run', 'vm')
    assert done.code == 1 and done.stderr.startswith(f'vmferry: VMFERRY_LOG: {stage.directory}: open: '), done


story.run(a_migration_is_in_the_log, a_failure_says_why, it_may_go_to_stderr, a_log_that_cannot_be_opened_is_said)
