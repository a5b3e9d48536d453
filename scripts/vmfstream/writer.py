# SPDX-License-Identifier: LGPL-2.1-or-later
"""A writer of small streams: golden files, and tests that plant faults.

A stream is a list of pieces that can be edited before it is turned into octets, so it writes what the format forbids as readily
as what it allows. Sums and counts are taken from what was written, unless the caller says others.
"""

import struct

from . import wire
from .crc32c import crc32c
from .disks import granule_digest
from .image import mix, page_digest
from .hashes import xxh3_64

_M64 = 0xFFFFFFFFFFFFFFFF


class Piece:
    """Octets with a name: a header, or a record with its padding."""

    def __init__(self, name, octets):
        self.name = name
        self.octets = octets


def image_header(version, big_endian, one_way, options=None):
    flags = (wire.OPTION_BIG_ENDIAN if big_endian else 0) | (wire.OPTION_ONE_WAY if one_way else 0)
    start = wire.MARKER + struct.pack('>IIHH', wire.IMAGE_ID, version, flags if options is None else options, 0)
    return start + struct.pack('>I', crc32c(start))


def machine_header(order, architecture, uuid, engine=(0, 1, 0), page_size=wire.PAGE_SIZE, reserved=0):
    start = struct.pack(order + '32sII16sI', architecture.encode(), page_size, engine[0] << 16 | engine[1] << 8 | engine[2],
                        uuid, reserved)
    return start + struct.pack(order + 'I', crc32c(start))


def preamble(version, big_endian, channel, session, epoch=1, reserved=0):
    start = wire.CHANNEL_MARKER + struct.pack('>IHH16sIQ', version, wire.OPTION_BIG_ENDIAN if big_endian else 0, channel,
                                              session, epoch, reserved)
    return start + struct.pack('>I', crc32c(start))


def question_preamble(version, big_endian, token, options=None, reserved=0, more=bytes(12)):
    flags = (wire.OPTION_BIG_ENDIAN if big_endian else 0) if options is None else options
    start = wire.QUESTION_MARKER + struct.pack('>IHH16s12s', version, flags, reserved, token, more)
    return start + struct.pack('>I', crc32c(start))


def record(order, kind, body=b'', checked=None, length=None, padding=None):
    length = len(body) if length is None else length
    if checked is None:
        checked = wire.HAS_PAYLOAD.get(kind, length)
    header = struct.pack(order + 'III', kind, length, checked)
    padding = bytes(-len(body) % 8) if padding is None else padding
    return header + struct.pack(order + 'I', crc32c(header + body[:checked])) + body + padding


