#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""KVM guests in real processes: from host to host with their consoles, on memory of every kind; which backend, and what is said of it."""
import contextlib
import fcntl
import json
import os
import re
import subprocess

import story

GUEST = ('--memory', '32M', '--guest', 'dirty=200M,set=16M,line=5')
LINE = re.compile(r'guest: line (\d+): .*\n')
HUGE_PAGES = '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'


@contextlib.contextmanager
def huge_pages(count):
    """So many of the host's 2 MiB pages to spare; Skip where that cannot be."""
    try:
        number = open(HUGE_PAGES, 'r+', encoding='ascii')
    except OSError as error:
        raise story.Skip(f'huge pages: {error.strerror}') from error
    with number:
        fcntl.flock(number, fcntl.LOCK_EX)    # tests run side by side
        before = int(number.read())
        try:
            number.seek(0)
            number.write(str(before + count))
            number.flush()
            number.seek(0)
            if int(number.read()) < before + count:
                raise story.Skip(f'huge pages: this host has no {count} to spare')
            yield
        finally:
            number.seek(0)
            number.write(str(before))
            number.flush()


def let_live(machine, milliseconds=150):
    before = machine.status()
    assert before['status'] == 'running' and before['guest_errors'] == 0, before
    story.wait_until(lambda: machine.status()['beats'] > before['beats'] + milliseconds, 'beats')


def chain(stage, name, kinds, *migrate):
    """From host to host, of which each has the options of the next kind; returns the machine that the guest is in, and its console."""
    console, machine = '', None
    for number, kind in enumerate(kinds):
        host = stage.host(f'{name}-{number}')
        incoming = ('--incoming', 'tcp:127.0.0.1:0') if machine else ()
        target = host.run('vm', '--backend', 'kvm', *GUEST, *kind, *incoming)
        if machine:
            done = machine.host.vmferry('migrate', 'vm', target.uri, '--audit', 'before', '--json', *migrate)
            assert done.code == 0, done
            summary = done.lines[-1]
            assert (summary['outcome'], summary['verified'], summary['backend'], summary['guest_errors']) == \
                ('completed', 'full', 'kvm', 0), summary
            assert machine.wait() == 0
            console += console_of(machine)
        machine = target
        let_live(machine)
    return machine, console


def console_of(machine):
    with open(machine.control.removesuffix('.sock') + '.console', encoding='ascii') as text:
        return text.read()


def check_console(machine, console):
    """Every line of the guest once, whole and in its place, over the consoles of all hosts."""
    assert machine.host.vmferry('stop', 'vm').code == 0
    lines = (console + console_of(machine)).splitlines(keepends=True)
    numbers = [int(LINE.fullmatch(line).group(1)) for line in lines]
    assert numbers == list(range(len(numbers))) and len(numbers) > 50, numbers


def a_chain_of_hosts(stage):
    story.needs_kvm(stage)
    for vcpus in ('1', '2'):
        with_vcpus = [('--vcpus', vcpus, *kind) for kind in
                      ((), ('--dirty-log', 'uffd-wp'), ('--ram', 'memfd', '--dirty-log', 'kvm-bitmap'), ('--small-pages',), ())]
        check_console(*chain(stage, f'{vcpus}-vcpus', with_vcpus, '--channels', '2'))


def memory_of_huge_pages(stage):
    story.needs_kvm(stage)
    with huge_pages(32):
        kinds = [('--ram', 'hugetlb', *kind) for kind in ((), ('--dirty-log', 'uffd-wp'))] + [(), ('--ram', 'hugetlb')]
        check_console(*chain(stage, 'host', kinds))


def huge_pages_that_are_not_there(stage):
    done = stage.host().vmferry('run', 'vm', '--backend', 'rv32', '--memory', '2G', '--ram', 'hugetlb', '--json')
    if done.code == 0:
        raise story.Skip('this host has 1024 huge pages to spare')
    error = done.lines[-1]
    if error['id'] == 'unsupported':
        raise story.Skip(error['message'])
    assert (done.code, error['id']) == (1, 'ram.huge-pages') and '/proc/sys/vm/nr_hugepages' in error['hint'], done
    assert '1024 pages of 2 MiB are needed' in error['message'], done
    assert stage.host('b').vmferry('run', 'vm', '--ram', 'hugetlb', '--small-pages').code == 2
    assert stage.host('c').vmferry('run', 'vm', '--ram', 'hugetlb', '--memory', '3M').code == 1


def auto_takes_kvm(stage):
    story.needs_kvm(stage)
    source = stage.host('a').run('vm', '--backend', 'auto', *GUEST)
    target = stage.host('b').run('vm', '--backend', 'auto', *GUEST, '--incoming', 'tcp:127.0.0.1:0')
    assert source.status()['backend'] == target.status()['backend'] == 'kvm'
    let_live(source)
    assert source.host.vmferry('migrate', 'vm', target.uri).code == 0
    let_live(target)


