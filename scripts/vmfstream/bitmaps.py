# SPDX-License-Identifier: LGPL-2.1-or-later
"""The content of the section dirty-bitmaps: messages, little-endian in any stream, and the bitmaps that they make."""

from .faults import Fault, require
from .records import Body

NAME, INSTANCE, VERSION = 'dirty-bitmaps', 0, 1
BITMAP, BITS, STATE, END = 1, 2, 3, 4
RECORDS, PERSISTENT, INCONSISTENT, GONE = 1, 2, 4, 8
MAX_MESSAGE = 1024
PIECE_WORDS = 62
PIECE_BITS = 64 * PIECE_WORDS
MIN_GRANULARITY, MAX_GRANULARITY = 512, 64 << 20
MAX_GRANULES = 1 << 32
MAX_PER_DISK = 64


class Bitmap:
    def __init__(self, disk, name, granularity, disk_bytes):
        self.disk = disk
        self.name = name
        self.granularity = granularity
        self.disk_bytes = disk_bytes
        self.granules = -(-disk_bytes // granularity)
        self.pieces = {}       # number -> bits
        self.flags = None      # once its STATE has come

    def bits(self):
        return sum(bits << piece * PIECE_BITS for piece, bits in self.pieces.items())


class Bitmaps:
    def __init__(self):
        self.bitmaps = []
        self.ended = False

    def read(self, content):
        """All of it; the first fault ends the reading, since a section has no framing but this."""
        body = Body(content, '<')
        try:
            while body.left():
                kind, length = body.take('II')
                require(length <= MAX_MESSAGE, 'section', 'a message of %d octets' % length)
                require(not self.ended, 'section', 'a message after END')
                require(kind in self._readers, 'section', 'a message of type %d' % kind)
                message = Body(body.raw(length), '<')
                self._readers[kind](self, message)
                message.done()
        except Fault as fault:
            raise Fault('section', '%s: %s' % (NAME, fault.message)) from None
        require(self.ended, 'section', '%s: the section ends without END' % NAME)

    def _read_bitmap(self, body):
        index, granularity, flags, disk_length, name_length, disk_bytes = body.take('IIIHHQ')
        require(index == len(self.bitmaps), 'section', 'bitmap %d where %d is next' % (index, len(self.bitmaps)))
        require(granularity & granularity - 1 == 0 and MIN_GRANULARITY <= granularity <= MAX_GRANULARITY, 'section',
                'a granularity of %d' % granularity)
        require(not flags & ~(RECORDS | PERSISTENT | INCONSISTENT), 'section', 'unknown flags 0x%x' % flags)
        require(disk_length in range(1, 256) and name_length in range(1, 256), 'section', 'names of %d and %d octets' %
                (disk_length, name_length))
        require(disk_bytes > 0, 'section', 'a disk without octets')
        bitmap = Bitmap(body.text(disk_length, 'the alias of a disk'), body.text(name_length, 'the alias of a bitmap'), granularity,
                        disk_bytes)
        require(bitmap.granules <= MAX_GRANULES, 'section', '%d granules' % bitmap.granules)
        others = [other for other in self.bitmaps if other.disk == bitmap.disk]
        require(bitmap.name not in [other.name for other in others], 'section', 'bitmap %s of %s twice' % (bitmap.name, bitmap.disk))
        require(all(other.disk_bytes == disk_bytes for other in others), 'section', 'disk %s has two sizes' % bitmap.disk)
        require(len(others) < MAX_PER_DISK, 'section', 'disk %s has more than %d' % (bitmap.disk, MAX_PER_DISK))
        self.bitmaps.append(bitmap)

    def _open(self, index):
        require(index < len(self.bitmaps), 'section', 'bitmap %d, there are %d' % (index, len(self.bitmaps)))
        require(self.bitmaps[index].flags is None, 'section', 'bitmap %d after its STATE' % index)
        return self.bitmaps[index]

    def _read_bits(self, body):
        index, reserved, piece = body.take('IIQ')
        bitmap = self._open(index)
        bits = int.from_bytes(body.raw(PIECE_WORDS * 8), 'little')
        require(reserved == 0, 'section', 'a reserved field is not zero')
        room = bitmap.granules - piece * PIECE_BITS
        require(room > 0 and bits >> min(room, PIECE_BITS) == 0, 'section', 'piece %d: bits beyond the end of the disk' % piece)
        bitmap.pieces[piece] = bits

    def _read_state(self, body):
        index, flags = body.take('II')
        bitmap = self._open(index)
        require(not flags & ~(RECORDS | PERSISTENT | INCONSISTENT | GONE), 'section', 'unknown flags 0x%x' % flags)
        bitmap.flags = flags

    def _read_end(self, body):
        number, reserved = body.take('II')
        require(reserved == 0, 'section', 'a reserved field is not zero')
        require(number == len(self.bitmaps), 'section', '%d bitmaps said, %d came' % (number, len(self.bitmaps)))
        for bitmap in self.bitmaps:
            require(bitmap.flags is not None, 'section', 'bitmap %s of %s has no STATE' % (bitmap.name, bitmap.disk))
        self.ended = True

    _readers = {BITMAP: _read_bitmap, BITS: _read_bits, STATE: _read_state, END: _read_end}

    def summary(self):
        return [{'disk': b.disk, 'name': b.name, 'granularity': b.granularity, 'recording': bool(b.flags & RECORDS),
                 'persistent': bool(b.flags & PERSISTENT), 'inconsistent': bool(b.flags & INCONSISTENT),
                 'dirty_granules': b.bits().bit_count()} for b in self.bitmaps if self.ended and not b.flags & GONE]


def section_of(sections):
    """None: there is no such section, or not all of it."""
    for section in sections.sections if sections else ():
        if (section.entry.name, section.entry.instance) == (NAME, INSTANCE) and section.complete:
            return section
    return None


def read_section(section):
    require(section.entry.version == VERSION, 'section', '%s: version %d; %d is read' % (NAME, section.entry.version, VERSION))
    bitmaps = Bitmaps()
    bitmaps.read(section.content())
    return bitmaps
