#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Strangers, liars and broken links, met by real processes: who waits goes on waiting, who was lied to says so once, guests beat on."""
import json
import os
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts'))
import story  # noqa: E402
from vmfstream import golden, wire, writer  # noqa: E402

GUEST = ('--guest', 'dirty=4M,set=2M')


def address(machine):
    host, port = machine.uri.removeprefix('tcp:').rsplit(':', 1)
    return host, int(port)


def call(machine):
    connection = socket.create_connection(address(machine), story.PATIENCE_S)
    connection.settimeout(story.PATIENCE_S)
    return connection


def is_closed(connection):
    """Reads what is said until the other side closes; a reset is an end too."""
    said = b''
    try:
        while chunk := connection.recv(4096):
            said += chunk
    except ConnectionResetError:
        pass
    connection.close()
    return said


def tell(machine, octets):
    connection = call(machine)
    try:
        connection.sendall(octets)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return is_closed(connection)


def waiting_target(stage, *options):
    return stage.host('host-b').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0', '--json', *options)


def working_source(stage, name='host-a', *options):
    machine = stage.host(name).run('vm', *GUEST, *options)
    story.wait_until(lambda: machine.status()['pages_written'] > 100, 'pages written')
    return machine


def lives(machine):
    before = machine.status()
    assert before['status'] == 'running' and before['guest_errors'] == 0, before
    story.wait_until(lambda: machine.status()['beats'] > before['beats'] + 3, 'beats')


def migrate(source, uri, *options):
    done = source.host.vmferry('migrate', 'vm', uri, '--json', *options)
    errors = [line for line in done.lines if line['type'] == 'error']
    return done, errors


def arrives(source, target):
    done, _ = migrate(source, target.uri, '--downtime-limit', '1s')
    assert done.code == 0 and done.lines[-1]['outcome'] == 'completed', done
    lives(target)


def events(target):
    """The events of a machine under --json that was told to quit."""
    target.host.vmferry('quit', 'vm')
    lines = [json.loads(line) for line in target.process.stdout]
    return [line['data'] for line in lines if line['type'] == 'event' and line['event'] == 'X_VMFERRY_EVENT']


# ---- who is no source ---------------------------------------------------------------------------------------------------------


def strangers_on_the_port(stage):
    target = waiting_target(stage)
    tell(target, b'GET / HTTP/1.1\r\nHost: here\r\n\r\n')
    tell(target, os.urandom(1 << 20))
    tell(target, bytes(4096))
    call(target).close()
    half = call(target)
    half.sendall(writer.image_header(3, False, False)[:14])
    half.close()
    idle = [call(target) for _ in range(100)]
    drip = call(target)
    drip.sendall(b'\xff')
    arrives(working_source(stage), target)
    for connection in idle + [drip]:
        connection.close()
    told = events(target)
    assert any('stream.magic' in event['text'] for event in told if event['id'] == 'stranger'), told
    assert not any(event['id'] == 'refused' for event in told), told


def streams_that_are_refused(stage):
    target = waiting_target(stage)
    expected = []
    for version in (0, 1, 4, 1 << 31):
        assert tell(target, writer.image_header(version, False, False) + bytes(64)) == b''
        expected.append('stream.version')
    for name in golden.FILES:
        with open(os.path.join(os.path.dirname(os.path.realpath(__file__)), 'golden', name), 'rb') as file:
            tell(target, file.read())
        expected.append('static.incompatible')
    stream = golden.golden_stream(3, False)
    damaged = bytearray(stream.octets())
    damaged[stream.octets().index(b'timebase')] ^= 1
    tell(target, damaged)
    expected.append('stream.crc')
    arrives(working_source(stage), target)
    refused = [event['text'] for event in events(target) if event['id'] == 'refused']
    # Each caller has a thread of its own: who was refused first need not be told of first.
    assert sorted(text.split(': ')[1] for text in refused) == sorted(expected), refused


def a_guest_that_does_not_fit(stage):
    target = waiting_target(stage)
    other = working_source(stage, 'host-c', '--memory', '8M')
    for options in ((), ('--stream-version', '2'), ('--dry-run',)):
        done, errors = migrate(other, target.uri, *options)
        assert done.code == 1 and errors[-1]['id'] == 'static.incompatible', done
        assert all(what in errors[0]['message'] for what in ('memory.size: here 16777216', 'ram.size: block ram: ')), errors
        lives(other)
    arrives(working_source(stage), target)


# ---- a link that lies ---------------------------------------------------------------------------------------------------------


class Relay:
    """Between a source and a target: passes everything on, but @edit(records, index) may change the main channel's records."""

    def __init__(self, target, edit):
        self.target = target
        self.edit = edit
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.uri = 'tcp:127.0.0.1:%d' % self.listener.getsockname()[1]
        self.sockets = [self.listener]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        try:
            while True:
                source, _ = self.listener.accept()
                target = call(self.target)
                target.settimeout(None)
                self.sockets += [source, target]
                threading.Thread(target=self.forward, args=(source, target), daemon=True).start()
                threading.Thread(target=self.pump, args=(target, source), daemon=True).start()
        except OSError:
            return

    def pump(self, read, write):
        try:
            while octets := read.recv(65536):
                write.sendall(octets)
        except OSError:
            pass
        self.cut(write)

    @staticmethod
    def cut(connection):
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def forward(self, source, target):
        first = self.exactly(source, 8)
        if first != wire.MARKER:
            target.sendall(first)
            self.pump(source, target)
            return
        try:
            target.sendall(first + self.exactly(source, 80))
            index = 0
            while True:
                header = self.exactly(source, 16)
                kind, length = struct.unpack('<II', header[:8])
                body = self.exactly(source, length + -length % 8)
                octets = self.edit(index, kind, header + body)
                index += 1
                if octets is None:
                    break
                target.sendall(octets)
        except (OSError, EOFError):
            pass
        self.cut(source)
        self.cut(target)

    @staticmethod
    def exactly(connection, length):
        octets = b''
        while len(octets) < length:
            chunk = connection.recv(length - len(octets))
            if not chunk:
                raise EOFError
            octets += chunk
        return octets

    def close(self):
        for connection in self.sockets:
            connection.close()


