#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket's dialect: what a QMP client may rely on, and what a bad one cannot do."""
import json
import os
import socket
import stat

import story


def greeting_then_negotiation(stage):
    machine = stage.host().run('vm')
    client = machine.qmp(negotiate=False)
    version = client.greeting['QMP']['version']['qemu']
    assert set(version) == {'major', 'minor', 'micro'} and client.greeting['QMP']['capabilities'] == []
    refused = client.command('query-status')
    assert refused['error']['class'] == 'CommandNotFound', refused
    assert client.run('qmp_capabilities') == {}
    assert client.command('qmp_capabilities')['error']['class'] == 'CommandNotFound'
    assert client.run('query-status') == {'status': 'running', 'running': True}
    assert stat.S_IMODE(os.stat(machine.control).st_mode) == 0o600


def id_is_echoed_whatever_it_is(stage):
    client = stage.host().run('vm').qmp()
    for value in (1, 'text', None, [1, {'a': 2}], {'x': 'y'}, False):
        client.send(json.dumps({'execute': 'query-name', 'id': value}))
        assert client.answer() == {'return': {'name': 'vm'}, 'id': value}
    client.send(json.dumps({'execute': 'no-such-command', 'id': 'seven'}))
    answer = client.answer()
    assert answer['error']['class'] == 'CommandNotFound' and answer['id'] == 'seven'


def several_commands_in_one_write(stage):
    client = stage.host().run('vm').qmp()
    client.send(''.join(json.dumps({'execute': 'query-name', 'id': i}) for i in range(200)))
    assert [client.answer()['id'] for _ in range(200)] == list(range(200))


def a_command_in_single_bytes(stage):
    client = stage.host().run('vm').qmp()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for byte in b' \n{"execute" : "query-name",\n "id": "\\"}{"}\r\n':
        client.send(bytes([byte]))
    assert client.answer() == {'return': {'name': 'vm'}, 'id': '"}{'}


def two_clients_at_once(stage):
    machine = stage.host().run('vm')
    first, second = machine.qmp(), machine.qmp()
    second.send('{"execute": "query-')   # unfinished while the first is served
    first.run('stop')
    first.event('STOP')
    event = second.event('STOP')
    assert set(event['timestamp']) == {'seconds', 'microseconds'}
    second.send('status"}')
    assert second.answer()['return'] == {'status': 'paused', 'running': False}
    second.run('cont')
    second.event('RESUME')
    first.event('RESUME')
    crowd = [machine.qmp() for _ in range(20)]
    for client in crowd:
        client.send('{"execute": "query-status"}')
    assert all(client.answer()['return']['running'] for client in crowd)


def garbage_is_an_error_and_no_more(stage):
    client = stage.host().run('vm').qmp()
    for garbage in ('garbage\n', '[1, 2, 3]\n', '"string"\n', '}\n', '{"execute": ]\n', '{"a": "new\nline"}\n', '{"execute": }',
                    '{"execute": "query-status", "execute": "quit"}', '{"execute": 1}', '{}', '{"arguments": {}}',
                    '{"execute": "query-status", "arguments": []}', '{"execute": "query-status", "surplus": 1}',
                    '{"execute": "query-status", "arguments": {"surplus": 1}}', '{"execute": "migrate"}',
                    '{"execute": "migrate", "arguments": {"uri": 1}}', '{"a":' * 1000 + '\n', '{"a": ' + '[' * 100000 + '\n',
                    '{"execute": "x\\u0000y"}', '{"execute": "qu\xe4ck"}', '{"id": 123456789012345678901234567890}'):
        client.send(garbage.encode('latin-1') + b'\n{"execute": "query-name", "id": "after"}')
        answers = []
        while not answers or answers[-1].get('id') != 'after':
            answers.append(client.answer())
        assert answers.pop() == {'return': {'name': 'vm'}, 'id': 'after'}
        assert answers and all('error' in answer for answer in answers), (garbage, answers)


def a_request_without_end_is_cut_off(stage):
    machine = stage.host().run('vm')
    client, witness = machine.qmp(), machine.qmp()
    try:
        client.send('{"execute": "')
        for _ in range(64):
            client.send('x' * (1 << 20))
    except (BrokenPipeError, ConnectionResetError):
        pass
    else:
        raise AssertionError('64 MiB were taken')
    assert witness.run('query-status')['running']


def who_does_not_read_is_dropped(stage):
    machine = stage.host().run('vm')
    deaf, witness = machine.qmp(), machine.qmp()
    deaf.socket.setblocking(False)
    taken = 0
    try:
        while taken < 64 << 20:   # requests wait once their answers do
            taken += deaf.socket.send(b'{"execute": "query-commands"}' * 100)
    except BlockingIOError:
        pass
    assert taken < 64 << 20
    for _ in range(20000):        # events do not wait
        witness.run('stop')
        witness.run('cont')
        witness.events.clear()
        try:
            deaf.socket.send(b' ')
        except BlockingIOError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            break
    else:
        raise AssertionError('never dropped')
    assert witness.run('query-status')['running']


