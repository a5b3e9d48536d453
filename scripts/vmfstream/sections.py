# SPDX-License-Identifier: LGPL-2.1-or-later
"""SECTION records: parts, order and completion, the device sum, and the framing of a declared device's state."""

from . import wire
from .faults import Fault, require
from .records import Body
from .hashes import xxh3_64


class Section:
    def __init__(self, entry):
        self.entry = entry
        self.parts = []
        self.complete = False
        self.is_device = False
        self.place = None       # of its last part

    def content(self):
        return b''.join(self.parts)


class Sections:
    def __init__(self, entries, order):
        self.sections = [Section(entry) for entry in entries]
        self.order = order
        self.completed = 0
        self.bodies = []

    def read(self, body, place):
        self.bodies.append(bytes(body.octets))
        id, flags, part, reserved = body.take('IIII')
        require(not flags & ~(wire.SECTION_FIRST | wire.SECTION_LAST) and reserved == 0, 'stream.record-body',
                'a reserved field or flag is not zero')
        require(body.left() <= wire.MAX_SECTION_PART, 'stream.record-body', 'a part of %d octets' % body.left())
        require(id < len(self.sections), 'section', 'id %d is not in SECTIONS' % id)
        section = self.sections[id]
        section.place = place
        label = '%s/%d' % (section.entry.name, section.entry.instance)
        require(not section.complete, 'section', '%s is complete already' % label)
        expected = len(section.parts)
        section.parts.append(bytes(body.octets[body.at:]))
        require(part == expected, 'section', '%s: part %d where %d is next' % (label, part, expected))
        require(bool(flags & wire.SECTION_FIRST) == (part == 0), 'section', '%s: flag first on part %d' % (label, part)
                if part else '%s: part 0 without flag first' % label)
        if flags & wire.SECTION_LAST:
            self._complete(section, id, label)

    def _complete(self, section, id, label):
        section.complete = True
        turn, self.completed = self.completed, self.completed + 1
        require(id == turn, 'section', '%s is completed out of the order of SECTIONS' % label)

    def incomplete(self):
        return [s.entry.name for s in self.sections if not s.complete]

    def device_sum(self):
        return xxh3_64(b''.join(self.bodies))

    def check_devices(self, demanded):
        """Yields (section, Fault) for each demanded device whose content is not framed as device state.

        The stream does not say which owner is a declared device, so the framing is demanded only of the names in @demanded;
        of the others it is found out.
        """
        for section in self.sections:
            if section.complete:
                try:
                    check_device_state(section.content(), self.order)
                    section.is_device = True
                except Fault as fault:
                    if section.entry.name in demanded:
                        yield section, fault


def check_device_state(content, order):
    def demand(condition, message):
        require(condition, 'device-state', message)

    demand(len(content) <= wire.MAX_DEVICE_STATE, '%d octets of device state' % len(content))
    body = Body(content, order)
    try:
        length, = body.take('I')
        body.raw(length)
        seen = set()
        while True:
            mark, = body.take('B')
            if mark == 0:
                break
            demand(mark == 0x53, 'a subsection begins with 0x%02x' % mark)
            name_length, = body.take('B')
            demand(name_length > 0, 'a subsection without a name')
            name = body.name(name_length, 'the name of a subsection')
            flags, _version, length = body.take('BII')
            demand(not flags & ~1, 'subsection %s has flags 0x%x' % (name, flags))
            demand(name not in seen, 'subsection %s twice' % name)
            seen.add(name)
            body.raw(length)
        body.done()
    except Fault as fault:
        raise Fault('device-state', fault.message) from None
