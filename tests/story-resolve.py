#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handovers that come to no end by themselves, with real processes: who holds what, what people are told, and how `resolve` settles it."""
import fcntl
import os
import resource
import shutil
import signal

import story

GUEST = ('--guest', 'dirty=8M,set=4M')
CLEAR = ('unknown', 'here', 'awaited', 'gone', 'ended')


class Pair:
    """A machine that works at host-a, one that waits at host-b; a unix address, so that another can take its place."""

    def __init__(self, stage, source=(), target=()):
        self.a, self.b = stage.host('host-a'), stage.host('host-b')
        self.uri = f'unix:{stage.directory}/b.sock'
        self.target = self.b.run('vm', *GUEST, '--incoming', self.uri, *target)
        self.source = self.a.run('vm', *GUEST, *source)

    def migrate(self, *options):
        return self.a.vmferry('migrate', 'vm', self.uri, '--json', *options)

    def begin(self):
        return self.a.start('migrate', 'vm', self.uri, '--json')

    def next_target(self):
        """As after a crash or a reboot of host-b: other processes, the same state directory."""
        self.target.wait()
        shutil.rmtree(self.b.runtime_dir)
        self.target = self.b.run('vm', *GUEST, '--incoming', self.uri)


def finish(process):
    stdout, stderr = process.communicate(timeout=story.PATIENCE_S)
    return story.Done(process.returncode, stdout, stderr)


def lives(machine):
    before = machine.status()
    assert before['status'] == 'running' and before['guest_errors'] == 0, before
    story.wait_until(lambda: machine.status()['beats'] > before['beats'], 'beats')


def is_held(machine):
    status = machine.status()
    migration = status['migration'] or {}
    return status['status'] == 'finish-migrate' and migration.get('outcome') == 'held' and not status['running']


def resolve(host, code, verdict, *options):
    """The summary; the exit status and the verdict are as expected."""
    done = host.vmferry('resolve', 'vm', '--json', *options)
    assert code in (None, done.code), done
    summary = done.lines[-1]
    assert summary['type'] == 'summary' and verdict in (None, summary['verdict']), done
    assert summary['clear'] == (summary['verdict'] in CLEAR), done
    return summary


def refused(host, error_id, *command, code=4):
    done = host.vmferry(*command, '--json')
    assert done.code == code and done.lines[-1]['type'] in ('error', 'summary'), done
    errors = [line for line in done.lines if line['type'] == 'error']
    assert [line['id'] for line in errors] == [error_id], done
    return errors[0]


# ---- what settles itself ------------------------------------------------------------------------------------------------------------

def a_cut_after_run_settles_itself(stage):
    pair = Pair(stage, source=('--fault', 'source.send.run.done=cut'))
    done = pair.migrate()
    assert done.code == 0, done
    lives(pair.target)
    resolve(pair.a, 0, 'gone')
    resolve(pair.b, 0, 'here')


def a_cut_ahead_of_ready_as_well(stage):
    pair = Pair(stage, source=('--fault', 'source.send.switchover.done=cut'))
    done = pair.migrate()
    assert done.code == 1, done
    lives(pair.source)
    resolve(pair.a, 0, 'here')


def the_address_is_free_once_the_guest_has_come(stage):
    pair = Pair(stage)
    assert pair.migrate().code == 0
    story.wait_until(lambda: not os.path.exists(pair.uri.removeprefix('unix:')), 'the end of the session')
    pair.b.run('next', *GUEST, '--incoming', pair.uri)
    lives(pair.target)


def a_target_that_dies_after_ready_promises_never(stage):
    pair = Pair(stage, target=('--fault', 'target.send.ready.done=kill'))
    migration = pair.begin()
    pair.next_target()
    done = finish(migration)
    assert done.code == 1, done
    lives(pair.source)
    resolve(pair.a, 0, 'here')
    assert pair.target.status()['status'] == 'inmigrate'
    done = pair.migrate()    # and once more
    assert done.code == 0, done
    lives(pair.target)


# ---- held at the source -------------------------------------------------------------------------------------------------------------

