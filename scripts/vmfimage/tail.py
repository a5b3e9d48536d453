# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tail: DISK or RAM_ONLY, sections, SWITCHOVER, END."""

from collections import namedtuple

from vmfstream import wire
from vmfstream.faults import require
from vmfstream.mainchannel import BlockSum, Switchover
from vmfstream.records import Body
from vmfstream.sections import Sections

from . import form
from .recordarea import RecordArea

Disk = namedtuple('Disk', 'name contained size identity mark')


class Tail(RecordArea):
    def __init__(self, octets, commit, header, file, report):
        super().__init__(octets, commit.tail_offset, 'tail', file, report, header.order)
        self.id = commit.id
        self.header = header
        self.disks = []
        self.ram_only = False
        self.sections = Sections(header.static.sections or [], header.order)
        self.switchover = None

    def read(self):
        before = len(self.report.findings)
        self.read_records(0)
        return len(self.report.findings) == before

    def read_record(self, record):
        require(record.kind not in wire.STATIC, 'static.late', 'static data after its end')
        require(record.kind in self._readers, 'stream.record-order', 'in the tail of an image')
        self._readers[record.kind](self, record, Body(record.body, self.order))

    def _before_sections(self):
        require(self.switchover is None and not self.sections.bodies, 'stream.record-order', 'after device state')

    def _read_disk(self, record, body):
        self._before_sections()
        require(not self.ram_only, 'stream.record-order', 'beside RAM_ONLY')
        flags, reserved, size, name_length, identity_length, mark_length, reserved_too = body.take('IIQHHHH')
        require(not flags & ~form.DISK_CONTAINED and reserved == 0 and reserved_too == 0, 'stream.record-body',
                'a reserved field or flag is not zero')
        require(1 <= name_length <= 63, 'stream.record-body', 'a name of %d octets' % name_length)
        require(1 <= identity_length <= 255, 'stream.record-body', 'an identity of %d octets' % identity_length)
        require(mark_length <= 255, 'stream.record-body', 'a mark of %d octets' % mark_length)
        disk = Disk(body.text(name_length, 'the name'), bool(flags & form.DISK_CONTAINED), size,
                    body.text(identity_length, 'the identity'), body.text(mark_length, 'the mark'))
        body.done()
        require(all(disk.name != other.name for other in self.disks), 'image.disk', 'disk %s twice' % disk.name)
        self.disks.append(disk)

    def _read_ram_only(self, record, body):
        self._before_sections()
        body.done()
        require(not self.disks, 'stream.record-order', 'beside DISK')
        require(not self.ram_only, 'stream.record-order', 'a second one')
        self.ram_only = True

    def _read_section(self, record, body):
        require(self.switchover is None, 'stream.record-order', 'after SWITCHOVER')
        self.sections.read(body, record.place)

    def _check_held(self):
        """What the header has a place for, and what is said here to be there."""
        if self.header.version != form.VERSION_DISKS:
            return
        placed = {disk.name: disk.size for disk in self.header.held_disks()}
        said = {disk.name: disk.size for disk in self.disks if disk.contained}
        require(placed == said, 'image.disk', 'the header has a place for %s, the tail says that %s are held' %
                (', '.join(sorted(placed)) or 'none', ', '.join(sorted(said)) or 'none'))

    def _read_switchover(self, record, body):
        require(self.switchover is None, 'stream.record-order', 'a second one')
        token, flags, n_blocks, static_sum, device_sum = body.take('16sIIQQ')
        require(not flags & ~form.SWITCHOVER_RUNS, 'stream.record-body', 'unknown flags 0x%x' % flags)
        self._check_held()
        shapes = self.header.blocks()
        require(n_blocks == len(shapes), 'stream.record-body', '%d blocks, there are %d' % (n_blocks, len(shapes)))
        blocks = []
        for n in range(n_blocks):
            block, reserved, data, zero, hole, total = body.take('IIQQQQ')
            require(block == n and reserved == 0, 'stream.record-body', 'block %d where %d is next, or a reserved field is not '
                    'zero' % (block, n))
            blocks.append(BlockSum(data, zero, hole, total))
        body.done()
        self.switchover = Switchover(token, flags, static_sum, device_sum, blocks, record.place)
        require(token == self.id, 'stream.record-body', 'the token is not the image id')
        incomplete = self.sections.incomplete()
        require(not incomplete, 'section', 'not complete: %s' % ', '.join(incomplete))

    def _read_end(self, record, body):
        body.done()
        self.ended = True
        require(self.switchover is not None, 'stream.record-order', 'ahead of SWITCHOVER')

    _readers = {wire.DISK: _read_disk, wire.RAM_ONLY: _read_ram_only, wire.SECTION: _read_section,
                wire.SWITCHOVER: _read_switchover, wire.END: _read_end}

    # What the record says of sums that need nothing but header and tail

    def check(self):
        """Counts that add up, static sum, device sum."""
        said = self.switchover
        for block, counts in zip(self.header.blocks(), said.blocks):
            pages = block.size // wire.PAGE_SIZE
            if counts.zero or counts.data + counts.hole != pages:
                self.report.add(said.place, 'ram.counts', 'block %s: %d data, %d zero and %d hole pages of %d' %
                                (block.name, counts.data, counts.zero, counts.hole, pages))
        for id, what, here, found in (('static.sum', 'static sum', said.static_sum, self.header.static_sum()),
                                      ('device-state.sum', 'device sum', said.device_sum, self.sections.device_sum())):
            if here != found:
                self.report.add(said.place, id, '%s: %016x said, %016x found' % (what, here, found))
