#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader agrees with what real machines say to each other: streams are recorded on their way and then checked."""
import os
import socket
import struct
import subprocess
import sys
import threading

import story

GUEST = ('--guest', 'dirty=16M,set=4M')
VERIFY = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-stream')


class Relay:
    """Stands between source and target and keeps what each connection carried, a file for each direction."""

    def __init__(self, stage, target_uri):
        host, port = target_uri.split(':', 1)[1].rsplit(':', 1)
        self.target = (host, int(port))
        self.directory = os.path.join(stage.directory, 'recorded')
        os.mkdir(self.directory)
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.uri = 'tcp:127.0.0.1:%d' % self.listener.getsockname()[1]
        self.connections = 0
        self.pumps = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            source, _ = self.listener.accept()
            target = socket.create_connection(self.target)
            for direction, reads, writes in (('out', source, target), ('back', target, source)):
                pump = threading.Thread(target=self._pump, args=(reads, writes, self._path(direction, self.connections)), daemon=True)
                pump.start()
                self.pumps.append(pump)
            self.connections += 1

    def _path(self, direction, number):
        return os.path.join(self.directory, '%s-%02d' % (direction, number))

    @staticmethod
    def _pump(reads, writes, path):
        with open(path, 'wb') as record:
            try:
                while octets := reads.recv(1 << 16):
                    record.write(octets)
                    writes.sendall(octets)
                writes.shutdown(socket.SHUT_WR)
            except OSError:
                pass    # the other end has gone first

    def verify(self, *options):
        """Checks all that was recorded; the main channel is the first connection."""
        for pump in self.pumps:
            pump.join(story.PATIENCE_S)
        channels = [self._path('out', n) for n in range(1, self.connections)]
        returns = [self._path('back', n) for n in range(self.connections)]
        return verify(self._path('out', 0), *(['--page-channel', *channels] if channels else []), '--return', *returns, *options)


def verify(*args):
    done = subprocess.run([sys.executable, '-B', VERIFY, '--json', *args], capture_output=True, text=True, check=False)
    return story.Done(done.returncode, done.stdout, done.stderr)


def recorded(stage, *options, ram='anon', args=('--keep',)):
    target = stage.host('host-b').run('vm', *GUEST, '--ram', ram, '--incoming', 'tcp:127.0.0.1:0')
    source = stage.host('host-a').run('vm', *GUEST, '--ram', ram)
    story.wait_until(lambda: source.status()['pages_written'] > 100, 'pages written')
    relay = Relay(stage, target.uri)
    done = source.host.vmferry('migrate', 'vm', relay.uri, '--downtime-limit', '1s', *options, *args)
    for machine in (source, target):
        machine.host.vmferry('quit', 'vm')
        machine.wait()
    return done, relay


def agrees(stage, version, channels, ram):
    done, relay = recorded(stage, '--stream-version', str(version), '--channels', str(channels), ram=ram)
    assert done.code == 0, done
    found = relay.verify('--device', 'cpu')
    assert found.code == 0, found
    held = found.lines[-1]
    assert held['version'] == version and not held['one_way'] and held['page_channels'] in (0, channels), held
    assert relay.connections == 1 + held['page_channels'] and held['data_pages_sent'] > 0, held
    assert held['sums_checked'] or any('order of the page channels' in note for note in held['notes']), held


def one_channel_in_version_3(stage):
    agrees(stage, 3, 1, 'anon')


def two_channels_in_version_3(stage):
    agrees(stage, 3, 2, 'memfd')


def four_channels_in_version_3(stage):
    agrees(stage, 3, 4, 'anon')


def one_channel_in_version_2(stage):
    agrees(stage, 2, 1, 'memfd')


def four_channels_in_version_2(stage):
    agrees(stage, 2, 4, 'anon')


def an_audit_before_run(stage):
    done, relay = recorded(stage, '--audit', 'before')
    assert done.code == 0, done
    found = relay.verify()
    assert found.code == 0, found


def a_question_only(stage):
    done, relay = recorded(stage, '--dry-run', args=())
    assert done.code == 0, done
    found = relay.verify()
    assert found.code == 0 and found.lines[-1]['preflight'], found


def files_of_both_versions(stage):
    for version in (2, 3):
        source = stage.host('host-%d' % version).run('vm', *GUEST)
        story.wait_until(lambda machine=source: machine.status()['pages_written'] > 100, 'pages written')
        path = os.path.join(stage.directory, 'v%d.vmf' % version)
        done = source.host.vmferry('migrate', 'vm', 'file:' + path, '--stream-version', str(version))
        assert done.code == 0, done
        found = verify(path)
        held = found.lines[-1]
        assert found.code == 0 and held['version'] == version and held['one_way'] and held['sums_checked'], found
        an_octet_is_missed(path, held)


def an_octet_is_missed(path, held):
    """An octet of the last page that was sent, which nothing overwrites later, is changed, and the reader sees it."""
    order = {'little': '<', 'big': '>'}[held['byte_order']]
    with open(path, 'r+b') as file:
        octets = file.read()
        at, last = 24 + 64, 0
        while at < len(octets):
            kind, length = struct.unpack_from(order + 'II', octets, at)
            if kind == 0x22 and length > 160:
                last = at + 16 + length - 1
            at += 16 + (length + 7 & ~7)
        file.seek(last)
        file.write(bytes([octets[last] ^ 1]))
    found = verify(path)
    assert found.code == 1 and found.lines[0]['id'] == 'ram.sum', found


story.run(one_channel_in_version_3, two_channels_in_version_3, four_channels_in_version_3, one_channel_in_version_2,
          four_channels_in_version_2, an_audit_before_run, a_question_only, files_of_both_versions)