def ahead_of(kind, planted):
    """An edit that plants octets ahead of the first record of a kind."""
    planted_at = []

    def edit(index, this, octets):
        if this == kind and not planted_at:
            planted_at.append(index)
            return planted + octets
        return octets
    return edit


def flip(kind, at):
    def edit(_, this, octets):
        return octets[:at] + bytes([octets[at] ^ 0x10]) + octets[at + 1:] if this == kind else octets
    return edit


def cut_in(kind):
    return lambda _, this, octets: None if this == kind else octets


# name, edit, the target's id, whether the target had accepted the stream
LIES = (
    ('unknown record', ahead_of(wire.ROUND, writer.record('<', 0x33, b'what?')), 'stream.record-unknown'),
    ('oversized record', ahead_of(wire.ROUND, struct.pack('<IIII', wire.SECTION, 5 << 20, 5 << 20, 0)), 'stream.record-length'),
    ('late static data', ahead_of(wire.ROUND, writer.record('<', wire.PROPERTIES, bytes(8))), 'static.late'),
    ('end of static data twice', ahead_of(wire.ROUND, writer.record('<', wire.STATIC_DATA_END)), 'static.double-end'),
    ('page where there are page channels', ahead_of(wire.SECTION, writer.record('<', wire.PAGES, bytes(160))), 'stream.record-order'),
    ('a bit of ROUND', flip(wire.ROUND, 20), 'stream.crc'),
    ('a bit of device state', flip(wire.SECTION, 40), 'stream.crc'),
    ('a bit of SWITCHOVER', flip(wire.SWITCHOVER, 50), 'stream.crc'),
    ('section out of order', ahead_of(wire.SECTION, writer.record('<', wire.SECTION, struct.pack('<IIII', 99, 1, 0, 0))), 'section'),
    ('cut in the rounds', cut_in(wire.ROUND), 'channel.cut'),
    ('cut ahead of the switchover', cut_in(wire.SWITCHOVER), 'channel.cut'),
)


def a_stream_that_goes_wrong(stage):
    source = working_source(stage)
    for number, (name, edit, id) in enumerate(LIES):
        target = stage.host(f'b{number}').run('vm', *GUEST, '--incoming', 'tcp:127.0.0.1:0', '--json')
        relay = Relay(target, edit)
        done, errors = migrate(source, relay.uri, '--downtime-limit', '2s')
        assert done.code == 1 and len(errors) == 1, (name, done)
        assert errors[0]['id'] == ('channel.cut' if id == 'channel.cut' else 'peer'), (name, errors)
        if id != 'channel.cut':
            assert id in errors[0]['message'], (name, errors)
        lives(source)
        assert target.wait() == 1, name
        lines = [json.loads(line) for line in target.process.stdout]
        told = [line for line in lines if line['type'] == 'error']
        assert [line['id'] for line in told] == [id], (name, told)
        assert told[0]['message'] and 'hint' in told[0], told
        assert target.process.stderr.read() == '', name
        relay.close()
    target = waiting_target(stage)
    arrives(source, target)


def static_data_that_is_damaged(stage):
    """The target has accepted nothing yet: it waits on, and takes the guest over a better link."""
    source, target = working_source(stage), waiting_target(stage)
    relay = Relay(target, flip(wire.RAM_BLOCK, 24))
    done, errors = migrate(source, relay.uri, '--downtime-limit', '2s')
    assert done.code == 1 and errors[0]['id'] == 'channel.cut', done
    relay.close()
    lives(source)
    arrives(source, target)
    assert ['stream.crc' in event['text'] for event in events(target) if event['id'] == 'refused'] == [True]


def a_target_that_is_none(stage):
    """The source's side of it: whoever answers at the target's address, the guest goes on here."""
    source = working_source(stage)
    answers = (b'HTTP/1.1 400 Bad Request\r\n\r\n', bytes(4096), os.urandom(4096), b'', writer.record('<', wire.READY, bytes(64)),
               writer.record('<', wire.VERDICT, bytes(24))[:-5], writer.record('<', 0x55, b'what?'))
    for answer in answers:
        server = socket.create_server(('127.0.0.1', 0))
        threading.Thread(target=answer_with, args=(server, answer), daemon=True).start()
        done, errors = migrate(source, 'tcp:127.0.0.1:%d' % server.getsockname()[1])
        assert done.code == 1 and len(errors) == 1, (answer[:20], done)
        assert errors[0]['id'].split('.')[0] in ('stream', 'channel'), errors
        lives(source)
        server.close()
    done, errors = migrate(source, 'tcp:127.0.0.1:1')
    assert done.code == 1 and errors[0]['id'] == 'channel.connect', done
    lives(source)
    arrives(source, waiting_target(stage))


def answer_with(server, answer):
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(answer)
    time.sleep(0.05)
    connection.close()


story.run(strangers_on_the_port, streams_that_are_refused, a_guest_that_does_not_fit, a_stream_that_goes_wrong,
          static_data_that_is_damaged, a_target_that_is_none)
