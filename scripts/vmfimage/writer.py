# SPDX-License-Identifier: LGPL-2.1-or-later
"""A writer of small images: golden files, and tests that plant faults.

Its steps can be taken one by one and edited in between: the plan says what records header and tail have, write() puts down all areas,
seal() makes chunk tables, digests and the commit block of what is there then. So what is changed ahead of seal() is a lie that hangs
together, and what is changed after it is damage.
"""

import struct

from vmfstream import wire
from vmfstream.hashes import xxh3_64, xxh3_128
from vmfstream.image import page_digest
from vmfstream.writer import Stream

from . import form
from .header import BlockShape, Places
from .sparse import Sparse


class ImageStream(Stream):
    """The records of an image: first the header's, then the tail's."""

    def __init__(self, big_endian):
        super().__init__(3, big_endian, one_way=True)
        self.header_pieces = None

    def layout(self, places, count=None, flags=0):
        body = self.packed('II', len(places) if count is None else count, flags)
        self.add(wire.LAYOUT, body + b''.join(self.packed('QQQQ', *place) for place in places))

    def parent(self, id, root, name, reserved=0, reserved_too=0):
        name = name.encode()
        self.add(wire.PARENT, self.packed('16s16sHHI', id, root, len(name), reserved, reserved_too) + name)

    def disk(self, name, size, identity, mark='', flags=0, reserved=0, reserved_too=0):
        texts = [text.encode() for text in (name, identity, mark)]
        self.add(wire.DISK, self.packed('IIQHHHH', flags, reserved, size, *map(len, texts), reserved_too) + b''.join(texts))

    def ram_only(self):
        self.add(wire.RAM_ONLY)

    def header_end(self):
        self.end()
        self.header_pieces = len(self.pieces)

    def halves(self):
        cut = self.header_pieces
        return (b''.join(piece.octets for piece in self.pieces[:cut]), b''.join(piece.octets for piece in self.pieces[cut:]))


class Parent:
    """What a layer knows of the image below it."""

    def __init__(self, writer, name):
        self.id, self.root, self.name = writer.commit.id, writer.root, name
        self.digests = writer.memory()   # of RAM and of disks that are held


