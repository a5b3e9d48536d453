# SPDX-License-Identifier: LGPL-2.1-or-later
"""Story tests: real vmferry processes on hosts of their own, driven as people and programs drive them.

A story is a function that takes a Stage; run(story, ...) runs each on a fresh one and ends everything that it started, by its pid.
"""
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

PATIENCE_S = 60  # not a measurement: how long before a test that hangs is called failed
SKIP = 77
LIBC = ctypes.CDLL(None, use_errno=True)


class Skip(Exception):
    """This cannot run here; the text says why."""


def die_with_parent():
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait_until(condition, what):
    """Polls until condition() is true and returns what it returned."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.01)
    raise AssertionError(f'never came: {what}')


def is_stopped(pid):
    """Whether SIGSTOP was sent to it, or a debugger has it."""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as stat:
            return stat.read().rsplit(')', 1)[1].split()[0] in 'Tt'
    except FileNotFoundError:
        return False


class Qmp:
    """A client of a control socket that can also misbehave: send() takes any bytes."""

    def __init__(self, path, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(path)
        self.file = self.socket.makefile('rb')
        self.events = []
        self.greeting = self.receive()
        if negotiate:
            self.run('qmp_capabilities')

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def receive(self):
        """The next message; None at the end of the connection."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def answer(self):
        """The next message that is no event."""
        while True:
            message = self.receive()
            if message is None or 'event' not in message:
                return message
            self.events.append(message)

    def command(self, name, /, **arguments):
        """The whole answer, error or not."""
        arguments = {key.replace('_', '-'): value for key, value in arguments.items()}
        self.send(json.dumps({'execute': name, 'arguments': arguments}) + '\n')
        return self.answer()

    def run(self, name, /, **arguments):
        answer = self.command(name, **arguments)
        assert answer is not None and 'return' in answer, f'{name}: {answer}'
        return answer['return']

    def event(self, name, **data):
        """Waits for an event with these data members and returns it; those before it are forgotten."""
        while True:
            message = self.events.pop(0) if self.events else self.receive()
            assert message is not None, f'the connection ended before {name}'
            if message.get('event') == name and data.items() <= message.get('data', {}).items():
                return message

    def close(self):
        self.file.close()
        self.socket.close()


class Machine:
    """A `vmferry run` in the foreground."""

    def __init__(self, host, name, process):
        self.host = host
        self.name = name
        self.process = process
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f'run {name}: exit status {process.wait()}: {process.stderr.read()}')
        self.listening = json.loads(line)
        if 'uri' not in self.listening:
            raise AssertionError(f'run {name}: {line}')
        self.uri = self.listening['uri']
        self.control = self.listening['control']

    def qmp(self, **options):
        return Qmp(self.control, **options)

    def status(self):
        return self.host.vmferry('status', self.name, '--json').lines[-1]

    def wait(self):
        """The exit status, once it has ended."""
        return self.process.wait(PATIENCE_S)


class Done:
    """A command that has ended; lines are its stdout as JSON, where it is."""

    def __init__(self, code, stdout, stderr):
        self.code = code
        self.stdout = stdout
        self.stderr = stderr

    @property
    def lines(self):
        return [json.loads(line) for line in self.stdout.splitlines()]

    def __repr__(self):
        return f'exit status {self.code}\nstdout: {self.stdout}\nstderr: {self.stderr}'


class Host:
    """Runtime and state directories of its own, which is all that makes a host on one machine."""

    def __init__(self, stage, name):
        self.stage = stage
        self.name = name
        self.directory = os.path.join(stage.directory, name)
        self.runtime_dir = os.path.join(self.directory, 'run')
        self.environment = dict(os.environ, VMFERRY_RUNTIME_DIR=self.runtime_dir,
                                VMFERRY_STATE_DIR=os.path.join(self.directory, 'state'))
        os.mkdir(self.directory)

    def start(self, *args, **options):
        """Starts a vmferry command and returns its process, to be ended with the stage."""
        process = subprocess.Popen([self.stage.vmferry, *args], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent, **options)
        self.stage.processes.append(process)
        return process

    def vmferry(self, *args, **options):
        """Runs a vmferry command to its end."""
        process = self.start(*args, **options)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return Done(process.returncode, stdout, stderr)

    def run(self, name, *args):
        """Starts a machine; small, and on the stage's backend, unless said otherwise."""
        if '--memory' not in args:
            args = ('--memory', '16M', *args)
        if '--backend' not in args:
            args = ('--backend', self.stage.backend, *args)
        return Machine(self, name, self.start('run', name, '--host-name', self.name, *args))


