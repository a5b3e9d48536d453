# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts on one machine: a network namespace each, joined by a veth pair, with their own runtime and state directories.

The namespaces have no names: each lives as long as the process that holds it, and that dies with us, so that nothing is left behind
even when we are killed. What is on disk lies in one temporary directory.
"""
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time

PR_SET_PDEATHSIG = 1
ADDRESSES = ('10.117.0.1', '10.117.0.2')
LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    """In a child, before exec: the kernel kills it when we end, however that happens."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Host:
    """One host: run() and popen() start commands on it."""

    def __init__(self, name, directory):
        self.name = name
        self.address = '127.0.0.1'
        self.holder = None  # the process that keeps the network namespace; None: the one we live in
        self.children = []
        self.directory = os.path.join(directory, name)
        self.environment = dict(os.environ, VMFERRY_RUNTIME_DIR=os.path.join(self.directory, 'run'),
                                VMFERRY_STATE_DIR=os.path.join(self.directory, 'state'))
        for path in (self.directory, self.environment['VMFERRY_RUNTIME_DIR'], self.environment['VMFERRY_STATE_DIR']):
            os.mkdir(path, 0o700)

    def command(self, args):
        return ['nsenter', '--net', f'--target={self.holder.pid}', '--', *args] if self.holder else list(args)

    def run(self, *args, **options):
        options.setdefault('timeout', 60)
        return subprocess.run(self.command(args), env=self.environment, text=True, stdin=subprocess.DEVNULL, **options)

    def popen(self, *args, **options):
        child = subprocess.Popen(self.command(args), env=self.environment, text=True, stdin=subprocess.DEVNULL,
                                 preexec_fn=die_with_parent, **options)
        self.children.append(child)
        return child

    def enter_own_network(self):
        # In a session of its own: Ctrl-C is for what runs in the namespace, which may still want to say good-bye.
        self.holder = subprocess.Popen(['unshare', '--net', 'sleep', 'infinity'], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                       preexec_fn=die_with_parent)
        ours = os.readlink('/proc/self/ns/net')
        while self.holder.poll() is None:
            if os.readlink(f'/proc/{self.holder.pid}/ns/net') != ours:
                return
            time.sleep(0.002)
        raise OSError(self.holder.stderr.read().strip() or 'unshare failed')

    def close(self):
        for child in [*reversed(self.children), *([self.holder] if self.holder else [])]:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(3)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


class TwoHosts:
    """with TwoHosts() as (a, b): ... ; why_loopback says why there are no namespaces, None if there are."""

    def __init__(self, loopback=False, names=('host-a', 'host-b')):
        self.why_loopback = 'as asked' if loopback else None
        self.names = names
        self.hosts = []

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix='vmferry-')
        try:
            self.hosts = [Host(name, self.directory) for name in self.names]
            if not self.why_loopback:
                self.join()
        except BaseException:
            self.__exit__()
            raise
        return self.hosts

    def __exit__(self, *_):
        for host in reversed(self.hosts):
            host.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def join(self):
        try:
            for host in self.hosts:
                host.enter_own_network()
            a, b = self.hosts
            # Made inside the two namespaces at once: the network that we live in never sees the pair.
            ip(a, 'link', 'add', 'veth0', 'type', 'veth', 'peer', 'name', 'veth0', 'netns', str(b.holder.pid))
            for host, address in zip(self.hosts, ADDRESSES):
                ip(host, 'link', 'set', 'lo', 'up')
                ip(host, 'address', 'add', f'{address}/30', 'dev', 'veth0')
                ip(host, 'link', 'set', 'veth0', 'up')
                host.address = address
        except (OSError, subprocess.CalledProcessError) as error:
            self.why_loopback = (getattr(error, 'stderr', None) or str(error)).strip()
            for host in self.hosts:
                host.close()
                host.holder, host.address = None, '127.0.0.1'


def ip(host, *args):
    host.run('ip', *args, check=True, capture_output=True)
