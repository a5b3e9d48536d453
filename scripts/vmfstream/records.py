# SPDX-License-Identifier: LGPL-2.1-or-later
"""Headers and framing: image header, machine header, preambles of page channels and of questions, and the walk over records."""

import struct
from collections import namedtuple

from . import wire
from .crc32c import crc32c
from .faults import Fault, Place, require

Record = namedtuple('Record', 'kind offset end body place')


class Body:
    """A record's body, read from front to back. A read past its end is a length that does not fit the fields."""

    def __init__(self, octets, order):
        self.octets = octets
        self.order = order
        self.at = 0

    def take(self, format):
        size = struct.calcsize('<' + format)
        require(self.left() >= size, 'stream.record-body', 'a body of %d octets is too short for its fields' % len(self.octets))
        values = struct.unpack_from(self.order + format, self.octets, self.at)
        self.at += size
        return values

    def raw(self, size):
        require(self.left() >= size, 'stream.record-body', 'a body of %d octets is too short for its fields' % len(self.octets))
        self.at += size
        return bytes(self.octets[self.at - size:self.at])

    def text(self, size, what):
        """UTF-8 without a terminating zero and without control characters."""
        try:
            text = self.raw(size).decode('utf-8')
        except UnicodeDecodeError:
            raise Fault('stream.record-body', '%s is not UTF-8' % what) from None
        require(not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text), 'stream.record-body',
                '%s holds a control character' % what)
        return text

    def name(self, size, what):
        """Printable ASCII."""
        name = self.raw(size)
        require(all(32 <= c < 127 for c in name), 'stream.record-body', '%s is not printable ASCII' % what)
        return name.decode('ascii')

    def left(self):
        return len(self.octets) - self.at

    def done(self):
        require(self.left() == 0, 'stream.record-body', '%d octets more than the fields' % self.left())


def read_image_header(octets):
    """Checks in the order of the page. Returns the options."""
    _whole_or_stranger(octets, wire.IMAGE_HEADER_SIZE, wire.MARKER + struct.pack('>I', wire.IMAGE_ID), 'image header')
    version, flags, reserved, crc = struct.unpack_from('>IHHI', octets, 12)
    return _check_options(octets[:20], version, flags, reserved, crc)


def _whole_or_stranger(octets, size, marker, what):
    start = bytes(octets[:len(marker)])
    if start != marker[:len(start)]:
        raise Fault('stream.magic', 'this is not a vmferry stream: %s' % start.hex(), fatal=True)
    if len(octets) < size:
        raise Fault('channel.cut', 'the %s needs %d octets, there are %d' % (what, size, len(octets)), fatal=True)


def _check_options(covered, version, flags, reserved, crc):
    if version not in wire.VERSIONS:
        raise Fault('stream.version', 'version %d; 2 and 3 are read' % version, fatal=True)
    if crc32c(covered) != crc:
        raise Fault('stream.crc', 'CRC is %08x, the header says %08x' % (crc32c(covered), crc), fatal=True)
    if flags & ~(wire.OPTION_BIG_ENDIAN | wire.OPTION_ONE_WAY) or reserved:
        raise Fault('stream.record-body', 'unknown options 0x%04x, or reserved octets that are not zero' % flags, fatal=True)
    return wire.Options(version, bool(flags & wire.OPTION_BIG_ENDIAN), bool(flags & wire.OPTION_ONE_WAY))


Machine = namedtuple('Machine', 'architecture engine uuid')


def read_machine_header(octets, order):
    if len(octets) < wire.MACHINE_HEADER_SIZE:
        raise Fault('channel.cut', 'the machine header needs 64 octets, there are %d' % len(octets), fatal=True)
    padded, page_size, engine, uuid, reserved, crc = struct.unpack_from(order + '32sII16sII', octets)
    found = crc32c(octets[:60])
    if found != crc:
        raise Fault('stream.crc', 'CRC is %08x, the header says %08x' % (found, crc), fatal=True)
    name = padded.rstrip(b'\0')
    require(len(name) < 32 and all(32 <= c < 127 for c in name), 'stream.record-body',
            'the architecture is not ASCII padded with at least one zero')
    require(page_size == wire.PAGE_SIZE, 'stream.record-body', 'page size %d' % page_size)
    require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
    return Machine(name.decode('ascii'), (engine >> 16, engine >> 8 & 0xFF, engine & 0xFF), uuid)