class Memory:
    """What the target holds after the records so far, and what the first pass counted."""

    def __init__(self):
        self.digests = {}    # (block, page) -> digest
        self.first = {}      # block -> [data, zero]

    def put(self, block, page, digest, first_pass):
        self.digests[block, page] = digest
        if first_pass:
            self.first.setdefault(block, [0, 0])[0 if digest else 1] += 1

    def sum(self, block, chunk=None):
        return sum(mix(page, digest) for (b, page), digest in self.digests.items()
                   if b == block and chunk in (None, page // wire.CHUNK_PAGES)) & _M64


class Channel:
    """Pieces of one direction of one channel."""

    def __init__(self, version=3, big_endian=False):
        self.version = version
        self.big_endian = big_endian
        self.order = wire.order_mark(big_endian)
        self.pieces = []
        self.sequence = 0

    def octets(self):
        return b''.join(piece.octets for piece in self.pieces)

    def add(self, kind, body=b'', **how):
        self.pieces.append(Piece(wire.type_name(kind), record(self.order, kind, body, **how)))

    def packed(self, format, *values):
        return struct.pack(self.order + format, *values)

    def preamble(self, channel, session, epoch=1):
        self.pieces.append(Piece('preamble', preamble(self.version, self.big_endian, channel, session, epoch)))

    def pages(self, memory, block, chunk, data=(), zero=(), first_pass=True, epoch=1, sequence=None, n_data=None):
        """@data: page in the chunk -> its octets; @zero: pages in the chunk."""
        pages = sorted(data)
        for page in pages:
            memory.put(block, chunk * wire.CHUNK_PAGES + page, page_digest(data[page]), first_pass)
        for page in zero:
            memory.put(block, chunk * wire.CHUNK_PAGES + page, 0, first_pass)
        body = self.packed('IIQQII', block, wire.FIRST_PASS if first_pass else 0,
                           self.sequence if sequence is None else sequence, chunk, epoch,
                           len(pages) if n_data is None else n_data)
        self.add(wire.PAGES, body + self._bit_set(pages) + self._bit_set(zero) + b''.join(data[page] for page in pages))
        self.sequence += 1

    def hint(self, block, chunk, pages):
        self.add(wire.HINT, self.packed('IIQ', block, 0, chunk) + self._bit_set(pages))

    def _bit_set(self, pages):
        words = [0] * 8
        for page in pages:
            words[page // 64] |= 1 << page % 64
        return self.packed('8Q', *words)

    def end_mark(self, records=None):
        self.add(wire.END_MARK, self.packed('Q', self.sequence if records is None else records))

    def ack(self, memory, channel, sequence, chunks=(), epoch=1):
        body = self.packed('IIQII', epoch, channel, sequence, len(chunks), 0)
        for block, chunk in chunks:
            body += self.packed('IIQQ', block, 0, chunk, memory.sum(block, chunk))
        self.add(wire.ACK, body)

    def verdict(self, features, page_channels, texts=()):
        body = self.packed('IIQII', 1 if texts else 0, len(texts), features, page_channels, 0)
        for text in texts:
            body += self.packed('H', len(text.encode())) + text.encode()
        self.add(wire.VERDICT, body)

    def token(self, kind, token):
        self.add(kind, token)

    def error(self, kind, id, text, token=b''):
        body = self.packed('HHI', len(id), len(text.encode()), 0) + id.encode() + text.encode()
        self.add(kind, token + body)


class Stream(Channel):
    """A main channel."""

    def __init__(self, version, big_endian=False, one_way=True):
        super().__init__(version, big_endian)
        self.one_way = one_way
        self.blocks = []
        self.disks = []
        self.granules = {}    # (disk, granule) -> digest
        self.mirrors = {}     # disk -> shares of what was mirrored
        self.memory = Memory()
        self.section_bodies = b''
        self.static_octets = None
        self.pieces.append(Piece('image header', image_header(version, big_endian, one_way)))

    def machine(self, architecture, uuid, **how):
        self.pieces.append(Piece('machine header', machine_header(self.order, architecture, uuid, **how)))

    def properties(self, properties):
        body = self.packed('II', len(properties), 0)
        for key, value in properties:
            body += self.packed('HH', len(key.encode()), len(value.encode())) + key.encode() + value.encode()
        self.add(wire.PROPERTIES, body)

    def host(self, name):
        self.add(wire.HOST, self.packed('HHI', len(name.encode()), 0, 0) + name.encode())

    def ram_block(self, name, size, address, rom=False, index=None):
        index = len(self.blocks) if index is None else index
        self.add(wire.RAM_BLOCK, self.packed('IIQQIHH', index, wire.BLOCK_ROM if rom else 0, size, address, wire.PAGE_SIZE,
                                             len(name), 0) + name.encode())
        self.blocks.append(size // wire.PAGE_SIZE)

    def guest_disk(self, name, size, copied=True, sector=512, index=None):
        index = len(self.disks) if index is None else index
        self.add(wire.GUEST_DISK, self.packed('IIQIHH', index, wire.DISK_COPIED if copied else 0, size, sector, len(name), 0) +
                 name.encode())
        self.disks.append((size, copied))

    def extent(self, disk, offset, data=None, length=None, first=True, flags=None):
        """@data None: zeros, @length of them."""
        length = len(data) if length is None else length
        for at in range(0, length, wire.GRANULE):
            self.granules[disk, (offset + at) // wire.GRANULE] = granule_digest(data[at:at + wire.GRANULE]) if data else 0
        if flags is None:
            flags = (wire.EXTENT_FIRST if first else 0) | (0 if data else wire.EXTENT_ZERO)
        self.add(wire.EXTENT, self.packed('IIQQ', disk, flags, offset, length) + (data or b''))

    def base(self, disk, offset, data=None, length=None, flags=None, digests=None):
        """@data None: zeros, @length of them."""
        length = len(data) if length is None else length
        found = [granule_digest(data[at:at + wire.GRANULE]) if data else 0 for at in range(0, length, wire.GRANULE)]
        for n, digest in enumerate(found):
            self.granules[disk, offset // wire.GRANULE + n] = digest
        digests = found if data and digests is None else digests or ()
        self.add(wire.BASE, self.packed('IIQQ', disk, (0 if data else wire.BASE_ZERO) if flags is None else flags, offset, length) +
                 b''.join(self.packed('Q', digest) for digest in digests))

    def mirrored(self, disk, offset, data=None, length=None, flags=None):
        """@data None: zeros, @length of them."""
        length = len(data) if length is None else length
        digest = (xxh3_64(data) or 1) if data else 1
        number = sum(map(len, self.mirrors.values()))
        self.mirrors.setdefault(disk, []).append(mix(number, (mix(offset, digest) ^ mix(length, 1)) or 1))
        if flags is None:
            flags = wire.EXTENT_MIRRORED | (0 if data else wire.EXTENT_ZERO)
        self.add(wire.EXTENT, self.packed('IIQQ', disk, flags, offset, length) + (data or b''))

    def disk_sum(self, disk):
        granules = sum(mix(granule, digest) for (d, granule), digest in self.granules.items() if d == disk)
        return granules + sum(self.mirrors.get(disk, ())) & _M64

    def disk_sync(self, cookie, flags=0, sums=None, kind=None):
        copied = [n for n, disk in enumerate(self.disks) if disk[1]]
        body = self.packed('QII', cookie, len(copied), flags)
        for disk in copied:
            body += self.packed('IIQ', disk, 0, self.disk_sum(disk) if sums is None else sums)
        self.add(kind or wire.DISK_SYNC, body)

    def sections(self, entries):
        """@entries: (name, instance, version)."""
        body = self.packed('II', len(entries), 0)
        for n, (name, instance, version) in enumerate(entries):
            body += self.packed('IIIHH', n, instance, version, len(name), 0) + name.encode()
        self.add(wire.SECTIONS, body)

    def features(self, offered, required, page_channels=0):
        self.add(wire.FEATURES, self.packed('QQII', offered, required, page_channels, 0))

    def static_data_end(self):
        """Version 3 has the record. Version 2 ends in silence, here for its sum."""
        if self.version >= 3:
            self.add(wire.STATIC_DATA_END)
        self.static_octets = self.octets()

    def page_channels(self, count=0, session=bytes(range(16)), epoch=1):
        self.add(wire.PAGE_CHANNELS, self.packed('16sII', session, count, epoch))

    def round(self, number, pending):
        self.add(wire.ROUND, self.packed('IIQ', number, 0, pending))

    def section(self, id, part, content, last=False, first=None):
        flags = (wire.SECTION_FIRST if (part == 0 if first is None else first) else 0) | (wire.SECTION_LAST if last else 0)
        body = self.packed('IIII', id, flags, part, 0) + content
        self.section_bodies += body
        self.add(wire.SECTION, body)

    def static_sum(self):
        return xxh3_64(self.static_octets)

    def device_sum(self):
        return xxh3_64(self.section_bodies)

    def switchover(self, token, flags=0, static_sum=None, device_sum=None, counts=None, sums=None):
        body = self.packed('16sIIQQ', token, flags, len(self.blocks), self.static_sum() if static_sum is None else static_sum,
                           self.device_sum() if device_sum is None else device_sum)
        for block, pages in enumerate(self.blocks):
            data, zero = self.memory.first.get(block, (0, 0))
            data, zero, hole = (counts or {}).get(block, (data, zero, pages - data - zero))
            body += self.packed('IIQQQQ', block, 0, data, zero, hole, (sums or {}).get(block, self.memory.sum(block)))
        self.add(wire.SWITCHOVER, body)

    def end(self):
        self.add(wire.END)
