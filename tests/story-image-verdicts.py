#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An octet that changes anywhere in an image is found by `vmferry verify` and by scripts/verify-image, with the same verdict."""
import json
import os
import random
import subprocess
import sys

import story

SCRIPTS = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', 'scripts')
sys.path.insert(0, SCRIPTS)

from vmfimage import form, golden  # noqa: E402  pylint: disable=wrong-import-position
from vmfimage.image import Image  # noqa: E402  pylint: disable=wrong-import-position
from vmfimage.storage import Storage  # noqa: E402  pylint: disable=wrong-import-position
from vmfstream import wire  # noqa: E402  pylint: disable=wrong-import-position
from vmfstream.faults import Report  # noqa: E402  pylint: disable=wrong-import-position
from vmfstream.pages import pages_in  # noqa: E402  pylint: disable=wrong-import-position

SPOTS = 2   # octets in each area
GUEST = ('--guest', 'dirty=16M,set=2M')


def by_script(path):
    """The summary, and the ids of all faults."""
    done = subprocess.run([sys.executable, '-B', os.path.join(SCRIPTS, 'verify-image'), '--json', '--pages', path], capture_output=True,
                          text=True, check=False)
    assert done.returncode in (0, 1), done
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ids = {line['id'] for line in lines if line['type'] == 'fault'}
    assert bool(ids) == (done.returncode == 1), done
    return lines[-1], ids


def by_engine(host, path):
    """The ids of all that `vmferry verify` finds."""
    done = host.vmferry('verify', '--json', '--parents', path)
    ids = {line['id'] for line in done.lines if line['type'] == 'error' or line.get('event') == 'damage'}
    assert bool(ids) == (done.code == 1) and done.code in (0, 1), done
    return ids


def accepted(host, path, layers):
    held, ids = by_script(path)
    assert not ids and held['sums_checked'] and not held['notes'], held
    assert len(held['chain']) == layers and held['layer'] == (layers > 1), held
    assert held['pages_checked'] > 0 and [s['name'] for s in held['sections']], held
    assert not by_engine(host, path), path
    return held


def opened(path):
    image = Image(Storage(path), Report())
    image.open()
    assert image.sound, image.report.findings
    return image


def parts_of_tail(image):
    """Device state, by section, and what is said of disks."""
    offset = image.commit.tail_offset
    tail = image.storage.read(offset, image.commit.tail_length)
    parts = [('device state', part) for section in image.tail.sections.sections for part in section.parts if part]
    for disk in image.tail.disks:
        parts += [('disk record', text.encode()) for text in (disk.name, disk.identity, disk.mark) if text]
    for what, octets in parts:
        at = tail.find(octets)
        assert at >= 0, (what, octets)
        yield what, offset + at, len(octets), 'image.digest'


def spans(image):
    """(what, offset, length, id): where each octet matters, and what a reader says when it is another."""
    commit = image.commit
    yield 'magic', 0, 8, 'image.magic'
    yield 'version', 8, 4, 'image.version'
    yield 'commit block', 12, form.UNIT - 12, 'image.crc'
    yield 'header', form.HEADER_OFFSET, commit.header_length, 'image.digest'
    yield 'chunk tables', commit.table_offset, commit.table_length, 'image.digest'
    yield 'tail', commit.tail_offset, commit.tail_length, 'image.digest'
    yield from parts_of_tail(image)
    for area, after in zip(image.areas, image.areas[1:]):
        if area.offset + area.length < after.offset:
            yield 'padding behind ' + area.what, area.offset + area.length, after.offset - area.offset - area.length, 'image.layout'
    for shape in image.shapes:
        yield 'data bitmap', shape.places.data_bitmap, shape.bitmap_length, 'image.digest'
        if image.is_layer:
            yield 'zero bitmap', shape.places.zero_bitmap, shape.bitmap_length, 'image.digest'
        for number in (n for n in range(shape.n_chunks) if image.chunk(shape, n).data):
            yield 'digest block', shape.places.digests + number * form.UNIT, form.UNIT, 'image.digest'
            pages = list(pages_in(image.chunk(shape, number).data))
            for page in (pages[0], pages[-1]):
                yield ('page', shape.places.pages + (number * wire.CHUNK_PAGES + page) * wire.PAGE_SIZE, wire.PAGE_SIZE, 'image.page')


