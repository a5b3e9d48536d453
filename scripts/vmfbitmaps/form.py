# SPDX-License-Identifier: LGPL-2.1-or-later
"""The numbers of docs/bitmap-format.rst, its sectors in both directions, and how bits lie in words of 64."""

import struct
from collections import namedtuple

from vmfstream.crc32c import crc32c
from vmfstream.faults import Fault

SECTOR = 512
BODY = 496
WORDS = 62                   # of a body
PIECE_BITS = WORDS * 64
MAGIC = b'vmf-bits'
VERSION = 1
REGION_MIN = 4 << 20
REGIONS_MAX = 126976
BITMAPS_MAX = 64
GRANULARITY_MIN = 512
GRANULARITY_MAX = 64 << 20
GRANULES_MAX = 1 << 32
NAME_MAX = 255

HEADER, INTENTS, ENTRY, BITS = 1, 2, 3, 16   # kinds; bits of the bitmap of entry i: BITS + i
IN_USE = 1
RECORDS, INCONSISTENT = 1, 2

HEADER_FIELDS = '<8sIIQQIIQq'
ENTRY_FIELDS = '<IIQQI'
_FOOT = '<III'

Header = namedtuple('Header', 'id in_use disk_bytes region_bytes intent_sectors bitmaps sectors mtime_ns')
Entry = namedtuple('Entry', 'granularity records inconsistent first_sector sectors name')


def up(value, unit):
    return -(-value // unit)


def region_bytes_of(disk_bytes):
    region = REGION_MIN
    while up(disk_bytes, region) > REGIONS_MAX:
        region *= 2
    return region


def seal(body, kind, index, id, crc=None):
    """A sector. @crc: another than the right one."""
    start = body.ljust(BODY, b'\0') + struct.pack(_FOOT, kind, index, id)
    return start + struct.pack('<I', crc32c(start) if crc is None else crc)


def unseal(sector, kind, index, id, what):
    """The body of a sector that is what it has to be. @id None: any. Returns it and the id."""
    def demand(condition, message):
        if not condition:
            raise Fault('bitmaps', '%s: %s' % (what, message))

    demand(len(sector) == SECTOR, 'the file ends before it does')
    said, found = struct.unpack_from('<I', sector, SECTOR - 4)[0], crc32c(sector[:SECTOR - 4])
    demand(said == found, 'CRC is %08x, the sector says %08x' % (found, said))
    its = struct.unpack_from(_FOOT, sector, BODY)
    demand(its[:2] == (kind, index), 'kind %d, index %d where %d, %d has to be' % (*its[:2], kind, index))
    demand(id in (None, its[2]), 'it is of another writing of the file')
    return sector[:BODY], its[2]


def pack_header(header, magic=MAGIC, version=VERSION, flags=None, rest=b''):
    """@rest: behind the fields."""
    return struct.pack(HEADER_FIELDS, magic, version, (IN_USE if header.in_use else 0) if flags is None else flags, header.disk_bytes,
                       header.region_bytes, header.intent_sectors, header.bitmaps, header.sectors, header.mtime_ns) + rest


def pack_entry(entry, flags=None, name_length=None, rest=b''):
    said = (RECORDS if entry.records else 0) | (INCONSISTENT if entry.inconsistent else 0)
    name = entry.name if isinstance(entry.name, bytes) else entry.name.encode()
    return struct.pack(ENTRY_FIELDS, entry.granularity, said if flags is None else flags, entry.first_sector, entry.sectors,
                       len(name) if name_length is None else name_length) + name + rest


def pack_words(bits):
    """The bodies of the sectors that hold @bits, an integer, and their number is up to the caller."""
    while True:
        yield (bits & (1 << PIECE_BITS) - 1).to_bytes(BODY, 'little')
        bits >>= PIECE_BITS


def to_bits(bodies):
    """Bit n of the integer stands for region, or granule, n: little-endian words, the first one lowest, are just that."""
    return int.from_bytes(b''.join(bodies), 'little')


def runs(bits):
    """(first, number) of each run of set bits, rising."""
    at, found = 0, []
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & bits + 1).bit_length() - 1
        bits >>= ones
        found.append((at + zeros, ones))
        at += zeros + ones
    return found
