# SPDX-License-Identifier: LGPL-2.1-or-later
"""The golden streams: one small machine, written in both versions and both byte orders. They never change once released."""

import struct

from . import bitmaps, wire
from .writer import Stream

ARCHITECTURE = 'golden'
UUID = bytes.fromhex('00112233445566778899aabbccddeeff')
HOST = 'golden-host'
TOKEN = bytes(range(0xA0, 0xB0))
SESSION = bytes(range(0x50, 0x60))
PROPERTIES = (('cpu', 'golden-1'), ('timebase', '100000000'))
BLOCKS = (('ram0', 515 * wire.PAGE_SIZE, 0x80000000, False), ('ram1', 8 * wire.PAGE_SIZE, 0x90000000, False),
          ('rom', 2 * wire.PAGE_SIZE, 0x1000, True))
SECTIONS = (('counter', 0, 2), ('blob', 0, 1))

COUNTER_VALUE = 0x01020304
COUNTER_STAMP = 0x1122334455667788
COUNTER_FLAG = 1
COUNTER_BYTES = b'\xde\xad\xbe\xef'
EXTRA_LEVEL = 0xBEEF
BLOB = bytes(n * 7 & 0xFF for n in range(1000))
BLOB_FIRST_PART = 600

FILES = {'v2-le.vmf': (2, False), 'v2-be.vmf': (2, True), 'v3-le.vmf': (3, False), 'v3-be.vmf': (3, True)}
DISK_FILES = {'disk-v3-le.vmf': (3, False), 'disk-v3-be.vmf': (3, True)}
BITMAP_FILES = {'bitmaps-v3-le.vmf': (3, False), 'bitmaps-v3-be.vmf': (3, True)}
DISK_SIZE = 5 * wire.GRANULE + 512     # the last granule is a sector


def page(seed):
    """Octet n of the page is seed + n + n / 256, modulo 256: the same in both byte orders."""
    return bytes(seed + n + (n >> 8) & 0xFF for n in range(wire.PAGE_SIZE))


def counter_state(order, subsections=None):
    fields = struct.pack(order + 'IQB4s', COUNTER_VALUE, COUNTER_STAMP, COUNTER_FLAG, COUNTER_BYTES)
    return struct.pack(order + 'I', len(fields)) + fields + (extra(order) if subsections is None else subsections) + b'\0'


def extra(order, name=b'extra', optional=1):
    return struct.pack(order + 'BB%dsBIIH' % len(name), 0x53, len(name), name, optional, 1, 2, EXTRA_LEVEL)


def page_records(channel, memory):
    """Data in each block, zeros beside it, a page that was sent twice, one that became zero, and the short last chunk of ram0."""
    channel.pages(memory, 0, 0, {3: page(1), 4: page(2)}, zero=(5, 511))
    channel.pages(memory, 0, 1, {2: page(3)}, zero=(0,))
    channel.pages(memory, 1, 0, {1: page(4)}, zero=(0, 7))
    channel.pages(memory, 2, 0, {0: page(5)}, zero=(1,))
    channel.pages(memory, 0, 0, {3: page(6)}, zero=(4,), first_pass=False)


def state(stream):
    stream.section(1, 0, BLOB[:BLOB_FIRST_PART])
    stream.section(0, 0, counter_state(stream.order), last=True)
    stream.section(1, 1, BLOB[BLOB_FIRST_PART:], last=True)


def ram_blocks(stream):
    for name, size, address, rom in BLOCKS:
        stream.ram_block(name, size, address, rom)


def features(stream):
    if stream.version >= 3:
        stream.features(wire.SUMS, wire.SUMS)


def plan():
    """The parts of a golden stream in their order, so that a test can replace one."""
    return {
        'machine': lambda s: s.machine(ARCHITECTURE, UUID),
        'properties': lambda s: s.properties(PROPERTIES),
        'blocks': ram_blocks,
        'sections': lambda s: s.sections(SECTIONS),
        'features': features,
        'host': lambda s: s.host(HOST),
        'static end': lambda s: s.static_data_end(),
        'page channels': lambda s: s.page_channels(0, SESSION),
        'round': lambda s: s.round(1, 6 * wire.PAGE_SIZE),
        'pages': lambda s: page_records(s, s.memory),
        'state': state,
        'end mark': lambda s: s.end_mark(),
        'switchover': lambda s: s.switchover(TOKEN),
        'end': lambda s: s.end(),
    }