def some_spans(image, rng, most):
    """All of a kind would take long."""
    kinds = {}
    for span in spans(image):
        kinds.setdefault(span[0].split(' behind ')[0], []).append(span)
    for kind in kinds.values():
        yield from rng.sample(kind, min(most, len(kind)))


def damage_is_found(host, path, seed, most=2, spots=SPOTS, judged=None):
    """In @path; @judged: in that as a parent of another image, which is looked at instead. Returns the kinds of places."""
    rng = random.Random(seed)
    image = opened(path)
    kinds = set()
    with open(path, 'r+b', buffering=0) as file:
        for what, start, length, id in some_spans(image, rng, most):
            kinds.add(what.split(' behind ')[0])
            for _ in range(spots):
                at, bit = start + rng.randrange(length), 1 << rng.randrange(8)
                octet = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([octet[0] ^ bit]), at)
                _, script = by_script(judged or path)
                engine = by_engine(host, judged or path)
                found = f'{what}, octet {at}, bit {bit}: expected {id}, the script says {script}, vmferry {engine}'
                # To vmferry it may be no parent of this image any more, where the script tells what is wrong with it.
                assert script == {id} and engine in ({id}, {'image.parent'} if judged and what in ENTRANCE else {id}), found
                os.pwrite(file.fileno(), octet, at)
    image.storage.close()
    assert not by_engine(host, judged or path), 'all octets are back'
    return kinds


ENTRANCE = {'magic', 'version', 'commit block'}
AREAS = {'magic', 'version', 'commit block', 'header', 'chunk tables', 'tail', 'device state', 'data bitmap', 'digest block', 'page'}


def running(stage, *args):
    machine = stage.host('host-saves').run('vm', *GUEST, *args)
    story.wait_until(lambda: machine.status()['pages_written'] > 600, 'pages written')
    return machine


def saved(machine, path, *options):
    """Another moment of the guest."""
    before = machine.status()['pages_written']
    if machine.status()['running']:
        story.wait_until(lambda: machine.status()['pages_written'] > before + 100, 'pages written')
    done = machine.host.vmferry('save', 'vm', path, *options)
    if done.code == story.SKIP:
        raise story.Skip(done.stderr)
    assert done.code == 0, done
    return path


def judged(machine, path, layers=1, more=()):
    """Both readers accept it, and find what is done to it."""
    held = accepted(machine.host, path, layers)
    kinds = damage_is_found(machine.host, path, os.path.basename(path), most=1, spots=1)
    assert kinds >= AREAS | set(more), kinds
    return held


def a_stopped_guest_with_a_disk(stage):
    disk = os.path.join(stage.directory, 'disk')
    machine = running(stage, '--disk', f'root={disk},size=4M')
    held = judged(machine, saved(machine, os.path.join(stage.directory, 'stopped'), '--stop', '--then', 'stop'), more=('disk record',))
    assert [record['name'] for record in held['disks']] == ['root'] and not held['ram_only'], held


def a_live_save_on_four_channels(stage):
    machine = running(stage)
    held = judged(machine, saved(machine, os.path.join(stage.directory, 'live'), '--channels', '4'))
    assert held['guest_runs'], held


def a_chain_of_three(stage):
    machine = running(stage)
    base, middle, top = (os.path.join(stage.directory, name) for name in ('base', 'middle', 'top'))
    saved(machine, base)
    saved(machine, middle, '--parent', base, '--channels', '4')
    saved(machine, top, '--parent', middle)
    judged(machine, middle, 2, ('zero bitmap',))
    judged(machine, top, 3, ('zero bitmap',))
    damage_is_found(machine.host, base, 'base under top', most=1, spots=1, judged=top)


def a_save_at_one_moment(stage):
    machine = running(stage)
    judged(machine, saved(machine, os.path.join(stage.directory, 'moment'), '--point-in-time'))


def golden_images(stage):
    """Those of the Python writer, of the octet order that this machine does not have too."""
    for name in golden.FILES:
        golden.golden_image(name).save(os.path.join(stage.directory, name))
    host = stage.host()
    for seed, name in enumerate(golden.FILES):
        path = os.path.join(stage.directory, name)
        accepted(host, path, 2 if name.startswith('layer') else 1)
        if name.startswith('layer'):
            damage_is_found(host, path, seed)


story.run(golden_images, a_stopped_guest_with_a_disk, a_live_save_on_four_channels, a_chain_of_three, a_save_at_one_moment)
