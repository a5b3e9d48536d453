#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of outcomes: real machines, one handover for each cell, a fault at each step of it.

A row is a fault point around a message, a journal write, a storage call or the first entry of a vCPU; a column is what happens
there. Each cell runs a migration into that fault, waits until nothing changes any more, and then looks: who runs, who holds, what is
left. Never two running guests; never none without a hold that `vmferry resolve` settles, or a process that was killed with its guest in
it. The result is docs/outcomes.rst, which --write makes and every other run is compared with.
"""
import argparse
import concurrent.futures
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback

import story

# What has to be done first so that a handover comes to these points.
SCENARIOS = {
    'moves': ((), ()),
    'refused': ((), ()),  # the target does not get the lock
    'abort': ((), ('target.send.ready.due=cut',)),
    'query': (('source.send.run.done=cut',), ()),
}


def around(*names):
    return [f'{name}.{when}' for name in names for when in ('due', 'done')]


ROWS = [('moves', point) for point in around(
    'source.journal.offered', 'source.storage.release', 'source.send.switchover', 'target.storage.acquire', 'target.journal.ready',
    'target.send.ready', 'source.send.run', 'target.journal.started', 'target.guest.start', 'target.send.running',
    'source.journal.gone', 'source.send.end', 'target.journal.confirmed')]
ROWS += [('refused', point) for point in ['target.storage.acquire.due'] + around(
    'target.send.refused', 'source.storage.acquire', 'source.guest.start', 'source.journal.back')]
ROWS += [('abort', point) for point in around(
    'source.ask.abort', 'target.answer.abort', 'target.journal.refused', 'target.storage.release')]
ROWS += [('query', point) for point in around('source.ask.query', 'target.answer.query')]

COLUMNS = ['source killed', 'source rebooted', 'target killed', 'target rebooted', 'link cut', 'link silent', 'state full']
SILENCE = '4s'
GUEST = ('--memory', '16M', '--guest', 'dirty=8M,set=4M')
STATE_KIB = 64
TRIES = 4
LIBC = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    pass


class Missed(Exception):
    """The handover never came to the point: too slow for its deadlines, or the target was faster. Says nothing of the outcome."""


def mount_small(path):
    """A state directory of its own small filesystem, so that it can be filled."""
    os.mkdir(path, 0o700)
    if LIBC.mount(b'tmpfs', path.encode(), b'tmpfs', 0, f'size={STATE_KIB}k,mode=700'.encode()) != 0:
        raise story.Skip('needs a mount: ' + os.strerror(ctypes.get_errno()))


def fill(path):
    with open(os.path.join(path, 'filler'), 'wb', buffering=0) as filler:
        try:
            while True:
                filler.write(b'x' * 4096)
        except OSError:
            pass


def is_awaited(path):
    inode = f':{os.stat(path).st_ino} '
    with open('/proc/locks', encoding='ascii') as locks:
        return any('->' in line and inode in line for line in locks)


class Cell:
    def __init__(self, stage, scenario, point, column, backend):
        self.stage, self.scenario, self.point, self.column, self.backend = stage, scenario, point, column, backend
        self.side = point.split('.')[0]
        self.a, self.b = stage.host('a'), stage.host('b')
        self.uri = f'unix:{stage.directory}/b.sock'
        self.lock = os.path.join(stage.directory, 'disk.lock')
        self.mounts = []

    # ---- the machines --------------------------------------------------------------------------------------------------------------

    def faults(self, side):
        """Faults of one side's machine: what leads there, and what happens there."""
        lead = SCENARIOS[self.scenario][0 if side == 'source' else 1]
        here = []
        if side == self.side:
            action = {'link cut': 'cut', 'link silent': f'silent:{SILENCE}', f'{side} killed': 'kill',
                      f'{side} rebooted': 'kill'}.get(self.column, 'stop')
            here = [f'{self.point}={action}']
        return [word for fault in (*lead, *here) for word in ('--fault', fault)]

    def run_target(self, faults=()):
        return self.b.run('vm', *GUEST, '--backend', self.backend, '--lock', self.lock, '--incoming', self.uri, *faults)

    def start(self):
        if self.column == 'state full':
            host = self.a if self.side == 'source' else self.b
            state = os.path.join(host.directory, 'state')
            mount_small(state)
            self.mounts.append(state)
        self.target = self.run_target(self.faults('target'))
        self.source = self.a.run('vm', *GUEST, '--backend', self.backend, '--lock', self.lock, *self.faults('source'))
        if self.scenario == 'refused':
            # Somebody else waits for the lock, gets it when the source lets go, and gives it back after a while. Unless the target takes
            # it first: then he waits to the end.
            third = subprocess.Popen(['flock', self.lock, 'sleep', '2'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.stage.processes.append(third)
            story.wait_until(lambda: is_awaited(self.lock), 'somebody who waits for the lock')
        self.migration = self.a.start('migrate', 'vm', self.uri, '--switchover-timeout', '2s')

    # ---- the fault -----------------------------------------------------------------------------------------------------------------

    def here(self):
        return self.source if self.side == 'source' else self.target

    def reach(self):
        """Waits until the side is stopped, killed or past the point."""
        pid = self.here().process.pid
        if self.column in ('link cut', 'link silent'):
            return
        killed = self.column in (f'{self.side} killed', f'{self.side} rebooted')
        deadline = time.monotonic() + 20
        while not (self.here().process.poll() is not None if killed else story.is_stopped(pid)):
            if time.monotonic() > deadline or self.here().process.poll() is not None:
                raise Missed(self.point)
            time.sleep(0.01)
        if killed and self.here().process.returncode != -signal.SIGKILL:
            raise Missed(self.point)

    def happen(self):
        self.reach()
        time.sleep(0.3)  # what the other side does with what it has
        if self.column == 'state full':
            fill(self.mounts[0])
        victim = {'source': self.source, 'target': self.target}.get(self.column.split()[0])
        if victim:
            if victim.process.poll() is None:
                victim.process.kill()
            victim.process.wait()
        if self.here() is not victim and self.column not in ('link cut', 'link silent'):
            self.here().process.send_signal(signal.SIGCONT)
        if self.column == 'target rebooted':
            shutil.rmtree(self.b.runtime_dir)
            self.target = self.run_target()
        if self.column == 'source rebooted':
            shutil.rmtree(self.a.runtime_dir)

    # ---- what came of it -----------------------------------------------------------------------------------------------------------

    def look(self, machine):
        """running, held, ...; gone: it ended by itself, having nothing any more; dead: it was killed."""
        done = None
        if machine.process.poll() is None:
            done = machine.host.vmferry('status', 'vm', '--json')
            if done.code == 1:
                machine.wait()  # it is about to end
        if machine.process.poll() is not None:
            return 'dead' if machine.process.returncode < 0 else 'gone'
        if done.code not in (0, 4) or not done.lines:
            raise Failure(f'status: {done}')
        status = done.lines[-1]
        if status['guest_errors']:
            raise Failure(f'the guest found errors: {status}')
        held = (status['migration'] or {}).get('outcome') == 'held'
        return 'held' if held else status['status']

    def settle(self):
        """What both are, once that has not changed for a while."""
        deadline = time.monotonic() + 45
        since, last = time.monotonic(), None
        while time.monotonic() < deadline:
            now = (self.look(self.source), self.look(self.target))
            calm = self.migration.poll() is not None and not {'migrating', 'finish-migrate', 'device'} & set(now)
            if now != last or not calm:
                since, last = time.monotonic(), now
            elif time.monotonic() - since > (6 if 'held' in now and 'silent' in self.column else 1.5):
                return now
            time.sleep(0.15)
        raise Failure(f'does not settle: {last}')

    def beats(self, machine):
        before = machine.status()['beats']
        story.wait_until(lambda: machine.status()['beats'] > before, 'beats of a guest that is said to run')

    def resolve(self, host, *options):
        done = host.vmferry('resolve', 'vm', '--json', *options)
        return done.code

    def settle_hold(self, now):
        """A truthful person's `resolve`; returns what was typed. Exactly one guest runs after it."""
        source, target = now
        if source == 'running':
            typed = 'target: resolve --discard'
            assert self.resolve(self.b, '--discard') == 0
        elif target == 'running':
            typed = 'source: resolve --discard'
            assert self.resolve(self.a, '--discard') in (0, 3)
        elif source == 'held':
            typed = 'source: resolve --run'
            if self.resolve(self.a, '--run') not in (0, 3):
                if self.look(self.target) not in ('dead', 'gone', 'inmigrate'):
                    raise Failure(f'resolve --run at the source did not help, and the target is {self.look(self.target)}')
                typed = 'source: resolve --run --fenced'
                assert self.resolve(self.a, '--run', '--fenced') in (0, 3)
        else:
            typed = 'target: resolve --run --fenced'
            assert source == 'dead', now
            assert self.resolve(self.b, '--run', '--fenced') in (0, 3)
        now = self.settle()
        if now.count('running') != 1 or 'held' in now:
            raise Failure(f'after {typed}: {now}')
        return typed

    def boot(self, ran):
        """After a reboot: `run vm` at the source is refused as long as nobody knows."""
        process = self.a.start('run', 'vm', *GUEST, '--backend', self.backend, '--lock', self.lock)
        line = process.stdout.readline()
        if line and 'listening' in line:
            if ran:
                raise Failure('a second guest could be started at the source')
            process.kill()
            process.wait()
            return 'run: allowed'
        if process.wait() not in (1, 4):
            raise Failure(f'run vm: {process.returncode}')
        return 'run: refused'

    def verdict(self):
        now = self.settle()
        source, target = now
        if now.count('running') > 1:
            raise Failure('two guests run')
        if self.scenario == 'refused' and is_awaited(self.lock):
            raise Missed(self.point)
        for machine, state in ((self.source, source), (self.target, target)):
            if state == 'running':
                self.beats(machine)
        words = {(True, False): 'source', (False, True): 'target'}.get((source == 'running', target == 'running'))
        if 'held' in now:
            held = ' and '.join(side for side, state in zip(('source', 'target'), now) if state == 'held')
            words = (words + '; ' if words else '') + f'held at the {held}, {self.settle_hold(now)}'
        elif words is None and source == 'dead':
            words = 'died-with-source'
        elif words is None and source in ('gone', 'postmigrate') and target in ('dead', 'inmigrate') and self.column.startswith('target'):
            words = 'died at the target, which had it'
        elif words is None:
            raise Failure(f'nobody has the guest: {now}')
        if self.column == 'source rebooted':
            words += '; ' + self.boot(target == 'running')
        return words

    def play(self):
        try:
            self.start()
            self.happen()
            return self.verdict()
        finally:
            for machine in (getattr(self, 'source', None), getattr(self, 'target', None)):
                if machine and machine.process.poll() is None:
                    machine.process.kill()
                    machine.process.wait()
            for path in self.mounts:
                LIBC.umount2(path.encode(), 2)


# ---- the whole table -------------------------------------------------------------------------------------------------------------------

def play(vmferry, backend, row, column):
    scenario, point = row
    try:
        for _ in range(TRIES):
            try:
                with story.Stage(vmferry) as stage:
                    return Cell(stage, scenario, point, column, backend).play()
            except Missed:
                pass
        return f'FAILED: never came to {point}'
    except story.Skip as why:
        return f'SKIP: {why}'
    except Exception as why:  # pylint: disable=broad-except
        return 'FAILED: ' + ''.join(traceback.format_exception_only(why)).strip() + ' ' + repr(traceback.extract_tb(why.__traceback__)[-1])


TITLES = {
    'moves': 'A guest that moves',
    'refused': 'Another has the storage: the target refuses',
    'abort': 'The link breaks ahead of READY: the source takes its guest back',
    'query': 'The link breaks after RUN: the source asks',
}
HEAD = """========
Outcomes
========

What becomes of a guest when something goes wrong in the middle of its handover (:doc:`handover`), as
``./scripts/outcomes`` found it with real machines, on both backends: two processes, a lock file that stands for shared
storage, and one fault for each cell, exactly at the named step. This page is written by that command (``--write``), and
a later run that finds anything else fails.

A row is the moment just before a step (``due``) or just after it (``done``); the columns:

source killed, target killed
    The process is killed and stays away.

source rebooted, target rebooted
    The same, and its runtime directory is gone, its state directory is not; ``run vm --incoming`` is started again at
    the target. At the source ``run vm`` is tried at the end: it is refused as long as an offer has no outcome.

link cut
    Every channel breaks, and new ones can be opened.

link silent
    Nothing goes through any channel for {silence}; nothing fails.

state full
    The state directory of the side where the step is takes no new file from here on.

A cell says where the guest runs in the end. *held at* says where nobody could know, and after the comma what was typed
there: a word of ``vmferry resolve`` that was true (``--fenced`` only where the other process was dead), after which
exactly one guest ran. *died-with-source*: the source was killed ahead of READY, with the guest in it, as it would have
been without migration. *died at the target, which had it*: likewise after RUNNING.
"""


def table_text(results):
    text = [HEAD.format(silence=SILENCE)]
    for scenario, title in TITLES.items():
        text.append(f'\n{title}\n{"=" * len(title)}\n')
        text.append('.. csv-table::\n   :header: ' + ', '.join(f'"{word}"' for word in ['step', *COLUMNS]) + '\n')
        for row in ROWS:
            if row[0] == scenario:
                cells = ['``' + row[1] + '``'] + [' | '.join(sorted(results.get((row, column), ['?']))) for column in COLUMNS]
                text.append('   ' + ', '.join(f'"{cell}"' for cell in cells))
    return '\n'.join(text) + '\n'


def read_table(path):
    """The cells of the document: (row, column) to a set of outcomes."""
    cells, scenario, titles = {}, None, {title: name for name, title in TITLES.items()}
    with open(path, encoding='utf-8') as document:
        for line in document:
            scenario = titles.get(line.strip(), scenario)
            if line.startswith('   "``'):
                words = [word.strip().strip('"') for word in line.strip()[1:-1].split('", "')]
                for column, cell in zip(COLUMNS, words[1:]):
                    cells[((scenario, words[0].strip('`')), column)] = set(cell.split(' | '))
    return cells


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('vmferry')
    parser.add_argument('--document', required=True)
    parser.add_argument('--backend', choices=('rv32', 'kvm'), action='append')
    parser.add_argument('--jobs', type=int, default=8)
    parser.add_argument('--point', action='append', help='only these rows')
    parser.add_argument('--column', action='append', help='only these columns')
    parser.add_argument('--sample', type=int, help='every Nth cell only')
    parser.add_argument('--write', action='store_true', help='write the document from what is found, added to what it says')
    options = parser.parse_args()

    known = read_table(options.document) if os.path.exists(options.document) else {}
    found = {cell: set(outcomes) for cell, outcomes in known.items()} if options.write else {}
    backends = options.backend or ['rv32', 'kvm']
    if 'kvm' in backends and not os.access('/dev/kvm', os.R_OK | os.W_OK):
        print('skipped: kvm: there is no /dev/kvm here')
        backends.remove('kvm')
    cells = [(backend, row, column) for backend in backends for row in ROWS for column in COLUMNS
             if (not options.point or row[1] in options.point) and (not options.column or column in options.column)]
    cells = cells[::options.sample or 1]
    bad = skipped = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = {pool.submit(play, options.vmferry, *cell): cell for cell in cells}
        for job in concurrent.futures.as_completed(jobs):
            backend, row, column = jobs[job]
            outcome = job.result()
            if outcome.startswith('SKIP'):
                skipped += 1
            elif outcome.startswith('FAILED') or (not options.write and outcome not in known.get((row, column), ())):
                bad += 1
            else:
                found.setdefault((row, column), set()).add(outcome)
            print(f'{backend} {row[0]} {row[1]} x {column}: {outcome}', flush=True)
    if options.write:
        with open(options.document, 'w', encoding='utf-8') as document:
            document.write(table_text(found))
    print(f'{len(cells) - bad - skipped} passed, {bad} failed, {skipped} skipped')
    return 1 if bad else story.SKIP if cells and skipped == len(cells) else 0


if __name__ == '__main__':
    sys.exit(main())