class Stage:
    """What a story plays on: host(name) makes hosts."""

    def __init__(self, vmferry, backend='rv32'):
        self.vmferry = os.path.abspath(vmferry)
        self.backend = backend
        self.processes = []
        self.pids = []  # of processes that are no children of ours

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix='vmf-')
        return self

    def host(self, name='host-a'):
        return Host(self, name)

    def __exit__(self, *_):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            process.stderr.close()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.directory, ignore_errors=True)


def needs_kvm(stage):
    """Skips where there is none. Any number of times."""
    if os.path.exists(os.path.join(stage.directory, 'probe')):
        return
    host = stage.host('probe')
    done = host.vmferry('run', 'vm', '--backend', 'kvm', '--paused', '--daemon')
    if done.code == 77:
        raise Skip(done.stderr.strip())
    assert done.code == 0 and host.vmferry('quit', 'vm').code == 0, done


@contextlib.contextmanager
def device_of(path):
    """A block device over a file."""
    if os.geteuid() != 0 or not shutil.which('losetup'):
        raise Skip('only root may have loop devices, with losetup')
    made = subprocess.run(['losetup', '--find', '--show', path], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Skip(f'losetup: {made.stderr.strip()}')
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(['losetup', '--detach', device], check=True)  # at the latest once nobody has it


@contextlib.contextmanager
def in_use(device):
    """As if it were mounted."""
    exclusive = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        yield
    finally:
        os.close(exclusive)


def knows_signatures(stage):
    """Skips where what a device holds is not known."""
    if not shutil.which('mkswap'):
        raise Skip('mkswap is not installed')
    if 'libblkid' not in subprocess.run(['ldd', stage.vmferry], capture_output=True, text=True, check=True).stdout:
        raise Skip('built without libblkid')


def disk_on_silent_server(stage, name, silent, size):
    """The --disk of one whose server keeps these commands ("read", "write") waiting, and how to wait until it has one."""
    if not shutil.which('nbdkit'):
        raise Skip('nbdkit is not installed')
    if 'libnbd' not in subprocess.run(['ldd', stage.vmferry], capture_output=True, text=True, check=True).stdout:
        raise Skip('built without libnbd')
    path, log = os.path.join(stage.directory, f'nbd-{name}'), os.path.join(stage.directory, f'log-{name}')
    stage.processes.append(subprocess.Popen(
        ['nbdkit', '-f', '-U', path, '--filter=log', '--filter=delay', 'memory', str(size), f'delay-{silent}=10000', f'logfile={log}'],
        preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    wait_until(lambda: os.path.exists(path), 'the server')

    def is_silent():
        with open(log, encoding='utf-8') as file:
            return f' {silent.capitalize()} id=' in file.read()
    return f'root=nbd+unix:///?socket={path},no-lock', lambda: wait_until(is_silent, 'the silence')


def run(*stories):
    """
    Runs the stories on the vmferry that the command line names, says how each went, and exits. "kvm" behind it: on that backend, not on
    the one that is the same everywhere.
    """
    backend = sys.argv[2] if sys.argv[2:] in (['kvm'], ['rv32']) else 'rv32'
    failed = skipped = 0
    for story in stories:
        try:
            with Stage(sys.argv[1], backend) as stage:
                if backend == 'kvm':
                    needs_kvm(stage)
                story(stage)
            print(f'ok: {story.__name__}', flush=True)
        except Skip as why:
            skipped += 1
            print(f'SKIP: {story.__name__}: {why}', flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            traceback.print_exc()
            print(f'FAILED: {story.__name__}', flush=True)
    sys.exit(1 if failed else SKIP if skipped == len(stories) else 0)
