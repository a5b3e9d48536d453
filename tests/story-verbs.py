#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs about one machine: names, exit codes, what is said where, and what is left behind."""
import json
import os
import re
import signal
import stat
import subprocess

import story

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

VERBS = ('run', 'migrate', 'status', 'cancel', 'stop', 'cont', 'quit', 'resolve', 'list', 'inspect', 'verify', 'convert',
         'diff', 'flatten', 'rebase')


def usage_is_exit_code_2(stage):
    host = stage.host()
    for args in ((), ('no-such-verb',), ('--no-such-option',), ('run',), ('run', 'a', 'b'), ('run', 'vm', '--no-such-option'),
                 ('run', '../vm'), ('run', '.vm'), ('run', ''), ('run', 'x' * 64), ('run', 'vm', '--memory', '1Q'),
                 ('run', 'vm', '--memory', '1T'), ('run', 'vm', '--backend', 'no-such'), ('run', 'vm', '--guest', 'dirty=x'),
                 ('run', 'vm', '--guest', 'no-such=1'), ('run', 'vm', '--ram', 'paper'), ('run', 'vm', '--uuid', '1'),
                 ('run', 'vm', '--incoming', 'no-such-scheme:'), ('run', 'vm', '--host-name', 'a\nb'),
                 ('resolve',), ('resolve', '../vm'), ('resolve', 'vm', '--fenced'),
                 ('run', 'vm', '--incoming', 'tcp:0.0.0.0:0'), ('migrate', 'vm'), ('migrate', 'vm', 'tcp:h:1', '--channels', '0'),
                 ('migrate', 'vm', 'tcp:h:1', '--channels', '65'), ('migrate', 'vm', 'tcp:h:1', '--downtime-limit', '20'),
                 ('migrate', 'vm', 'tcp:h:1', '--audit', 'maybe'), ('migrate', 'vm', 'tcp:h:1', '--stream-version', '4'),
                 ('migrate', 'vm', 'tcp:h:1', '--then', 'quit'), ('migrate', 'vm', 'file:x', '--then', 'dance'),
                 ('run', 'vm', '--disk', 'all=x'), ('run', 'vm', '--disk', 'none=x'),
                 *(('migrate', 'vm', 'tcp:h:1', *which, *option) for which in ((), ('--disks', 'none'))
                   for option in (('--mirror',), ('--verify-disks',), ('--incremental', 'b'), ('--disk-latency-goal', '1ms'))),
                 ('save', 'vm', 'x', '--verify-disks'), ('save', 'vm', 'x', '--disks', 'none', '--verify-disks'),
                 ('migrate', 'vm', 'tcp:h:1', '--progress', '77'), ('status', 'vm', 'vm'), ('list', 'vm'), ('help', 'no-such')):
        done = host.vmferry(*args)
        assert done.code == 2, (args, done)
        assert done.stdout == '' and 'vmferry: ' in done.stderr or args == (), (args, done)
        if args and not args[0].startswith('--') and args[0] != 'help':
            done = host.vmferry(*args, '--json')
            assert done.code == 2 and done.stderr == '' and [line['type'] for line in done.lines] == ['error'], (args, done)


def help_for_every_verb(stage):
    host = stage.host()
    overview = host.vmferry('--help')
    assert overview.code == 0
    for verb in VERBS:
        assert f'\n  {verb} ' in overview.stdout
        done = host.vmferry(verb, '--help')
        assert done.code == 0 and f'vmferry {verb}' in done.stdout and '--json' in done.stdout, done
        assert host.vmferry('help', verb).stdout == done.stdout
    assert host.vmferry('--version').stdout.startswith('vmferry ')


def man_pages_know_the_options(stage):
    host = stage.host()
    for verb in VERBS:
        with open(os.path.join(ROOT, 'docs', 'man', f'vmferry-{verb}.1.rst'), encoding='utf-8') as page:
            described = set(re.findall(r'^(?:-h, )?(--[a-z][a-z-]*)', page.read(), re.M))
        offered = set(re.findall(r'^  (?:-h, )?(--[a-z][a-z-]*)', host.vmferry(verb, '--help').stdout, re.M))
        assert described == offered and len(offered) >= 3, (verb, described ^ offered)


