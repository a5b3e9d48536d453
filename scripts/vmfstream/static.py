# SPDX-License-Identifier: LGPL-2.1-or-later
"""Static data: what the records ahead of STATIC_DATA_END say, and the rules on each."""

from collections import namedtuple

from . import wire
from .faults import require

Block = namedtuple('Block', 'index name size address rom')
SectionEntry = namedtuple('SectionEntry', 'id name instance version')
Disk = namedtuple('Disk', 'index name size sector copied')
Features = namedtuple('Features', 'offered required page_channels')


class StaticData:
    def __init__(self, version):
        self.version = version
        self.properties = None
        self.blocks = []
        self.disks = []
        self.sections = None
        self.features = None
        self.host = None
        self.seen = set()

    def read(self, kind, body):
        if kind not in (wire.RAM_BLOCK, wire.GUEST_DISK):
            require(kind not in self.seen, 'static.duplicate', 'a second one')
            self.seen.add(kind)
        self._readers[kind](self, body)
        body.done()

    def missing(self):
        """Names of the records that a complete static part of this version has and this one has not."""
        needed = [wire.SECTIONS] + ([wire.FEATURES] if self.version >= 3 else [])
        return [wire.type_name(kind) for kind in needed if kind not in self.seen]

    def _read_properties(self, body):
        count, reserved = body.take('II')
        require(count <= wire.MAX_PROPERTIES, 'stream.record-body', '%d properties' % count)
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        properties = {}
        for _ in range(count):
            key_length, value_length = body.take('HH')
            require(1 <= key_length <= 63, 'stream.record-body', 'a key of %d octets' % key_length)
            require(value_length <= 255, 'stream.record-body', 'a value of %d octets' % value_length)
            key = body.text(key_length, 'a key')
            require(key not in properties, 'static.duplicate', 'property %s twice' % key)
            properties[key] = body.text(value_length, 'the value of ' + key)
        self.properties = properties

    def _read_ram_block(self, body):
        index, flags, size, address, page_size, name_length, reserved = body.take('IIQQIHH')
        require(index == len(self.blocks) and index < wire.MAX_BLOCKS, 'stream.record-body',
                'index %d where %d is next' % (index, len(self.blocks)))
        require(not flags & ~wire.BLOCK_ROM and reserved == 0, 'stream.record-body', 'a reserved field or flag is not zero')
        require(page_size == wire.PAGE_SIZE, 'stream.record-body', 'page size %d' % page_size)
        require(0 < size <= wire.MAX_BLOCK_SIZE and size % page_size == 0, 'stream.record-body', 'a size of %d octets' % size)
        require(1 <= name_length <= 255, 'stream.record-body', 'a name of %d octets' % name_length)
        name = body.name(name_length, 'the name')
        require(all(name != b.name for b in self.blocks), 'static.duplicate', 'RAM block %s twice' % name)
        body.done()
        self.blocks.append(Block(index, name, size, address, bool(flags & wire.BLOCK_ROM)))

    def _read_guest_disk(self, body):
        index, flags, size, sector, name_length, reserved = body.take('IIQIHH')
        require(index == len(self.disks) and index < wire.MAX_DISKS, 'stream.record-body',
                'index %d where %d is next' % (index, len(self.disks)))
        require(not flags & ~wire.DISK_COPIED and reserved == 0, 'stream.record-body', 'a reserved field or flag is not zero')
        require(sector in (512, 4096), 'stream.record-body', 'sectors of %d octets' % sector)
        most = wire.MAX_COPIED_DISK_SIZE if flags & wire.DISK_COPIED else wire.MAX_DISK_SIZE
        require(0 < size <= most and size % sector == 0, 'stream.record-body', 'a size of %d octets' % size)
        require(1 <= name_length <= 63, 'stream.record-body', 'a name of %d octets' % name_length)
        name = body.name(name_length, 'the name')
        require(all(name != d.name for d in self.disks), 'static.duplicate', 'disk %s twice' % name)
        body.done()
        self.disks.append(Disk(index, name, size, sector, bool(flags & wire.DISK_COPIED)))

    def has_bases(self):
        return bool(self.features and self.features.required & wire.BASES)

    def mirrors(self):
        return bool(self.features and self.features.offered & wire.MIRROR)

    def copies_without_feature(self):
        """A disk that is marked as copied though the feature is not required; None: there is none."""
        if self.features and self.features.required & wire.DISKS:
            return None
        return next((d.name for d in self.disks if d.copied), None)

    def _read_sections(self, body):
        count, reserved = body.take('II')
        require(count <= wire.MAX_SECTIONS, 'stream.record-body', '%d sections' % count)
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        sections = []
        for n in range(count):
            id, instance, version, name_length, reserved = body.take('IIIHH')
            require(id == n, 'stream.record-body', 'section id %d where %d is next' % (id, n))
            require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
            require(1 <= name_length <= 63, 'stream.record-body', 'a name of %d octets' % name_length)
            name = body.name(name_length, 'the name of a section')
            require(all((name, instance) != (s.name, s.instance) for s in sections), 'static.duplicate',
                    'section %s/%d twice' % (name, instance))
            sections.append(SectionEntry(id, name, instance, version))
        body.done()
        self.sections = sections

    def _read_features(self, body):
        require(self.version >= 3, 'stream.record-order', 'version 2 has no FEATURES')
        offered, required, page_channels, reserved = body.take('QQII')
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        require(not required & ~offered, 'stream.record-body', 'required features that are not offered')
        require(page_channels <= wire.MAX_CHANNELS, 'stream.record-body', '%d page channels' % page_channels)
        self.features = Features(offered, required, page_channels)

    def _read_host(self, body):
        length, reserved, reserved_too = body.take('HHI')
        require(reserved == 0 and reserved_too == 0, 'stream.record-body', 'a reserved field is not zero')
        require(1 <= length <= 255, 'stream.record-body', 'a name of %d octets' % length)
        self.host = body.text(length, 'the name')

    _readers = {wire.PROPERTIES: _read_properties, wire.RAM_BLOCK: _read_ram_block, wire.SECTIONS: _read_sections,
                wire.FEATURES: _read_features, wire.HOST: _read_host, wire.GUEST_DISK: _read_guest_disk}