def auto_says_why_not(stage):
    machine = stage.host().run('vm', '--backend', 'auto', '--unpaced')
    assert machine.status()['backend'] == 'rv32'
    assert machine.host.vmferry('quit', 'vm').code == 0 and machine.wait() == 0
    assert machine.process.stderr.read() == 'vmferry: vm: backend rv32, not kvm: kvm: it cannot be set as this machine is\n'


def without_kvm_it_is_the_interpreter(stage):
    """Where it is hidden, as on a host that has none: auto falls back, kvm and what only it has are refused."""
    hidden = ('unshare', '--mount', 'sh', '-c', 'mount --bind /dev/null /dev/kvm && exec "$0" "$@"')
    if not os.path.exists('/dev/kvm'):
        hidden = ()
    elif subprocess.run([*hidden, 'true'], capture_output=True).returncode:
        raise story.Skip('/dev/kvm cannot be hidden here')
    host = stage.host()

    def run(*args):
        return subprocess.Popen([*hidden, stage.vmferry, 'run', 'vm', '--memory', '16M', *args], env=host.environment, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for args in (('--backend', 'kvm'), ('--vcpus', '2'), ('--dirty-log', 'uffd-wp')):
        process = run(*args)
        stdout, stderr = process.communicate(timeout=story.PATIENCE_S)
        assert (process.returncode, stdout) == (77, '') and 'kvm: ' in stderr, (args, stdout, stderr)
    process = run()
    stage.processes.append(process)
    assert json.loads(process.stdout.readline())['type'] == 'listening'
    assert host.vmferry('status', 'vm', '--json').lines[-1]['backend'] == 'rv32'
    assert host.vmferry('quit', 'vm').code == 0
    assert process.communicate(timeout=story.PATIENCE_S)[1].startswith('vmferry: vm: backend rv32, not kvm: kvm: '), process


def backends_that_differ_are_named(stage):
    story.needs_kvm(stage)
    for here, there in (('rv32', 'kvm'), ('kvm', 'rv32')):
        source = stage.host(f'a-{here}').run('vm', '--backend', here, *GUEST)
        target = stage.host(f'b-{there}').run('vm', '--backend', there, *GUEST, '--incoming', 'tcp:127.0.0.1:0')
        for options, outcome in ((('--dry-run',), 'preflight-refused'), ((), 'failed')):
            done = source.host.vmferry('migrate', 'vm', target.uri, '--json', *options)
            summary = done.lines[-1]
            assert (done.code, summary['outcome']) == (1, outcome), done
            assert any('machine.type' in text for text in summary['incompatibilities']), summary
            assert any('machine.architecture' in text for text in summary['incompatibilities']), summary
        let_live(source)
        assert target.host.vmferry('quit', 'vm').code == 0


def wipe(machine):
    """All of the guest's first MiB becomes zeros: its tables, handlers and page tables."""
    pid = machine.status()['pid']
    with open(f'/proc/{pid}/maps', encoding='ascii') as maps:
        ranges = [[int(at, 16) for at in line.split()[0].split('-')] for line in maps if line.split()[1].startswith('rw')]
    begin = next(begin for begin, end in ranges if end - begin == 32 << 20)
    with open(f'/proc/{pid}/mem', 'r+b', buffering=0) as memory:
        memory.seek(begin)
        memory.write(bytes(1 << 20))


def a_guest_that_cannot_go_on(stage):
    """It is no paused guest: that is said, and it is not moved to where nothing would say so."""
    story.needs_kvm(stage)
    machine = stage.host('host-a').run('vm', '--backend', 'kvm', *GUEST)
    let_live(machine)
    try:
        wipe(machine)
    except PermissionError as error:
        raise story.Skip(f'memory of another process: {error.strerror}') from error
    status = story.wait_until(lambda: machine.status() if machine.status()['status'] == 'internal-error' else None, 'its end')
    assert status['failure'].startswith('vCPU 0: '), status
    assert f"it cannot go on: {status['failure']}" in machine.host.vmferry('status', 'vm').stdout
    target = stage.host('host-b').run('vm', '--backend', 'kvm', *GUEST, '--incoming', 'tcp:127.0.0.1:0')
    for refused in (machine.host.vmferry('migrate', 'vm', target.uri), machine.host.vmferry('cont', 'vm')):
        assert refused.code == 1 and status['failure'] in refused.stderr, refused
    assert machine.host.vmferry('save', 'vm', os.path.join(stage.directory, 'image')).code == 0


story.run(a_chain_of_hosts, memory_of_huge_pages, huge_pages_that_are_not_there, auto_takes_kvm, auto_says_why_not,
          without_kvm_it_is_the_interpreter, backends_that_differ_are_named, a_guest_that_cannot_go_on)