def half_closed_clients_get_their_answers(stage):
    machine = stage.host().run('vm')
    client = machine.qmp()
    client.send('{"execute": "query-name", "id": 1}{"execute": "query-status"}')
    client.socket.shutdown(socket.SHUT_WR)
    assert client.answer()['id'] == 1
    assert client.answer()['return']['running']
    assert client.answer() is None


def parameters_and_capabilities(stage):
    client = stage.host().run('vm').qmp()
    client.run('migrate-set-parameters', max_bandwidth=1000000, downtime_limit=33, multifd_channels=4)
    parameters = client.run('query-migrate-parameters')
    assert (parameters['max-bandwidth'], parameters['downtime-limit'], parameters['multifd-channels']) == (1000000, 33, 4)
    assert parameters['x-vmferry-downtime-limit-ns'] == 33000000
    for bad in ({'no-such': 1}, {'multifd-channels': 0}, {'multifd-channels': 65}, {'downtime-limit': '1'}, {'max-bandwidth': -1},
                {'x-vmferry-audit': 'never'}, {'downtime-limit': 0}, {'x-vmferry-audit': 1}, {'x-vmferry-stream-version': 4},
                {'max-bandwidth': 5, 'multifd-channels': 99}):
        answer = client.command('migrate-set-parameters', **bad)
        assert answer['error']['x-vmferry-id'] == 'usage', (bad, answer)
    assert client.run('query-migrate-parameters') == parameters   # all or none
    client.run('migrate-set-capabilities', capabilities=[{'capability': 'pause-before-switchover', 'state': True},
                                                         {'capability': 'multifd', 'state': False}])
    states = {entry['capability']: entry['state'] for entry in client.run('query-migrate-capabilities')}
    assert states == {'multifd': False, 'events': True, 'return-path': True, 'auto-converge': True, 'pause-before-switchover': True,
                      'mapped-ram': False, 'dirty-bitmaps': False, 'background-snapshot': False}
    refused = client.command('migrate-set-capabilities', capabilities=[{'capability': 'multifd', 'state': True},
                                                                       {'capability': 'postcopy-ram', 'state': True}])
    assert 'postcopy-ram' in refused['error']['desc']
    assert client.run('query-migrate-capabilities')[0] == {'capability': 'multifd', 'state': False}


def descriptors_are_named(stage):
    client = stage.host().run('vm').qmp()
    read_end, write_end = os.pipe()
    assert 'SCM_RIGHTS' in client.command('getfd', fdname='pipe')['error']['desc']
    socket.send_fds(client.socket, [b'{"execute": "getfd", "arguments": {"fdname": "pipe"}}'], [write_end])
    assert client.answer() == {'return': {}}
    os.close(write_end)
    assert 'error' in client.command('getfd', fdname='1pipe')
    assert client.run('closefd', fdname='pipe') == {}
    assert os.read(read_end, 1) == b''   # it was the last one
    assert 'error' in client.command('closefd', fdname='pipe')
    assert 'pipe' in client.command('migrate', uri='fd:pipe')['error']['desc']
    os.close(read_end)


def what_it_is(stage):
    machine = stage.host().run('vm', '--uuid', '12345678-9abc-def0-1234-56789abcdef0')
    client = machine.qmp()
    assert client.run('query-uuid') == {'UUID': '12345678-9abc-def0-1234-56789abcdef0'}
    assert client.run('query-version')['package'].startswith('vmferry ')
    names = {entry['name'] for entry in client.run('query-commands')}
    assert {'migrate', 'query-migrate', 'migrate_cancel', 'migrate-continue', 'getfd', 'quit', 'query-commands'} <= names
    assert client.run('query-migrate') == {}
    assert client.run('migrate_cancel') == {}
    assert 'error' in client.command('migrate-continue', state='pre-switchover')
    assert 'error' in client.command('migrate', uri='nonsense')
    assert 'error' in client.command('migrate', uri='tcp:127.0.0.1:1', resume=True)
    assert client.run('query-status')['running']


def quit_says_so_and_tidies_up(stage):
    machine = stage.host().run('vm')
    client = machine.qmp()
    assert client.run('quit') == {}
    client.event('SHUTDOWN', reason='host-qmp-quit')
    assert client.receive() is None
    assert machine.wait() == 0
    assert os.listdir(machine.host.runtime_dir) == ['vm.console']


story.run(greeting_then_negotiation, id_is_echoed_whatever_it_is, several_commands_in_one_write, a_command_in_single_bytes,
          two_clients_at_once, garbage_is_an_error_and_no_more, a_request_without_end_is_cut_off, who_does_not_read_is_dropped,
          half_closed_clients_get_their_answers, parameters_and_capabilities, descriptors_are_named, what_it_is,
          quit_says_so_and_tidies_up)
