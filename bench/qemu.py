# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stock QEMU as the other side of a ratio: a guest that was never started, whose RAM the host fills, moved over multifd channels.

The time is from the migrate command until the target says that it is complete, which is when a running guest would go on there.
"""
import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time

from processes import BenchError, Noise, PATIENCE_S, cpu_s, in_child
from sides import outcome

MIB = 1 << 20
BINARY = 'qemu-system-x86_64'


class Qemu:
    """A QEMU to run: the system's, or one in a folder with a root file system of its own."""

    def __init__(self, root=None):
        self.root = root
        self.prefix = ['chroot', root] if root else []
        self.directory = tempfile.mkdtemp(prefix='bench-', dir=os.path.join(root, 'tmp') if root else None)
        done = subprocess.run([*self.prefix, BINARY, '--version'], capture_output=True, text=True, check=False)
        match = re.search(r'version (\S+)', done.stdout)
        if not match:
            raise BenchError(f'{BINARY}: {done.stderr.strip() or "says no version"}')
        self.version = match[1]

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def find(which, current):
    """The QEMU that was asked for ("installed", "current", "auto", "none"), or None."""
    if which in ('auto', 'current') and os.path.exists(os.path.join(current, 'usr/bin', BINARY)):
        return Qemu(current)
    if which in ('auto', 'installed') and shutil.which(BINARY):
        return Qemu()
    return None


class Qmp:
    """A client of one QEMU's control socket."""

    def __init__(self, path, process):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f'{BINARY}: does not answer') from error
                time.sleep(0.02)
        self.stream = self.socket.makefile('rb')
        self.events = []
        self.read()
        self.command('qmp_capabilities')

    def read(self):
        line = self.stream.readline()
        if not line:
            raise BenchError(f'{BINARY}: has ended')
        return json.loads(line)

    def command(self, name, /, **arguments):
        self.socket.sendall(json.dumps({'execute': name, 'arguments': arguments}).encode() + b'\n')
        while True:
            message = self.read()
            if 'event' in message:
                self.events.append(message)
            elif 'error' in message:
                raise BenchError(f'{BINARY}: {name}: {message["error"]["desc"]}')
            else:
                return message['return']

    def wait_for_end(self):
        """Until the migration has ended here; returns when that was, in seconds of the clock on the wall."""
        while True:
            while self.events:
                event = self.events.pop(0)
                status = event['data'].get('status') if event['event'] == 'MIGRATION' else None
                if status == 'completed':
                    return event['timestamp']['seconds'] + event['timestamp']['microseconds'] / 1e6
                if status in ('failed', 'cancelled'):
                    raise BenchError(f'{BINARY}: migration {status}')
            message = self.read()
            if 'event' in message:
                self.events.append(message)