def started_then_died(stage):
    pair = Pair(stage, target=('--fault', 'target.journal.started.done=kill'))
    migration = pair.begin()
    pair.next_target()
    done = finish(migration)
    assert done.code == 4 and done.lines[-1]['outcome'] == 'held' and done.lines[-1]['hold'] == 'handover', done
    assert done.lines[-1]['error']['id'] == 'handover.held' and 'started' in done.lines[-1]['hold_reason'], done
    assert is_held(pair.source)
    info = pair.source.qmp().run('query-migrate')
    assert info['status'] == 'device' and 'started' in info['x-vmferry-hold'], info
    assert 'vmferry resolve vm' in pair.a.vmferry('status', 'vm').stdout
    assert pair.a.vmferry('status', 'vm', '--follow').code == 4
    assert 'started' in refused(pair.a, 'handover.offered', 'cont', 'vm')['message']
    for verb in ('quit', 'cancel'):
        assert 'resolve' in refused(pair.a, 'handover.held', verb, 'vm')['hint']
    refused(pair.a, 'handover.held', 'migrate', 'vm', pair.uri)
    summary = resolve(pair.a, 4, 'held-source')
    assert summary['answer'] == 'started' and summary['offer']['state'] == 'offered' and '--fenced' in summary['advice'], summary
    assert 'then died' in refused(pair.a, 'handover.held', 'resolve', 'vm', '--run')['message']
    assert is_held(pair.source)
    summary = resolve(pair.a, 0, 'here', '--run', '--fenced')
    assert summary['offer']['state'] == 'back', summary
    lives(pair.source)
    assert pair.source.status()['migration']['outcome'] == 'failed'


def given_up_at_the_source(stage):
    pair = Pair(stage, target=('--fault', 'target.journal.started.done=kill'))
    migration = pair.begin()
    pair.next_target()
    assert finish(migration).code == 4
    summary = resolve(pair.a, 0, 'gone', '--discard')
    assert summary['offer']['state'] == 'gone' and pair.source.status()['status'] == 'postmigrate', summary
    refused(pair.a, 'state', 'cont', 'vm', code=1)
    assert pair.a.vmferry('quit', 'vm').code == 0 and pair.source.wait() == 0


# ---- held at the target -------------------------------------------------------------------------------------------------------------

def orphaned(stage):
    """The source was killed after READY: host-b holds the guest, host-a has an offer without an outcome and nothing else."""
    pair = Pair(stage, source=('--fault', 'source.send.run.due=kill'))
    done = pair.migrate()
    assert done.code == 4 and pair.source.wait() == -signal.SIGKILL, done
    shutil.rmtree(pair.a.runtime_dir)
    story.wait_until(lambda: is_held(pair.target), 'a hold')
    return pair


def a_target_that_is_ready_holds(stage):
    pair = orphaned(stage)
    assert 'may run at the source' in pair.b.vmferry('status', 'vm').stdout
    refused(pair.b, 'handover.offered', 'cont', 'vm')
    refused(pair.b, 'handover.held', 'quit', 'vm')
    assert '--fenced' in resolve(pair.b, 4, 'held-target')['advice']
    refused(pair.b, 'handover.held', 'resolve', 'vm', '--run')
    assert is_held(pair.target)
    resolve(pair.b, 0, 'here', '--run', '--fenced')
    lives(pair.target)
    # The host of the source comes back: its guest may not be started beside the other.
    error = refused(pair.a, 'handover.offered', 'run', 'vm', '--memory', '16M')
    assert 'vmferry resolve' in error['hint'] and 'host-b' in error['message'], error
    assert resolve(pair.a, 4, 'offered')['answer'] == 'running'
    assert resolve(pair.a, 3, 'gone', '--run')['offer']['state'] == 'gone'    # it runs there, whatever was asked for
    lives(pair.target)
    lives(pair.a.run('vm', *GUEST))    # no longer this program's business


def the_dead_source_takes_it_back(stage):
    pair = orphaned(stage)
    assert resolve(pair.a, 4, 'offered')['answer'] == 'held'
    assert is_held(pair.target)    # asking has changed nothing
    summary = resolve(pair.a, 0, 'ended', '--run')
    assert summary['offer']['state'] == 'back' and 'vmferry run vm' in summary['advice'], summary
    assert pair.target.wait() == 1    # it was told, and has nothing left to wait for
    assert resolve(pair.b, 0, 'unknown')['arrival']['state'] == 'refused'
    lives(pair.a.run('vm', *GUEST))