class ImageWriter:
    """@plan: name -> part(writer, stream), the header's up to 'header end', then the tail's. @pages: (block, page) -> octets;
    @zeros: (block, page) of pages that become zeros in a layer. @parent: a Parent, for a layer."""

    def __init__(self, plan, big_endian, id, pages, zeros=(), parent=None):
        self.plan, self.big_endian, self.id = dict(plan), big_endian, id
        self.pages, self.zeros, self.parent = dict(pages), set(zeros), parent
        self.file = Sparse()
        self.shapes = []
        self.stream = None
        self.commit = self.root = None
        self.lie = {}            # block -> the Places that LAYOUT says in place of the true ones

    @property
    def is_layer(self):
        return self.parent is not None

    def memory(self):
        """(block, page) -> digest of the pages that are not zeros."""
        digests = dict(self.parent.digests) if self.parent else {}
        digests.update((key, page_digest(octets)) for key, octets in self.pages.items())
        return {key: digest for key, digest in digests.items() if key not in self.zeros}

    def holds_disks(self):
        return any(copied for _, copied in self.stream.disks)

    @staticmethod
    def _name_disks(stream):
        """Disks that are held are blocks behind those of RAM, for whoever asks the stream for blocks. Any number of times."""
        if not getattr(stream, 'disks_named', False):
            stream.disks_named = True
            stream.blocks.extend(-(-size // wire.PAGE_SIZE) for size, copied in stream.disks if copied)

    # Records

    def _write_records(self, places):
        """LAYOUT has the same length whatever it says, so the places can be of a first, blind try."""
        self.places = [self.lie.get(n, place) for n, place in enumerate(places)]
        self.stream = ImageStream(self.big_endian)
        for part in self.plan.values():
            part(self, self.stream)
        return self.stream.halves()

    def switchover(self, stream, token=None, flags=0, counts=None, **how):
        """Counts and sums of the guest's memory."""
        stream.memory.digests = self.memory()
        true = {}
        self._name_disks(stream)
        for block, n_pages in enumerate(stream.blocks):
            data = sum(key[0] == block for key in stream.memory.digests)
            true[block] = data, 0, n_pages - data
        stream.switchover(self.id if token is None else token, flags, counts={**true, **(counts or {})}, **how)

    # Areas

    def _place(self, n_pages, header_length):
        """Where everything is: in the order of the table in the document. Sets shapes, returns the offset of the tables."""
        at = table_offset = form.HEADER_OFFSET + form.aligned(header_length)
        at += form.aligned(sum(-(-n // wire.CHUNK_PAGES) for n in n_pages) * form.ENTRY)
        maps = []
        for n in n_pages:
            bitmap, chunks = form.aligned(-(-n // 64) * 8), -(-n // wire.CHUNK_PAGES)
            maps.append((at, at + bitmap if self.is_layer else 0, at + bitmap * (2 if self.is_layer else 1)))
            at = maps[-1][2] + chunks * form.UNIT
        self.shapes, first = [], 0
        for index, (n, (data, zero, digests)) in enumerate(zip(n_pages, maps)):
            at = form.aligned(at, form.PAGES_ALIGNMENT)
            self.shapes.append(BlockShape(_Sized(index, n), Places(at, data, zero, digests), first))
            first += self.shapes[-1].n_chunks
            at += n * wire.PAGE_SIZE
        return table_offset, at

    def write(self):
        """All areas but chunk tables and commit block."""
        header, _ = self._write_records([])
        self._name_disks(self.stream)
        n_pages = self.stream.blocks
        header, _ = self._write_records([Places(0, 0, 0, 0)] * len(n_pages))
        self.table_offset, tail_offset = self._place(n_pages, len(header))
        header, tail = self._write_records([shape.places for shape in self.shapes])
        self.header_length, self.tail_offset, self.tail_length = len(header), tail_offset, len(tail)
        self.file.write(form.HEADER_OFFSET, header)
        self.file.write(tail_offset, tail)
        for key, octets in self.pages.items():
            self.put_page(*key, octets)
        for block, page in self.zeros:
            self.set_bit(block, page, 'zero_bitmap')
        return self

    def put_page(self, block, page, octets):
        places = self.shapes[block].places
        self.file.write(places.pages + page * wire.PAGE_SIZE, octets)
        self.set_bit(block, page, 'data_bitmap')
        self.file.write(places.digests + page * 8, struct.pack('<Q', page_digest(octets)))

    def set_bit(self, block, page, bitmap):
        at = getattr(self.shapes[block].places, bitmap) + page // 8
        self.file.write(at, bytes([self._read(at, 1)[0] | 1 << page % 8]))

    def _read(self, at, length):
        """Zeros behind the end of what was written so far."""
        self.file.size = max(self.file.size, at + length)
        return self.file.read(at, length)

    # Tables and commit block

    def entry(self, shape, chunk):
        at = chunk * form.CHUNK_WORDS
        length = min(form.CHUNK_WORDS, shape.bitmap_length - at)
        data = self._read(shape.places.data_bitmap + at, length).ljust(form.CHUNK_WORDS, b'\0')
        zero = self._read(shape.places.zero_bitmap + at, length) if self.is_layer else b''
        zero = zero.ljust(form.CHUNK_WORDS, b'\0')
        if not any(data + zero):
            return 0
        digests = self._read(shape.places.digests + chunk * form.UNIT, form.UNIT) if any(data) else b''
        return xxh3_64(data + zero + digests) or 1

    def seal(self, tables=None, commit=None, **block):
        """@tables: their octets, if not the true ones; @commit: fields of the commit block that lie; @block: as of pack_commit()."""
        true = b''.join(struct.pack('<Q', self.entry(shape, n)) for shape in self.shapes for n in range(shape.n_chunks))
        tables = true if tables is None else tables
        self.file.write(self.table_offset, tables)
        size = form.aligned(self.tail_offset + self.tail_length)
        self.file.size = max(self.file.size, size)
        header = self.file.read(form.HEADER_OFFSET, self.header_length)
        tail = self.file.read(self.tail_offset, self.tail_length)
        version, flags = form.VERSION_DISKS if self.holds_disks() else form.VERSION, form.LAYER if self.is_layer else 0
        fields = form.Commit(version, flags, self.id, size, len(header), self.table_offset, len(tables), self.tail_offset,
                             len(tail), xxh3_128(header), xxh3_128(tables), xxh3_128(tail))
        self.commit = fields._replace(**(commit or {}))
        packed = form.pack_commit(self.commit, **block)
        self.root = packed[128:144]
        self.file.write(0, packed)
        return self


class _Sized:
    """As much of a RAM block as its shape asks for."""

    def __init__(self, index, n_pages):
        self.index, self.name = index, 'block %d' % index
        self.size = n_pages * wire.PAGE_SIZE
