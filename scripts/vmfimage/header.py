# SPDX-License-Identifier: LGPL-2.1-or-later
"""The header: what a one-way stream of version 3 begins with, LAYOUT, PARENT, END. And the rules on where things are."""

from collections import namedtuple

from vmfstream import wire
from vmfstream.faults import Fault, Place, require
from vmfstream.hashes import xxh3_64
from vmfstream.records import Body, read_image_header, read_machine_header
from vmfstream.static import StaticData

from . import form
from .recordarea import RecordArea

Places = namedtuple('Places', 'pages data_bitmap zero_bitmap digests')
Parent = namedtuple('Parent', 'id root name place')
Area = namedtuple('Area', 'what offset length alignment')


class Header(RecordArea):
    def __init__(self, octets, version, layer, file, report):
        super().__init__(octets, form.HEADER_OFFSET, 'header', file, report)
        self.version = version
        self.layer = layer
        self.options = None
        self.machine = None
        self.static = None
        self.static_end = None
        self.places = None        # a Places for each block
        self.layout_place = None
        self.parent = None

    def read(self):
        """All of it; faults are reported. True: it is whole, and what it says can be used."""
        before = len(self.report.findings)
        with self.guard('image header', 0):
            self.options = read_image_header(self.octets)
            if self.options.version != 3:
                raise Fault('stream.version', 'version %d; the header of an image has version 3' % self.options.version, fatal=True)
            require(self.options.one_way, 'stream.record-body', 'the image header is not one-way')
        if self.options is None:
            return False
        self.order = wire.order_mark(self.options.big_endian)
        self.static = StaticData(3)
        with self.guard('machine header', wire.IMAGE_HEADER_SIZE):
            self.machine = read_machine_header(self.octets[wire.IMAGE_HEADER_SIZE:], self.order)
        if self.machine is not None:
            self.read_records(wire.IMAGE_HEADER_SIZE + wire.MACHINE_HEADER_SIZE)
        return len(self.report.findings) == before

    def static_sum(self):
        return xxh3_64(self.octets[:self.static_end])

    def held_disks(self):
        return [disk for disk in self.static.disks if disk.copied]

    def blocks(self):
        """RAM blocks, and behind them the disks that are held."""
        n = len(self.static.blocks)
        return self.static.blocks + [HeldDisk(n + at, disk) for at, disk in enumerate(self.held_disks())]

    # Records

    def read_record(self, record):
        body = Body(record.body, self.order)
        if record.kind in wire.STATIC:
            require(self.static_end is None, 'static.late', 'static data after its end')
            self.static.read(record.kind, body)
            return
        if record.kind == wire.STATIC_DATA_END:
            body.done()
            self._end_static_data(record)
            return
        if self.static_end is None:
            raise Fault('static.missing-end', 'before STATIC_DATA_END', fatal=True)
        require(record.kind in self._readers, 'stream.record-order', 'in the header of an image')
        self._readers[record.kind](self, record, body)

    def _end_static_data(self, record):
        require(self.static_end is None, 'static.double-end', 'static data has ended already')
        self.static_end = record.end
        for name in self.static.missing():
            self.report.add(record.place, 'stream.record-order', 'static data ends without %s' % name)
        if self.static.features is not None:
            offered, required, _ = self.static.features
            wanted = wire.SUMS | (wire.DISKS if self.version == form.VERSION_DISKS else 0)
            require(offered == required == wanted, 'stream.record-body', 'FEATURES does not offer and require 0x%x alone' % wanted)
        without = self.static.copies_without_feature()
        require(without is None, 'stream.record-body', 'disk %s is held, and the feature is not required' % without)

    def _read_layout(self, record, body):
        require(self.places is None, 'stream.record-order', 'a second one')
        blocks = self.blocks()
        if self.version == form.VERSION_DISKS and len(blocks) == len(self.static.blocks):
            raise Fault('image.layout', 'version %d, and no disk is held' % self.version, fatal=True)
        count, flags = body.take('II')
        require(flags == 0, 'stream.record-body', 'unknown flags 0x%x' % flags)
        require(count == len(blocks), 'stream.record-body', '%d blocks, there are %d' % (count, len(blocks)))
        places = [Places(*body.take('QQQQ')) for _ in range(count)]
        body.done()
        self.places, self.layout_place = places, record.place

    def _read_parent(self, record, body):
        require(self.layer, 'stream.record-order', 'in an image that is no layer')
        require(self.places is not None, 'stream.record-order', 'ahead of LAYOUT')
        require(self.parent is None, 'stream.record-order', 'a second one')
        id, root, length, reserved, reserved_too = body.take('16s16sHHI')
        require(reserved == 0 and reserved_too == 0, 'stream.record-body', 'a reserved field is not zero')
        require(1 <= length <= form.MAX_PARENT_NAME, 'stream.record-body', 'a name of %d octets' % length)
        name = body.text(length, 'the name')
        body.done()
        self.parent = Parent(id, root, name, record.place)

    def _read_end(self, record, body):
        body.done()
        self.ended = True
        require(self.static_end is not None and self.places is not None, 'stream.record-order', 'ahead of LAYOUT')
        require(self.parent is not None or not self.layer, 'stream.record-order', 'ahead of PARENT, and this is a layer')

    _readers = {wire.LAYOUT: _read_layout, wire.PARENT: _read_parent, wire.END: _read_end}