def the_target_gives_it_up(stage):
    pair = orphaned(stage)
    assert resolve(pair.b, 0, 'unknown', '--discard')['arrival']['state'] == 'refused'
    assert pair.target.wait() == 1
    assert resolve(pair.a, 4, 'offered')['answer'] == 'none'
    pair.next_target()
    assert resolve(pair.a, 4, 'offered')['answer'] == 'never'
    resolve(pair.a, 0, 'ended', '--run')


def nobody_answers(stage):
    pair = orphaned(stage)
    done = pair.b.vmferry('quit', 'vm', '--force')
    assert done.code == 0 and pair.target.wait() == 4, done
    resolve(pair.b, 4, 'lost')
    refused(pair.a, 'handover.held', 'resolve', 'vm', '--run')
    refused(pair.a, 'handover.offered', 'run', 'vm', '--memory', '16M')
    assert resolve(pair.a, 0, 'ended', '--run', '--fenced')['offer']['state'] == 'back'
    refused(pair.b, 'state', 'resolve', 'vm', '--run')
    assert resolve(pair.b, 0, 'unknown', '--discard')['arrival']['state'] == 'refused'


def a_guest_that_came_home_settles_its_offer(stage):
    pair = orphaned(stage)
    resolve(pair.b, 0, 'here', '--run', '--fenced')
    home = pair.a.run('vm', *GUEST, '--incoming', f'unix:{stage.directory}/a.sock')
    resolve(pair.a, 4, 'offered')
    done = pair.b.vmferry('migrate', 'vm', home.uri)
    assert done.code == 0, done
    story.wait_until(lambda: resolve(pair.a, None, None)['offer']['state'] == 'gone', 'gone')
    resolve(pair.a, 0, 'here')
    assert pair.a.vmferry('stop', 'vm').code == 0 and pair.a.vmferry('cont', 'vm').code == 0
    lives(home)


# ---- journals -----------------------------------------------------------------------------------------------------------------------

def limit_files(machine, size=0):
    """No file of the machine may grow beyond that: as on a full disk, from now on."""
    resource.prlimit(machine.process.pid, resource.RLIMIT_FSIZE, (size, size))


def a_full_state_directory_stops_no_guest(stage):
    pair = Pair(stage)
    limit_files(pair.source)
    done = pair.migrate()
    assert done.code == 1 and done.lines[-1]['error']['id'] == 'journal' and done.lines[-1]['downtime_ns'] == 0, done
    lives(pair.source)
    resolve(pair.a, 0, 'here')


def a_full_state_directory_at_the_target(stage):
    pair = Pair(stage)
    limit_files(pair.target)
    done = pair.migrate()
    assert done.code == 1 and done.lines[-1]['error']['id'] == 'handover.refused' and 'journal' in done.lines[-1]['error']['message'], done
    lives(pair.source)
    assert pair.target.wait() == 1


def a_machine_without_a_state_directory_does_not_start(stage):
    host = stage.host()
    path = os.path.join(stage.directory, 'file')
    with open(path, 'w', encoding='utf-8') as file:
        file.write('no directory')
    refused(host, 'io', 'run', 'vm', '--state-dir', path, code=1)
    os.mkdir(os.path.join(stage.directory, 'open'), 0o777)
    os.chmod(os.path.join(stage.directory, 'open'), 0o777)
    refused(host, 'io', 'run', 'vm', '--state-dir', os.path.join(stage.directory, 'open'), code=1)


def a_damaged_entry_is_nobodys_guess(stage):
    pair = orphaned(stage)
    state = os.path.join(pair.a.directory, 'state')
    [name] = [name for name in os.listdir(state) if name.endswith('.source')]
    with open(os.path.join(state, name), 'r+b') as file:
        file.write(bytes(os.path.getsize(file.name)))
    assert resolve(pair.a, 4, 'damaged')['damaged_entries'] == 1
    refused(pair.a, 'journal.damaged', 'run', 'vm', '--memory', '16M')
    refused(pair.a, 'journal.damaged', 'resolve', 'vm', '--run')
    os.unlink(os.path.join(state, name))
    resolve(pair.a, 0, 'unknown')


# ---- storage ------------------------------------------------------------------------------------------------------------------------

class Lock:
    """Somebody else who holds a lock file."""

    def __init__(self, path):
        self.file = open(path, 'a', encoding='utf-8')
        fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self):
        self.file.close()


