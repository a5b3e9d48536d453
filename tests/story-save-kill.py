#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that saves is killed at any moment, fifty times: whole images, layers and saves at one moment."""
import hashlib
import os
import random
import subprocess
import sys
import time

import story

VERIFY = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts', 'verify-image')
GUEST = ('--guest', 'dirty=8M,set=6M')
KILLS = {'whole': 20, 'layer': 15, 'moment': 15}
THEN = ('cont', 'stop', 'quit')
SEED = 20261130


def digest(path):
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).digest()


def verdicts(host, path):
    """Whether vmferry and the independent reader take it for a whole image, its parents and every page looked at."""
    script = subprocess.run([sys.executable, '-B', VERIFY, '--pages', path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            check=False)
    engine = host.vmferry('verify', '--parents', path)
    assert script.returncode in (0, 1) and engine.code in (0, 1), (script, engine)
    return script.returncode == 0, engine.code == 0


def machine_at(host):
    machine = host.run('vm', *GUEST)
    story.wait_until(lambda: machine.status()['pages_written'] > 1600, 'pages written')
    return machine


class Saver:
    """Saves of one kind, over the same image again and again."""

    def __init__(self, stage, kind):
        self.host = stage.host(f'host-{kind}')
        self.kind = kind
        self.chance = random.Random(f'{SEED} {kind}')
        self.folder = os.path.join(stage.directory, kind)
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, 'image')
        self.machine = machine_at(self.host)
        self.options = {'whole': (), 'layer': ('--parent', self.base()), 'moment': ('--point-in-time',)}[kind]
        self.usual_s = self.save_whole()
        self.before = digest(self.path)
        self.old = self.new = 0

    def base(self):
        """What layers stand on."""
        if self.kind != 'layer':
            return ''
        path = os.path.join(self.folder, 'base')
        done = self.host.vmferry('save', 'vm', path)
        assert done.code == 0, done
        return path

    def save_whole(self):
        begun = time.monotonic()
        done = self.host.vmferry('save', 'vm', self.path, *self.options)
        if done.code == story.SKIP:
            raise story.Skip(done.stderr)
        assert done.code == 0, done
        return time.monotonic() - begun

    def is_where_it_was_told(self, then):
        """The save has ended before the kill."""
        if then == 'quit':
            assert self.machine.wait() == 0
            return
        status = self.machine.status()
        assert status['status'] == ('running' if then == 'cont' else 'paused') and status['guest_errors'] == 0, (then, status)

    def kill(self):
        then = 'cont' if self.kind == 'moment' else self.chance.choice(THEN)
        saver = self.host.start('save', 'vm', self.path, '--then', then, *self.options)
        time.sleep(self.chance.uniform(0, 1.2 * self.usual_s))
        if saver.poll() == 0:
            self.is_where_it_was_told(then)
        self.machine.process.kill()
        self.machine.process.wait()
        saver.wait(story.PATIENCE_S)
        self.judge()
        self.machine = machine_at(self.host)

    def judge(self):
        after = digest(self.path)
        if after != self.before:
            assert verdicts(self.host, self.path) == (True, True), self.path
        self.old += after == self.before
        self.new += after != self.before
        self.before = after
        partial = self.path + '.partial'
        if os.path.exists(partial):    # it may be whole already, and had only not got its name; it is never half an image to one reader
            script, engine = verdicts(self.host, partial)
            assert script == engine, (script, engine)
        assert set(os.listdir(self.folder)) <= {'image', 'image.partial', 'base'}, os.listdir(self.folder)

    def comes_back(self, stage):
        """What stands there in the end, once nobody was killed, and without what was left beside it."""
        self.save_whole()
        assert not os.path.exists(self.path + '.partial')
        host = stage.host(f'host-{self.kind}-again')
        machine = story.Machine(host, 'vm', host.start('restore', self.path, 'vm', '--host-name', host.name))
        story.wait_until(lambda: machine.status()['beats'] > 0 and machine.status()['status'] == 'running', 'the guest')
        before = machine.status()['beats']
        story.wait_until(lambda: machine.status()['beats'] > before + 20, 'beats')
        assert machine.status()['guest_errors'] == 0


def kills(stage, kind):
    saver = Saver(stage, kind)
    for _ in range(KILLS[kind]):
        saver.kill()
    print(f'{kind}: {saver.old} times the old image, {saver.new} times the new one')
    assert saver.old, 'no kill came in time'
    saver.comes_back(stage)


def whole_images(stage):
    kills(stage, 'whole')


def layers(stage):
    kills(stage, 'layer')


def saves_at_one_moment(stage):
    kills(stage, 'moment')


story.run(whole_images, layers, saves_at_one_moment)
