#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader on streams with copied disks: what is right, and planted faults."""

import os
import sys

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfstream import golden, wire  # noqa: E402
from vmfstream.golden import plan, write  # noqa: E402
from vmfstream.verify import Verifier  # noqa: E402

results = {True: 0, False: 0}


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


def findings(octets):
    verifier = Verifier(())
    return verifier.verify(('main', memoryview(octets)), [], []), verifier


def expect(name, id, octets):
    """@id is what the first finding has to be; None: there is none."""
    report, _ = findings(octets)
    found = report.findings[0].id if report.findings else None
    check(name, found == id, 'expected %s, found %s' % (id, report.findings[:3]))


def disks(name, id, **parts):
    """Plants a fault among the records of disks; both byte orders."""
    for big_endian in (False, True):
        made = golden.disk_plan()
        made.update({n.replace('_', ' '): part or (lambda s: None) for n, part in parts.items()})
        expect('%s, %s' % (name, 'be' if big_endian else 'le'), id, write(made, 3, big_endian).octets())


def extents(*records):
    """The golden disk in two extents, with @records ahead of its last DISK_SYNC."""
    def part(s):
        s.extent(0, 0, golden.granule(1))
        s.extent(0, wire.GRANULE, length=golden.DISK_SIZE - wire.GRANULE)
        for one in records:
            one(s)
        s.disk_sync(1, wire.SYNC_LAST)
    return part


def bases(name, id, *records, **parts):
    """Plants a fault among records of a base: @records stand between that and the rest of the disk."""
    def part(s):
        s.base(0, 0, golden.granule(1) + golden.granule(2))
        s.base(0, 2 * wire.GRANULE, length=wire.GRANULE)
        for one in records:
            one(s)
        s.extent(0, 3 * wire.GRANULE, length=golden.DISK_SIZE - 3 * wire.GRANULE)
        s.extent(0, 0, golden.granule(3), first=False)
        s.disk_sync(1, wire.SYNC_LAST)
    used = wire.SUMS | wire.DISKS | wire.BASES
    disks(name, id, **{'features': lambda s: s.features(used, used), 'extents': part, **parts})


def test_bases():
    g = wire.GRANULE
    bases('bases', None)
    bases('a base without the feature', 'stream.record-order', features=lambda s: s.features(*[wire.SUMS | wire.DISKS] * 2))
    bases('bases without disks', 'stream.record-body', disks=lambda s: s.guest_disk('a', 512, copied=False), extents=None)
    bases('a base after an extent', 'stream.record-order', lambda s: s.extent(0, 0, bytes(g), first=False),
          lambda s: s.base(0, 3 * g, length=g))
    bases('a base that is named twice', 'disk.counts', lambda s: s.base(0, g, golden.granule(2)))
    bases('a base that lacks a digest', 'stream.record-body', lambda s: s.base(0, 3 * g, golden.granule(1) * 2, digests=(1,)))
    bases('zeros of a base with a digest', 'stream.record-body', lambda s: s.base(0, 3 * g, length=g, digests=(1,)))
    bases('flags of a base', 'stream.record-body', lambda s: s.base(0, 3 * g, length=g, flags=2))
    bases('a base past the end', 'disk.range', lambda s: s.base(0, 5 * g, length=g))
    bases('a base of half a granule', 'disk.range', lambda s: s.base(0, 3 * g, length=512))
    bases('a base of a disk that is not copied', 'disk.range', lambda s: s.base(1, 0, length=g))
    bases('too much of a base at once', 'disk.range', disks=lambda s: s.guest_disk('a', 1 << 30),
          extents=lambda s: s.base(0, 0, length=(64 << 20) + g))


def test_disks():
    g, size = wire.GRANULE, golden.DISK_SIZE
    for name, (version, big_endian) in golden.DISK_FILES.items():
        with open(os.path.join(ROOT, 'tests', 'golden', name), 'rb') as file:
            octets = file.read()
        check('%s is what make-golden writes' % name, octets == golden.golden_disk_stream(version, big_endian).octets())
        report, verifier = findings(octets)
        check('%s is clean' % name, not report.findings and not report.notes, report.findings)
        check('%s: sent' % name, verifier.main.disks.copies[0].data_octets == 4 * g + 512)
    disks('extents', None, extents=extents())
    disks('a disk twice', 'static.duplicate', disks=lambda s: (s.guest_disk('a', 512), s.guest_disk('a', 512)), extents=None)
    disks('index of a disk', 'stream.record-body', disks=lambda s: s.guest_disk('a', 512, index=1), extents=None)
    disks('size of a disk', 'stream.record-body', disks=lambda s: s.guest_disk('a', 513), extents=None)
    disks('a disk too large to be copied', 'stream.record-body', disks=lambda s: s.guest_disk('a', (1 << 46) + 512), extents=None)
    disks('zeros at once', 'disk.range', disks=lambda s: s.guest_disk('a', 1 << 37), extents=lambda s: s.extent(0, 0, length=(1 << 36) + g))
    disks('sector of a disk', 'stream.record-body', disks=lambda s: s.guest_disk('a', 1024, sector=1024), extents=None)
    disks('copied without the feature', 'stream.record-body', features=golden.features)
    disks('a disk that is shared', 'disk.range', extents=extents(lambda s: s.extent(1, 0, bytes(g), first=False)))
    disks('a disk that is not there', 'disk.range', extents=extents(lambda s: s.extent(2, 0, bytes(g), first=False)))
    disks('past the end', 'disk.range', extents=extents(lambda s: s.extent(0, 5 * g, length=g, first=False)))
    disks('an offset that overflows', 'disk.range', extents=extents(lambda s: s.extent(0, 2**64 - g, length=2 * g, first=False)))
    disks('half a granule', 'disk.range', extents=extents(lambda s: s.extent(0, 0, bytes(g // 2), first=False)))
    disks('between granules', 'disk.range', extents=extents(lambda s: s.extent(0, 512, length=g, first=False)))
    disks('nothing', 'disk.range', extents=extents(lambda s: s.extent(0, 0, length=0, first=False)))
    disks('unknown flags', 'stream.record-body', extents=extents(lambda s: s.extent(0, 0, length=g, flags=6)))
    disks('zeros with a payload', 'stream.record-body', extents=extents(lambda s: s.extent(0, 0, golden.granule(1), flags=2)))
    disks('overlapping', 'disk.counts', extents=extents(lambda s: s.extent(0, 0, golden.granule(1))))
    disks('never named', 'disk.counts', extents=lambda s: (s.extent(0, 0, bytes(g)), s.disk_sync(1, wire.SYNC_LAST)))
    disks('not first, though never named', 'disk.counts', extents=lambda s: s.extent(0, 0, bytes(g), first=False))
    disks('sum', 'disk.sum', extents=extents(lambda s: s.disk_sync(7, sums=1)))
    disks('verify without last', 'stream.record-body', extents=extents(lambda s: s.disk_sync(7, wire.SYNC_VERIFY)))
    disks('an extent after the last', 'stream.record-order', state=lambda s: (s.extent(0, 0, length=g, first=False), golden.state(s)))
    disks('no last DISK_SYNC', 'stream.record-order', extents=lambda s: s.extent(0, 0, length=size))
    without = plan()
    without['state'] = lambda s: (s.disk_sync(1), golden.state(s))
    expect('DISK_SYNC without disks', 'stream.record-order', write(without, 3, False).octets())


def main():
    test_disks()
    test_bases()
    print('%d passed, %d failed' % (results[True], results[False]))
    return 1 if results[False] else 0


if __name__ == '__main__':
    sys.exit(main())