def is_locked(path):
    try:
        Lock(path).release()
        return False
    except BlockingIOError:
        return True


def the_lock_goes_with_the_guest(stage):
    path = os.path.join(stage.directory, 'lock')
    pair = Pair(stage, source=('--lock', path), target=('--lock', path))
    assert is_locked(path) and pair.source.status()['lock_held'] and not pair.target.status()['lock_held']
    refused(stage.host('host-c'), 'guest', 'run', 'vm', '--lock', path, code=1)
    done = pair.migrate('--keep')
    assert done.code == 0, done
    assert pair.target.status()['lock_held'] and not pair.source.status()['lock_held']
    lives(pair.target)
    assert pair.a.vmferry('quit', 'vm').code == 0 and pair.source.wait() == 0
    assert is_locked(path)
    assert pair.b.vmferry('quit', 'vm').code == 0 and pair.target.wait() == 0
    assert not is_locked(path)


def a_lock_of_a_third_party_is_a_refusal(stage):
    here, there = (os.path.join(stage.directory, name) for name in ('here', 'there'))
    pair = Pair(stage, source=('--lock', here), target=('--lock', there))
    other = Lock(there)
    done = pair.migrate()
    assert done.code == 1 and done.lines[-1]['error']['id'] == 'handover.refused', done
    assert 'another holds it' in done.lines[-1]['error']['message'], done
    lives(pair.source)
    assert pair.source.status()['lock_held']
    other.release()


def who_lost_the_lock_waits_for_it(stage):
    """Somebody takes the storage while it is nobody's: the guest is the source's again, and stands until it has it back."""
    path = os.path.join(stage.directory, 'lock')
    pair = Pair(stage, source=('--lock', path, '--fault', 'source.storage.release.done=stop'), target=('--lock', path))
    migration = pair.begin()
    story.wait_until(lambda: story.is_stopped(pair.source.process.pid), 'SIGSTOP')
    other = Lock(path)
    os.kill(pair.source.process.pid, signal.SIGCONT)
    done = finish(migration)
    assert done.code == 4 and 'storage' in done.lines[-1]['hold_reason'], done
    assert is_held(pair.source)
    assert 'storage' in refused(pair.a, 'handover.offered', 'cont', 'vm')['message']
    assert 'lock' in resolve(pair.a, 4, 'held-source')['advice']
    refused(pair.a, 'handover.held', 'resolve', 'vm', '--run')
    other.release()
    story.wait_until(lambda: pair.source.status()['running'], 'the guest')
    lives(pair.source)
    story.wait_until(lambda: pair.source.status()['migration']['outcome'] == 'failed', 'the end')
    resolve(pair.a, 0, 'here')


def both_ends_have_it_or_none(stage):
    path = os.path.join(stage.directory, 'lock')
    pair = Pair(stage, source=('--lock', path))
    done = pair.migrate('--dry-run')
    assert done.code == 1 and any('storage.lock' in text for text in done.lines[-1]['incompatibilities']), done
    lives(pair.source)


def what_resolve_does_not_take(stage):
    host = stage.host()
    for options in (('--run', '--discard'), ('--fenced',), ('--discard', '--fenced')):
        refused(host, 'usage', 'resolve', 'vm', *options, code=2)
    assert resolve(host, 0, 'unknown')['offer'] is None
    assert not os.path.exists(os.path.join(host.directory, 'state'))    # asking has made nothing
    refused(host, 'usage', 'run', 'vm', '--fault', 'no-such', code=2)


story.run(a_cut_after_run_settles_itself, a_cut_ahead_of_ready_as_well, the_address_is_free_once_the_guest_has_come,
          a_target_that_dies_after_ready_promises_never,
          started_then_died, given_up_at_the_source, a_target_that_is_ready_holds, the_dead_source_takes_it_back,
          the_target_gives_it_up, nobody_answers, a_guest_that_came_home_settles_its_offer, a_full_state_directory_stops_no_guest,
          a_full_state_directory_at_the_target, a_machine_without_a_state_directory_does_not_start, a_damaged_entry_is_nobodys_guess,
          the_lock_goes_with_the_guest, a_lock_of_a_third_party_is_a_refusal, who_lost_the_lock_waits_for_it,
          both_ends_have_it_or_none, what_resolve_does_not_take)
