#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QMP clients that others wrote drive whole migrations: qmp-shell, the library that it is made of, and socat.

The second argument is a folder for them; what is not there is fetched, and skipped where that is not possible.
"""
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys

import story

GUEST = ('--guest', 'dirty=8M,set=4M')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FETCH_TIMEOUT_S = 120


def pair(stage):
    target = stage.host('host-b').run('vm', *GUEST, '--incoming', 'defer')
    source = stage.host('host-a').run('vm', *GUEST)
    story.wait_until(lambda: source.status()['pages_written'] > 100, 'pages written')
    return source, target


def clients():
    """The folder that holds the fetched client's files."""
    folder = os.path.abspath(sys.argv[2])
    try:
        subprocess.run([os.path.join(ROOT, 'scripts', 'fetch-qmp-shell'), folder], check=True, capture_output=True, text=True,
                       timeout=FETCH_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        why = (getattr(error, 'stderr', None) or str(error)).strip().splitlines()
        raise story.Skip(f'python3-qemu-qmp could not be fetched: {why[-1] if why else error}') from error
    return folder


class Lines:
    """A client that reads commands as lines and writes answers as lines, perhaps behind a prompt."""

    def __init__(self, stage, command, environment=None):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        bufsize=1, env=dict(os.environ, **(environment or {})), preexec_fn=story.die_with_parent)
        stage.processes.append(self.process)

    def receive(self):
        for line in self.process.stdout:
            at = line.find('{')
            if at >= 0:
                return json.loads(line[at:])
        raise AssertionError(f'the client ended: {self.process.stderr.read()}')

    def answer(self, line):
        self.process.stdin.write(line + '\n')
        while True:
            message = self.receive()
            if 'return' in message or 'error' in message:
                return message['return']


def drive(source, target, ask):
    """A whole migration; ask(side, command, **arguments) sends a command and returns its answer."""
    assert ask(target, 'query-status')['status'] == 'inmigrate'
    ask(target, 'migrate-incoming', uri='tcp:127.0.0.1:0')
    ask(source, 'migrate-set-parameters', **{'downtime-limit': 300, 'multifd-channels': 2})
    ask(source, 'migrate', uri=target.status()['incoming_uri'])
    story.wait_until(lambda: ask(source, 'query-migrate')['status'] == 'completed', 'the end')
    info = ask(source, 'query-migrate')
    assert info['ram']['transferred'] > 0 and info['ram']['remaining'] == 0 and info['total-time'] >= info['downtime'] >= 0, info
    story.wait_until(lambda: ask(target, 'query-status') == {'status': 'running', 'running': True}, 'arrival')
    assert ask(source, 'query-status') == {'status': 'postmigrate', 'running': False}
    ask(source, 'quit')
    assert source.wait() == 0
    assert target.status()['guest_errors'] == 0


def qmp_shell(stage):
    folder = clients()
    source, target = pair(stage)
    environment = {'PYTHONPATH': os.path.join(folder, 'usr/lib/python3/dist-packages'), 'HOME': stage.directory}
    shells = {machine: Lines(stage, ['/usr/bin/python3', os.path.join(folder, 'usr/bin/qmp-shell'), machine.control], environment)
              for machine in (source, target)}

    def ask(machine, command, **arguments):
        return shells[machine].answer(' '.join([command, *(f'{name}={value}' for name, value in arguments.items())]))
    drive(source, target, ask)


def the_library_of_qmp_shell(stage):
    sys.path.insert(0, os.path.join(clients(), 'usr/lib/python3/dist-packages'))
    from qemu.qmp import QMPClient
    source, target = pair(stage)
    loop = asyncio.new_event_loop()
    connected = {machine: QMPClient(machine.host.name) for machine in (source, target)}
    seen = []
    for machine, client in connected.items():
        loop.run_until_complete(client.connect(machine.control))

    def ask(machine, command, **arguments):
        answer = loop.run_until_complete(connected[machine].execute(command, arguments or None))
        while not connected[machine].events.empty():
            seen.append(loop.run_until_complete(connected[machine].events.get()))
        return answer
    drive(source, target, ask)
    statuses = [event['data']['status'] for event in seen if event['event'] == 'MIGRATION']
    assert 'completed' in statuses and {'STOP', 'RESUME', 'MIGRATION_PASS'} <= {event['event'] for event in seen}, seen
    for client in connected.values():
        with contextlib.suppress(EOFError):   # the source has quit
            loop.run_until_complete(client.disconnect())
    loop.close()


def socat(stage):
    if not shutil.which('socat'):
        raise story.Skip('socat is not installed')
    source, target = pair(stage)
    ends = {machine: Lines(stage, ['socat', 'STDIO', f'UNIX-CONNECT:{machine.control}']) for machine in (source, target)}
    for end in ends.values():
        assert 'QMP' in end.receive()
        end.answer('{"execute": "qmp_capabilities"}')

    def ask(machine, command, **arguments):
        return ends[machine].answer(json.dumps({'execute': command, 'arguments': arguments}))
    drive(source, target, ask)


story.run(qmp_shell, the_library_of_qmp_shell, socat)