class Guest:
    """A stopped guest in a QEMU of its own."""

    def __init__(self, qemu, machine, size, name, channels, incoming=False, capabilities=(), parameters=None):
        path = os.path.join(qemu.directory, name)
        inside = path[len(qemu.root):] if qemu.root else path
        backend = 'memory-backend-memfd,share=on' if machine.memory == 'memfd' else 'memory-backend-ram'
        command = [*qemu.prefix, BINARY, '-S', '-accel', 'tcg', '-machine', 'pc,memory-backend=ram',
                   '-object', f'{backend},id=ram,size={size}', '-m', f'{size // MIB}M', '-nodefaults', '-no-user-config',
                   '-display', 'none', '-qmp', f'unix:{inside},server=on,wait=off', *(['-incoming', 'defer'] if incoming else [])]
        self.size = size
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        preexec_fn=in_child(small_pages=machine.pages == '4k'))
        try:
            self.qmp = Qmp(path, self.process)
            self.qmp.command('migrate-set-capabilities', capabilities=[{'capability': name, 'state': True}
                                                                       for name in ('multifd', 'events', *capabilities)])
            self.qmp.command('migrate-set-parameters', **{'multifd-channels': channels, 'max-bandwidth': 10**12, **(parameters or {})})
        except BenchError:
            self.close()
            raise

    def ram_address(self):
        """Where guest RAM is in the process: the largest mapping that can be written."""
        best = (0, 0)
        with open(f'/proc/{self.process.pid}/maps', encoding='utf-8', errors='replace') as maps:
            for line in maps:
                bounds, access = line.split()[:2]
                start, end = (int(bound, 16) for bound in bounds.split('-'))
                if access.startswith('rw-'): # TCG's buffer, which can be larger, is executable
                    best = max(best, (end - start, start))
        if best[0] < self.size:
            raise BenchError(f'{BINARY}: its guest RAM is not found')
        table = self.qmp.command('human-monitor-command', **{'command-line': 'info ramblock'})
        row = next((line for line in table.splitlines() if line.split()[:1] == ['ram']), '')
        listed = [int(word, 16) for word in row.split() if word.startswith('0x')]
        inside = [address for address in listed if best[1] <= address <= best[1] + best[0] - self.size]
        return inside[-1] if inside else best[1]

    def fill(self, how):
        """Writes guest RAM from outside: random bytes, or zeros."""
        if how == 'untouched':
            return
        if how == 'quarters':
            self.fill_quarters()
            return
        piece = bytes(16 * MIB) if how == 'zero' else random.Random(1).randbytes(16 * MIB)
        base = self.ram_address()
        memory = os.open(f'/proc/{self.process.pid}/mem', os.O_WRONLY)
        try:
            at = 0
            while at < self.size:
                offset = at % len(piece)
                at += os.pwrite(memory, memoryview(piece)[offset:offset + self.size - at], base + at)
        finally:
            os.close(memory)

    def fill_quarters(self):
        """Random bytes in each 2 MiB but each fourth."""
        piece, base = random.Random(1).randbytes(6 * MIB), self.ram_address()
        memory = os.open(f'/proc/{self.process.pid}/mem', os.O_WRONLY)
        try:
            for at in range(0, self.size, 8 * MIB):
                written = 0
                while written < min(len(piece), self.size - at):
                    written += os.pwrite(memory, memoryview(piece)[written:min(len(piece), self.size - at)], base + at + written)
        finally:
            os.close(memory)

    def close(self):
        self.process.kill()
        self.process.wait()


def listen(guest):
    """Has the target wait on a port of its own choice and says which."""
    guest.qmp.command('migrate-incoming', uri='tcp:127.0.0.1:0')
    addresses = guest.qmp.command('query-migrate').get('socket-address') or []
    if not addresses:
        raise BenchError(f'{BINARY}: does not say where it listens')
    return f'tcp:127.0.0.1:{addresses[0]["port"]}'


def run_qemu(qemu, machine, case, size):
    """One migration of a stopped guest."""
    guests = []
    try:
        for name in ('source', 'target'):
            guests.append(Guest(qemu, machine, size, name, case.channels, incoming=name == 'target'))
        source, target = guests
        source.fill(case.fill)
        uri = listen(target)
        machine.warm(size)
        before = sum(cpu_s(guest.process.pid) for guest in guests)
        noise, started = Noise(), time.time()
        source.qmp.command('migrate', uri=uri)
        ended = target.qmp.wait_for_end()
        used = sum(cpu_s(guest.process.pid) for guest in guests) - before
        return outcome((ended - started) * 1e9, used * 1e9, noise)
    finally:
        for guest in guests:
            guest.close()


# ---- a file with each page at its place -------------------------------------------------------------------------------------------

@contextlib.contextmanager
def reachable(qemu, folder):
    """The folder as the QEMU sees it, which may have a root of its own."""
    if not qemu.root:
        yield folder
        return
    seen = tempfile.mkdtemp(prefix='files-', dir=qemu.directory)
    subprocess.run(['mount', '--bind', folder, seen], check=True)
    try:
        yield seen[len(qemu.root):]
    finally:
        subprocess.run(['umount', seen], check=True)
        os.rmdir(seen)