def granule(seed, length=wire.GRANULE):
    """Page n of the granule is page(seed + n)."""
    return b''.join(page(seed + n) for n in range(16))[:length]


def disk_records(stream):
    """Data in one extent of two granules, zeros in one of two, the short tail; then one that became zero, and one that became data."""
    g = wire.GRANULE
    stream.extent(0, 0, granule(1) + granule(2))
    stream.extent(0, 2 * g, length=2 * g)
    stream.extent(0, 4 * g, granule(3) + granule(4, 512))
    stream.disk_sync(1)
    stream.extent(0, g, length=g, first=False)
    stream.extent(0, 3 * g, granule(5), first=False)
    stream.disk_sync(2, wire.SYNC_LAST)


def disk_plan():
    """The same machine with two disks, of which the first is copied."""
    parts = plan()
    with_disks = {}
    for name, part in parts.items():
        with_disks[name] = part
        if name == 'blocks':
            with_disks['disks'] = lambda s: (s.guest_disk('disk0', DISK_SIZE), s.guest_disk('disk1', 1 << 20, copied=False))
        if name == 'pages':
            with_disks['extents'] = disk_records
    with_disks['features'] = lambda s: s.features(wire.SUMS | wire.DISKS, wire.SUMS | wire.DISKS)
    return with_disks


SHARED_SIZE = 1 << 20


def message(kind, format, *values, rest=b''):
    body = struct.pack('<' + format, *values) + rest
    return struct.pack('<II', kind, len(body)) + body


def bitmap_message(index, disk, name, granularity, disk_bytes, flags=0):
    return message(bitmaps.BITMAP, 'IIIHHQ', index, granularity, flags, len(disk.encode()), len(name.encode()), disk_bytes,
                   rest=disk.encode() + name.encode())


def bits_message(index, piece, bits, reserved=0):
    return message(bitmaps.BITS, 'IIQ', index, reserved, piece, rest=bits.to_bytes(bitmaps.PIECE_WORDS * 8, 'little'))


def bitmap_messages():
    """Bitmaps of the copied disk and of the shared one; one piece is sent anew, one bitmap is gone in the end."""
    return {
        'fine': bitmap_message(0, 'disk0', 'fine', 512, DISK_SIZE, bitmaps.RECORDS),
        'daily': bitmap_message(1, 'disk1', 'daily', 4096, SHARED_SIZE, bitmaps.RECORDS | bitmaps.PERSISTENT),
        'other': bitmap_message(2, 'disk1', 'wöchentlich', 65536, SHARED_SIZE, bitmaps.PERSISTENT),
        'short-lived': bitmap_message(3, 'disk0', 'short-lived', 65536, DISK_SIZE),
        'first bits': bits_message(0, 0, 0xff << 100) + bits_message(1, 0, 3) + bits_message(3, 0, 1) + bits_message(2, 0, 1 << 15),
        'second bits': bits_message(0, 0, 0xf << 80 | 1 << 640) + bits_message(1, 0, 3 | 1 << 255),
        'states': b''.join(message(bitmaps.STATE, 'II', n, flags) for n, flags in enumerate(
            (bitmaps.RECORDS, bitmaps.RECORDS | bitmaps.PERSISTENT, bitmaps.INCONSISTENT, bitmaps.GONE))),
        'end': message(bitmaps.END, 'II', 4, 0),
    }


def bitmap_state(stream, messages=None):
    """In parts that end in the middle of a message."""
    content, at = b''.join((bitmap_messages() if messages is None else messages).values()), 0
    for part, size in enumerate((5, 700, 1, len(content))):
        stream.section(2, part, content[at:at + size], last=at + size >= len(content))
        at += size
        if at >= len(content):
            break


def bitmap_plan(messages=None):
    """The machine with disks, and bitmaps of them."""
    parts = disk_plan()
    parts['sections'] = lambda s: s.sections(SECTIONS + ((bitmaps.NAME, bitmaps.INSTANCE, bitmaps.VERSION),))
    parts['state'] = lambda s: (state(s), bitmap_state(s, messages))
    return parts


def golden_bitmap_stream(version, big_endian):
    return write(bitmap_plan(), version, big_endian)


def golden_disk_stream(version, big_endian):
    return write(disk_plan(), version, big_endian)


def write(parts, version, big_endian, one_way=True):
    stream = Stream(version, big_endian, one_way)
    for part in parts.values():
        part(stream)
    return stream


def golden_stream(version, big_endian):
    return write(plan(), version, big_endian)
