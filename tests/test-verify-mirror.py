#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader on what a mirror sends and is answered: what is right, and planted faults."""

import os
import sys

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfstream import golden, wire  # noqa: E402
from vmfstream.disks import Disks  # noqa: E402
from vmfstream.faults import Fault  # noqa: E402
from vmfstream.golden import write  # noqa: E402
from vmfstream.verify import Verifier  # noqa: E402

results = {True: 0, False: 0}


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


def extents(records):
    """The golden disk in two extents, with @records ahead of its last DISK_SYNC."""
    def part(s):
        s.extent(0, 0, golden.granule(1))
        s.extent(0, wire.GRANULE, length=golden.DISK_SIZE - wire.GRANULE)
        for one in records:
            one(s)
        s.disk_sync(1, wire.SYNC_LAST)
    return part


def mirrors(name, id, *records, offered=wire.MIRROR, one_way=False):
    """The golden disk, then what is mirrored; two-way, both byte orders."""
    for big_endian in (False, True):
        made = golden.disk_plan()
        made['features'] = lambda s: s.features(wire.SUMS | wire.DISKS | offered, wire.SUMS | wire.DISKS)
        made['extents'] = extents(records)
        stream = write(made, 3, big_endian, one_way=one_way)
        report = Verifier(()).verify(('main', memoryview(stream.octets())), [], [])
        found = report.findings[0].id if report.findings else None
        check('%s, %s' % (name, 'be' if big_endian else 'le'), found == id, 'expected %s, found %s' % (id, report.findings[:3]))


def test_mirrors():
    size = golden.DISK_SIZE
    mirrors('mirrored', None, lambda s: s.mirrored(0, 512, golden.granule(7, 1024)), lambda s: s.mirrored(0, size - 512, length=512),
            lambda s: s.mirrored(0, 512, golden.granule(8, 512)), lambda s: s.disk_sync(7, 4))
    mirrors('mirrored, not offered', 'stream.record-body', lambda s: s.mirrored(0, 512, golden.granule(7, 512)), offered=0)
    mirrors('mirrored, one-way', 'stream.record-body', lambda s: s.mirrored(0, 512, golden.granule(7, 512)), one_way=True)
    mirrors('mirrored for the first time', 'disk.counts', lambda s: s.mirrored(0, 512, golden.granule(7, 512), flags=5))
    mirrors('a part of a sector', 'disk.range', lambda s: s.mirrored(0, 512, golden.granule(7, 256)))
    mirrors('mirrored past the end', 'disk.range', lambda s: s.mirrored(0, size, length=512))
    mirrors('what was mirrored is not in the sum', 'disk.sum', lambda s: s.mirrored(0, 512, golden.granule(7, 512)),
            lambda s: s.mirrors.clear(), lambda s: s.disk_sync(7))


class Number:
    """The body of a MIRRORED."""

    def __init__(self, number):
        self.number = number

    def take(self, _layout):
        return (self.number,)

    def done(self):
        pass


def test_answers():
    disks = Disks((), True)
    disks.mirrored = 3
    for number, fine in ((2, True), (0, True), (2, False), (3, False), (1, True), (2**64 - 1, False)):
        try:
            disks.read_mirrored(Number(number))
            found = None
        except Fault as fault:
            found = fault.id
        check('answer %d' % number, found == (None if fine else 'stream.record-order'), found)


test_mirrors()
test_answers()
print('%d passed, %d failed' % (results[True], results[False]))
sys.exit(1 if results[False] else 0)