def move_file(qemu, machine, size, name, channels, folder, direct):
    """One guest that saves or restores; returns seconds and CPU seconds."""
    path = f'file:{folder}/qemu'
    guest = Guest(qemu, machine, size, name, channels, incoming=name == 'restore', capabilities=['mapped-ram'],
                  parameters={'direct-io': True} if direct else {})
    try:
        if name == 'save':
            guest.fill('quarters')
        machine.warm(size)
        before, noise, started = cpu_s(guest.process.pid), Noise(), time.time()
        guest.qmp.command('migrate-incoming' if name == 'restore' else 'migrate', uri=path)
        ended = guest.qmp.wait_for_end()
        used = cpu_s(guest.process.pid) - before
        return outcome((ended - started) * 1e9, used * 1e9, noise)
    finally:
        guest.close()


def run_mapped_ram(qemu, machine, role, size, place, channels):
    """Saves a stopped guest into a mapped-ram file over multifd channels, or restores it. Direct where the storage can."""
    direct = place.name == 'disk'
    with reachable(qemu, place.folder) as folder:
        if role == 'restore' and not os.path.exists(place.path('qemu')):
            move_file(qemu, machine, size, 'save', channels, folder, direct)
        return move_file(qemu, machine, size, role, channels, folder, direct)


# ---- a disk that is copied -------------------------------------------------------------------------------------------------------

class DiskHost:
    """A QEMU with one raw disk and no guest that runs."""

    def __init__(self, qemu, name, disk, direct):
        path = os.path.join(qemu.directory, name)
        self.inside = path[len(qemu.root):] if qemu.root else path
        cache = 'file.cache.direct=on,file.aio=native' if direct else 'file.cache.direct=off,file.aio=threads'
        command = [*qemu.prefix, BINARY, '-S', '-accel', 'tcg', '-machine', 'pc', '-m', '64M', '-nodefaults', '-no-user-config',
                   '-display', 'none', '-qmp', f'unix:{self.inside},server=on,wait=off', '-blockdev',
                   f'driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename={disk},{cache}']
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=in_child())
        try:
            self.qmp = Qmp(path, self.process)
        except BenchError:
            self.close()
            raise

    def wait_for(self, *events):
        while True:
            while self.qmp.events:
                event = self.qmp.events.pop(0)
                if event['event'] in events:
                    return event
            message = self.qmp.read()
            if 'event' in message:
                self.qmp.events.append(message)

    def close(self):
        self.process.kill()
        self.process.wait()


def run_mirror(qemu, disk, copy, direct):
    """One blockdev-mirror to another QEMU's NBD export, from the command until it is complete."""
    hosts = []
    try:
        for name, path in (('mirror-source', disk), ('mirror-target', copy)):
            hosts.append(DiskHost(qemu, name, path, direct))
        source, target = hosts
        socket_path = f'{target.inside}.nbd'
        target.qmp.command('nbd-server-start', addr={'type': 'unix', 'data': {'path': socket_path}})
        target.qmp.command('block-export-add', **{'id': 'disk', 'type': 'nbd', 'node-name': 'disk', 'name': 'disk', 'writable': True})
        source.qmp.command('blockdev-add', **{'driver': 'nbd', 'node-name': 'target', 'export': 'disk',
                                              'server': {'type': 'unix', 'path': socket_path}})
        before, noise, started = sum(cpu_s(host.process.pid) for host in hosts), Noise(), time.monotonic()
        source.qmp.command('blockdev-mirror', **{'job-id': 'mirror', 'device': 'disk', 'target': 'target', 'sync': 'full'})
        event = source.wait_for('BLOCK_JOB_READY', 'BLOCK_JOB_ERROR', 'BLOCK_JOB_COMPLETED')
        if event['event'] == 'BLOCK_JOB_READY':
            source.qmp.command('block-job-complete', device='mirror')
            event = source.wait_for('BLOCK_JOB_ERROR', 'BLOCK_JOB_COMPLETED')
        if event['event'] != 'BLOCK_JOB_COMPLETED' or event['data'].get('error'):
            raise BenchError(f'{BINARY}: blockdev-mirror: {event["data"]}')
        elapsed = time.monotonic() - started
        used = sum(cpu_s(host.process.pid) for host in hosts) - before
        return outcome(elapsed * 1e9, used * 1e9, noise)
    finally:
        for host in hosts:
            host.close()