class HeldDisk:
    """A disk as a block. Names of blocks may be those of disks, so in messages it is 'disk NAME'."""

    rom = False

    def __init__(self, index, disk):
        self.index = index
        self.disk = disk
        self.name = 'disk ' + disk.name
        self.size = form.aligned(disk.size)


class BlockShape:
    """A RAM block or a disk that is held, and where an image has its parts."""

    def __init__(self, block, places, first_chunk):
        self.block = block
        self.places = places
        self.n_pages = block.size // wire.PAGE_SIZE
        self.n_chunks = -(-self.n_pages // wire.CHUNK_PAGES)
        self.first_chunk = first_chunk
        self.bitmap_length = -(-self.n_pages // 64) * 8

    def areas(self, layer):
        name, places = self.block.name, self.places
        yield Area('pages of ' + name, places.pages, self.block.size, form.PAGES_ALIGNMENT)
        yield Area('data bitmap of ' + name, places.data_bitmap, self.bitmap_length, form.UNIT)
        if layer:
            yield Area('zero bitmap of ' + name, places.zero_bitmap, self.bitmap_length, form.UNIT)
        yield Area('digest blocks of ' + name, places.digests, self.n_chunks * form.UNIT, form.UNIT)


def shapes_of(header):
    shapes, first = [], 0
    for block, places in zip(header.blocks(), header.places):
        shapes.append(BlockShape(block, places, first))
        first += shapes[-1].n_chunks
    return shapes


def check_layout(header, commit, shapes):
    """The areas in their order in the file. What is broken is raised: no bitmap can be read then."""
    def demand(condition, message):
        if not condition:
            fault = Fault('image.layout', message, fatal=True)
            fault.place = header.layout_place
            raise fault

    for shape in shapes:
        demand(shape.block.size <= wire.MAX_BLOCK_SIZE, '%s has %d octets' % (shape.block.name, shape.block.size))
    n_chunks = sum(shape.n_chunks for shape in shapes)
    demand(commit.table_length == n_chunks * form.ENTRY, 'chunk tables of %d octets for %d chunks' % (commit.table_length, n_chunks))
    areas = [Area('commit block', 0, form.UNIT, form.UNIT),
             Area('header', form.HEADER_OFFSET, commit.header_length, form.UNIT),
             Area('chunk tables', commit.table_offset, commit.table_length, form.UNIT),
             Area('tail', commit.tail_offset, commit.tail_length, form.UNIT)]
    for shape in shapes:
        demand(header.layer or shape.places.zero_bitmap == 0, 'block %s has a zero bitmap, and this is no layer' % shape.block.name)
        areas.extend(shape.areas(header.layer))
    for area in areas:
        demand(area.offset % area.alignment == 0, '%s at %d, which is no multiple of %d' % (area.what, area.offset, area.alignment))
        demand(area.offset + area.length <= commit.file_size, '%s end at %d, behind the file size %d' %
               (area.what, area.offset + area.length, commit.file_size))
    areas.sort(key=lambda area: (area.offset, area.length))
    for area, after in zip(areas, areas[1:]):
        demand(area.offset + area.length <= after.offset, '%s (%d octets at %d) and %s (at %d) overlap' %
               (area.what, area.length, area.offset, after.what, after.offset))
    end = max(area.offset + area.length for area in areas)
    demand(commit.file_size == form.aligned(end), 'a file size of %d octets, the last area ends at %d' % (commit.file_size, end))
    return areas


def check_padding(areas, commit, storage, report):
    ends = [area.offset for area in areas[1:]] + [commit.file_size]
    for area, end in zip(areas, ends):
        found = storage.first_nonzero(area.offset + area.length, end)
        if found is not None:
            report.add(Place(storage.name, found, 'padding'), 'image.layout', 'the octet is not zero; it is between %s and what follows' %
                       area.what)