Preamble = namedtuple('Preamble', 'options channel session epoch')


def read_preamble(octets):
    _whole_or_stranger(octets, wire.PREAMBLE_SIZE, wire.CHANNEL_MARKER, 'preamble')
    version, flags, channel, session, epoch, reserved, crc = struct.unpack_from('>IHH16sIQI', octets, 8)
    options = _check_options(octets[:44], version, flags, reserved, crc)
    return Preamble(options, channel, session, epoch)


Question = namedtuple('Question', 'options token')


def read_question_preamble(octets):
    _whole_or_stranger(octets, wire.PREAMBLE_SIZE, wire.QUESTION_MARKER, 'preamble')
    version, flags, reserved, token, more, crc = struct.unpack_from('>IHH16s12sI', octets, 8)
    options = _check_options(octets[:44], version, flags, reserved or any(more), crc)
    if options.one_way:
        raise Fault('stream.record-body', 'a question that is one-way', fatal=True)
    return Question(options, token)


def walk(octets, at, order, file, report, base=0):
    """Yields the records of @octets from offset @at; a reserved octet that is not zero is reported, lost framing is raised
    as a Fault whose place is in its attribute. @base: where @octets begin in the file."""
    while at < len(octets):
        place = Place(file, base + at, 'record')
        try:
            record = _frame(octets, at, order, file, base)
            place = record.place
            if record.kind not in wire.NAMES and not record.kind & wire.OPTIONAL:
                report.add(place, 'stream.record-unknown', 'an unknown type that is not optional')
            if any(octets[record.offset + wire.RECORD_HEADER_SIZE + len(record.body):record.end]):
                report.add(place, 'stream.record-body', 'the padding is not zero')
        except Fault as fault:
            fault.place = getattr(fault, 'place', place)
            raise
        yield record
        at = record.end


def _frame(octets, at, order, file, base):
    if len(octets) - at < wire.RECORD_HEADER_SIZE:
        raise Fault('channel.cut', 'the file ends in the header of a record', fatal=True)
    kind, length, checked, crc = struct.unpack_from(order + 'IIII', octets, at)
    place = Place(file, base + at, wire.type_name(kind))
    try:
        _check_frame(octets, at, kind, length, checked, crc)
    except Fault as fault:
        fault.place = place
        raise
    start = at + wire.RECORD_HEADER_SIZE
    return Record(kind, at, start + (length + 7 & ~7), octets[start:start + length], place)


def _check_frame(octets, at, kind, length, checked, crc):
    if length > wire.MAX_BODY:
        raise Fault('stream.record-length', 'a body of %d octets, 4 MiB are allowed' % length, fatal=True)
    if checked > length:
        raise Fault('stream.record-length', '%d octets checked of a body of %d' % (checked, length), fatal=True)
    start = at + wire.RECORD_HEADER_SIZE
    if start + checked > len(octets):
        raise Fault('channel.cut', 'the file ends in the body', fatal=True)
    found = crc32c(octets[start:start + checked], crc32c(octets[at:at + 12]))
    if found != crc:
        raise Fault('stream.crc', 'CRC is %08x, the header says %08x' % (found, crc), fatal=True)
    if start + (length + 7 & ~7) > len(octets):
        raise Fault('channel.cut', 'the file ends in the body or its padding', fatal=True)
    expected = wire.HAS_PAYLOAD.get(kind, length)
    if kind in wire.NAMES and checked != expected:
        raise Fault('stream.record-length', 'the CRC covers %d octets of the body, not %d' % (checked, expected), fatal=True)
