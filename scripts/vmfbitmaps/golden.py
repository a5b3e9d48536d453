# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden files of bitmaps, and a small writer that writes what the format forbids as readily as what it allows.

One disk of 24 MiB and 512 octets, while it was in use and when it was released. They never change once released.
"""

import itertools

from . import form

DISK_BYTES = (24 << 20) + 512
ID = 0x5eed1234
MTIME_NS = 1700000000123456789
INTENTS = (1, 6)      # regions; the last one is a sector
# name, granularity, records, inconsistent, and runs of dirty granules
BITMAPS = (
    ('daily', 65536, True, False, ((0, 1), (60, 8), (384, 1))),
    ('wöchentlich', 512, True, False, ((0, 3), (3967, 2), (49152, 1))),
    ('stopped', 1 << 20, False, False, ((3, 4),)),
    ('doubtful', 65536, True, True, ((5, 1),)),
    ('coarse', 64 << 20, True, False, ()),
)
FILES = {'bitmaps-v1-in-use.bitmaps': True, 'bitmaps-v1-released.bitmaps': False}


def bits_of(runs):
    return sum((1 << number) - 1 << first for first, number in runs)


class Writer:
    """The sectors of a golden file, as (body, kind, index, id); each can be replaced before octets() seals them."""

    def __init__(self, in_use=True, disk_bytes=DISK_BYTES, bitmaps=BITMAPS, intents=INTENTS):
        region = form.region_bytes_of(disk_bytes)
        pieces = form.up(form.up(disk_bytes, region), form.PIECE_BITS)
        self.entries, self.sectors, words = [], [], []
        at = 1 + pieces + len(bitmaps)
        for name, granularity, records, inconsistent, runs in bitmaps:
            number = form.up(form.up(disk_bytes, granularity), form.PIECE_BITS)
            self.entries.append(form.Entry(granularity, records, inconsistent, at, number, name))
            words.append(list(itertools.islice(form.pack_words(bits_of(runs)), number)))
            at += number
        self.header = form.Header(ID, in_use, disk_bytes, region, pieces, len(bitmaps), at, 0 if in_use else MTIME_NS)
        self._add(form.HEADER, [form.pack_header(self.header)])
        regions = bits_of((region, 1) for region in intents) if in_use else 0
        self._add(form.INTENTS, itertools.islice(form.pack_words(regions), pieces))
        self._add(form.ENTRY, [form.pack_entry(entry) for entry in self.entries])
        for index, bodies in enumerate(words):
            self._add(form.BITS + index, bodies)

    def _add(self, kind, bodies):
        self.sectors += [(body, kind, index, ID) for index, body in enumerate(bodies)]

    def find(self, kind, index=0):
        """The number of that sector in the file."""
        return [(k, i) for _, k, i, _ in self.sectors].index((kind, index))

    def replace(self, number, body=None, kind=None, index=None, id=None):
        given, old = (body, kind, index, id), self.sectors[number]
        self.sectors[number] = tuple(o if g is None else g for g, o in zip(given, old))
        return self

    def octets(self):
        return b''.join(form.seal(*sector) for sector in self.sectors)


def golden_file(name):
    return Writer(FILES[name]).octets()