def completion_knows_verbs_options_and_machines(stage):
    host = stage.host()
    host.run('vm-one')
    os.symlink(stage.vmferry, os.path.join(host.directory, 'vmferry'))
    environment = dict(host.environment, PATH=f'{host.directory}:{os.environ["PATH"]}')

    def complete(*words):
        script = ('. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vmferry vmferry "${COMP_WORDS[COMP_CWORD]}" '
                  '"${COMP_WORDS[COMP_CWORD - 1]}"; printf "%s\\n" "${COMPREPLY[@]}"')
        return subprocess.run(['bash', '-c', script, os.path.join(ROOT, 'tools', 'completion', 'vmferry'), 'vmferry', *words],
                              env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert set(VERBS) <= set(complete(''))
    assert complete('mig') == ['migrate']
    assert complete('status', 'vm') == ['vm-one']
    assert complete('migrate', 'vm-one', '--down') == ['--downtime-limit']
    assert complete('migrate', 'vm-one', 'uri', '--audit', 'a') == ['after']


def the_first_line_says_where_it_listens(stage):
    machine = stage.host().run('vm')
    assert machine.listening == {'type': 'listening', 'name': 'vm', 'uri': None,
                                 'control': os.path.join(machine.host.runtime_dir, 'vm.sock')}
    for directory in ('run', 'state'):
        assert stat.S_IMODE(os.stat(os.path.join(machine.host.directory, directory)).st_mode) == 0o700


def a_life(stage):
    host = stage.host()
    machine = host.run('vm', '--guest', 'dirty=4M,set=1M,seed=3')
    status = machine.status()
    assert (status['type'], status['name'], status['status'], status['running']) == ('status', 'vm', 'running', True)
    assert (status['backend'], status['host_name'], status['guest_errors'], status['migration']) == ('rv32', 'host-a', 0, None)
    assert status['pid'] == machine.process.pid
    story.wait_until(lambda: machine.status()['pages_written'] > 10, 'pages written')
    assert host.vmferry('stop', 'vm').stdout == 'vmferry: vm: stopped\n'
    first, second = machine.status(), machine.status()
    assert first['status'] == 'paused' and first['beats'] == second['beats'] > 0
    assert host.vmferry('cont', 'vm').code == 0
    story.wait_until(lambda: machine.status()['beats'] > second['beats'], 'beats after cont')
    text = host.vmferry('status', 'vm')
    assert text.stdout.startswith('vm: running at host-a\n') and '0 errors' in text.stdout, text
    assert [line['name'] for line in host.vmferry('list', '--json').lines] == ['vm']
    assert host.vmferry('list').stdout.split() == ['vm', 'running']
    assert host.vmferry('quit', 'vm').code == 0
    assert machine.wait() == 0
    assert os.listdir(host.runtime_dir) == ['vm.console']
    with open(os.path.join(host.runtime_dir, 'vm.console'), encoding='ascii') as console:
        assert console.read()


def paused_means_paused(stage):
    machine = stage.host().run('vm', '--paused')
    assert machine.status()['status'] == 'paused' and machine.status()['instructions'] == 0
    machine.host.vmferry('cont', 'vm')
    story.wait_until(lambda: machine.status()['instructions'] > 0, 'instructions')


def who_is_not_there(stage):
    host = stage.host()
    for args in (('status', 'vm'), ('stop', 'vm'), ('cont', 'vm'), ('quit', 'vm'), ('cancel', 'vm'), ('migrate', 'vm', 'tcp:127.0.0.1:1')):
        done = host.vmferry(*args)
        assert done.code == 1 and done.stderr.startswith('vmferry: machine vm: '), (args, done)
        error = host.vmferry(*args, '--json').lines[-1]
        assert error['type'] == 'error' and set(error) == {'type', 'id', 'message', 'cause', 'hint'}, error
    assert host.vmferry('list').code == 0


def a_name_is_taken_once(stage):
    host = stage.host()
    machine = host.run('vm')
    again = host.vmferry('run', 'vm')
    assert again.code == 1 and 'runs already' in again.stderr and again.stdout == '', again
    assert machine.status()['running']
    host.run('vm2')
    assert [line['name'] for line in host.vmferry('list', '--json').lines] == ['vm', 'vm2']


def a_crash_leaves_the_name_free(stage):
    host = stage.host()
    machine = host.run('vm')
    machine.process.kill()
    machine.wait()
    assert os.path.exists(machine.control)
    assert host.vmferry('list').stdout.split() == ['vm', 'dead']
    assert host.vmferry('status', 'vm').code == 1
    assert host.run('vm').status()['running']


def signals_end_it_cleanly(stage):
    host = stage.host()
    for number in (signal.SIGTERM, signal.SIGINT):
        machine = host.run('vm')
        client = machine.qmp()
        machine.process.send_signal(number)
        client.event('SHUTDOWN', reason='host-signal')
        assert machine.wait() == 0
        assert not os.path.exists(machine.control)


def a_daemon_goes_on(stage):
    host = stage.host()
    done = host.vmferry('run', 'vm', '--memory', '16M', '--daemon')
    assert done.code == 0 and done.lines[0]['type'] == 'listening' and len(done.lines) == 1, done
    status = host.vmferry('status', 'vm', '--json').lines[0]
    stage.pids.append(status['pid'])
    assert status['running']
    refused = host.vmferry('run', 'vm', '--daemon')
    assert refused.code == 1 and 'runs already' in refused.stderr, refused
    assert host.vmferry('run', 'vm2', '--daemon', '--memory', '1T').code == 2
    assert host.vmferry('quit', 'vm').code == 0

    def has_ended():
        try:
            with open(f'/proc/{status["pid"]}/stat', encoding='ascii') as stat:
                return stat.read().split()[2] == 'Z'
        except (FileNotFoundError, ProcessLookupError):
            return True
    story.wait_until(has_ended, 'end of the daemon')


def directories_of_others_are_refused(stage):
    host = stage.host()
    os.mkdir(host.runtime_dir)
    os.chmod(host.runtime_dir, 0o777)
    refused = host.vmferry('run', 'vm')
    assert refused.code == 1 and 'others may write' in refused.stderr, refused
    os.chmod(host.runtime_dir, 0o755)
    host.run('vm')
    option = os.path.join(host.directory, 'elsewhere')
    machine = host.run('vm', '--runtime-dir', option)
    assert machine.control == os.path.join(option, 'vm.sock')
    assert [line['pid'] for line in host.vmferry('list', '--json', '--runtime-dir', option).lines] == [machine.process.pid]
    assert len(host.vmferry('list', '--json').lines) == 1


def json_is_all_that_is_on_stdout(stage):
    host = stage.host()
    process = host.start('run', 'vm', '--json', '--memory', '16M')
    assert json.loads(process.stdout.readline())['type'] == 'listening'
    host.vmferry('stop', 'vm', '--json')
    host.vmferry('quit', 'vm', '--json')
    lines = [json.loads(line) for line in process.stdout]
    assert [line['event'] for line in lines if line['type'] == 'event'] == ['RESUME', 'STOP', 'SHUTDOWN'], lines
    assert process.wait() == 0


story.run(usage_is_exit_code_2, help_for_every_verb, man_pages_know_the_options,
          completion_knows_verbs_options_and_machines, the_first_line_says_where_it_listens, a_life, paused_means_paused, who_is_not_there,
          a_name_is_taken_once, a_crash_leaves_the_name_free, signals_end_it_cleanly, a_daemon_goes_on,
          directories_of_others_are_refused, json_is_all_that_is_on_stdout)
