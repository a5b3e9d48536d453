# SPDX-License-Identifier: LGPL-2.1-or-later
"""One image file: its areas, and what it says of each chunk.

Bitmaps and tables of a large guest are mostly zeros and lie in holes. They are read a piece of 1024 chunks at a time, and a piece of
zeros is passed over as one, so that the size of a guest costs little and what is in its image costs the rest.
"""

import errno
import struct
from collections import namedtuple

from vmfstream import wire
from vmfstream.faults import Fault, Place, require
from vmfstream.hashes import xxh3_64, xxh3_128
from vmfstream.pages import pages_in

from . import form
from .header import Header, check_layout, check_padding, shapes_of
from .tail import Tail

PIECE = 1024   # chunks
MAX_TABLES = 1 << 28   # octets that this reader takes in one: of 64 TiB of RAM. The format has no such limit
NO_WORDS = bytes(form.CHUNK_WORDS)
DIGEST_OF_ZEROS = xxh3_64(bytes(wire.PAGE_SIZE))

Chunk = namedtuple('Chunk', 'data zero digests')   # bit sets; @digests: None where there is no data


def place_of_page(image, shape, page):
    return Place(image.storage.name, shape.places.pages + page * wire.PAGE_SIZE, 'page %d of %s' % (page, shape.block.name))


class Pieces:
    """One bitmap, or one block's chunk table: the last piece that was read is kept."""

    def __init__(self, storage, offset, length, per_chunk):
        self.storage = storage
        self.offset = offset
        self.length = length
        self.size = PIECE * per_chunk
        self.last = None, b''

    def piece(self, number):
        if self.last[0] != number:
            at = number * self.size
            octets = self.storage.read(self.offset + at, min(self.size, self.length - at))
            self.last = number, octets.ljust(self.size, b'\0')
        return self.last[1]


class Image:
    def __init__(self, storage, report):
        self.storage = storage
        self.report = report
        self.commit = self.root = None
        self.header = self.tail = None
        self.shapes = []
        self.areas = None
        self.readable = False    # bitmaps can be looked at
        self.sound = False       # so far nothing is wrong with it
        self.damaged = set()     # (block, chunk)
        self.pages_read = 0
        self._pieces = {}

    # Opening

    def open(self):
        """Commit block, header, tables, tail, and the rules on where things are."""
        before = len(self.report.findings)
        try:
            block = self.storage.read(0, form.UNIT) if self.storage.size >= form.UNIT else b''
            self.commit, self.root = form.read_commit(block, self.storage.size)
            self._open_areas()
        except Fault as fault:
            self.report.fault(getattr(fault, 'place', Place(self.storage.name, 0, 'commit block')), fault)
        self.sound = len(self.report.findings) == before

    def _open_areas(self):
        commit = self.commit
        header = self._area('header', form.HEADER_OFFSET, commit.header_length, commit.header_digest)
        tables_are_whole = self._area('chunk tables', commit.table_offset, commit.table_length, commit.table_digest) is not None
        tail = self._area('tail', commit.tail_offset, commit.tail_length, commit.tail_digest)
        if header is None:
            return
        self.header = Header(header, commit.version, self.is_layer, self.storage.name, self.report)
        if not self.header.read():
            return
        self.shapes = shapes_of(self.header)
        self.areas = check_layout(self.header, commit, self.shapes)
        if tail is not None:
            self.tail = Tail(tail, commit, self.header, self.storage.name, self.report)
            if self.tail.read():
                self.tail.check()
        self.readable = tables_are_whole

    def _area(self, what, offset, length, said):
        """Its octets; None, and a finding, where they are damaged."""
        if length > MAX_TABLES:
            raise OSError(errno.EFBIG, '%s of %d octets are more than this reader takes' % (what, length), self.storage.name)
        octets = self.storage.read(offset, length)
        found = xxh3_128(octets)
        if found == said:
            return octets
        self.report.add(Place(self.storage.name, offset, what), 'image.digest', '%s said, %s found' % (said.hex(), found.hex()))
        return None

    @property
    def is_layer(self):
        return bool(self.commit.flags & form.LAYER)

    # Chunks

    def _area_pieces(self, shape):
        """Data bitmap, zero bitmap (None: there is none), chunk table."""
        key = shape.block.index
        if key not in self._pieces:
            places = shape.places
            self._pieces[key] = (
                Pieces(self.storage, places.data_bitmap, shape.bitmap_length, form.CHUNK_WORDS),
                Pieces(self.storage, places.zero_bitmap, shape.bitmap_length, form.CHUNK_WORDS) if self.is_layer else None,
                Pieces(self.storage, self.commit.table_offset + shape.first_chunk * form.ENTRY, shape.n_chunks * form.ENTRY,
                       form.ENTRY))
        return self._pieces[key]

    def piece_is_empty(self, shape, number):
        """Neither bits nor entries for any chunk of this piece."""
        return not any(any(pieces.piece(number)) for pieces in self._area_pieces(shape) if pieces is not None)

    def words(self, shape, chunk):
        """The octets of its data words and its zero words."""
        data, zero, _ = self._area_pieces(shape)
        at = chunk % PIECE * form.CHUNK_WORDS
        return (data.piece(chunk // PIECE)[at:at + form.CHUNK_WORDS],
                zero.piece(chunk // PIECE)[at:at + form.CHUNK_WORDS] if zero is not None else NO_WORDS)

    def entry(self, shape, chunk):
        return struct.unpack_from('<Q', self._area_pieces(shape)[2].piece(chunk // PIECE), chunk % PIECE * form.ENTRY)[0]

    def digest_block(self, shape, chunk):
        return self.storage.read(shape.places.digests + chunk * form.UNIT, form.UNIT)

    def chunk(self, shape, number):
        data, zero = (int.from_bytes(words, 'little') for words in self.words(shape, number))
        digests = struct.unpack('<%dQ' % wire.CHUNK_PAGES, self.digest_block(shape, number)) if data else None
        return Chunk(data, zero, digests)

    def pieces_with_content(self, shape):
        for number in range(-(-shape.n_chunks // PIECE)):
            if not self.piece_is_empty(shape, number):
                yield range(number * PIECE, min((number + 1) * PIECE, shape.n_chunks))

    # Verifying

    def verify(self, pages=False):
        """Everything that open() left: every chunk, the padding, and the content of the pages if they are wanted."""
        if not self.readable:
            return
        before = len(self.report.findings)
        for shape in self.shapes:
            for chunks in self.pieces_with_content(shape):
                for number in chunks:
                    self._verify_chunk(shape, number, pages)
        check_padding(self.areas, self.commit, self.storage, self.report)
        self.sound = self.sound and len(self.report.findings) == before

    def _verify_chunk(self, shape, number, pages):
        try:
            self._check_chunk(shape, number)
        except Fault as fault:
            self.damaged.add((shape.block.index, number))
            self.report.fault(Place(self.storage.name, fault.offset, 'chunk %d of %s' % (number, shape.block.name)), fault)
            return
        if pages:
            self._check_pages(shape, number)

    def _check_chunk(self, shape, number):
        data_words, zero_words = self.words(shape, number)
        chunk = self.chunk(shape, number)
        first = number * wire.CHUNK_PAGES

        def demand(condition, id, message, offset):
            try:
                require(condition, id, message)
            except Fault as fault:
                fault.offset = offset
                raise

        said = self.entry(shape, number)
        block = self.digest_block(shape, number) if chunk.data else b''
        found = (xxh3_64(data_words + zero_words + block) or 1) if chunk.data | chunk.zero else 0
        demand(said == found, 'image.digest', 'the chunk table says %016x, bits and digests give %016x' % (said, found),
               self.commit.table_offset + (shape.first_chunk + number) * form.ENTRY)
        at = shape.places.data_bitmap + number * form.CHUNK_WORDS
        demand(not (chunk.data | chunk.zero) >> (shape.n_pages - first), 'image.bitmap', 'bits behind the end of the block', at)
        both = chunk.data & chunk.zero
        demand(not both, 'image.bitmap', 'page %d has both bits' % (first + next(pages_in(both), 0)), at)
        at = shape.places.digests + number * form.UNIT
        for page, digest in enumerate(chunk.digests or ()):
            has_data = bool(chunk.data >> page & 1)
            demand(has_data == bool(digest), 'image.digest', 'page %d has %s' %
                   (first + page, 'the digest 0' if has_data else 'a digest and no data bit'), at + page * 8)
            demand(digest != DIGEST_OF_ZEROS, 'image.bitmap', 'page %d has a data bit, its digest is that of zeros' %
                   (first + page), at + page * 8)

    def _check_pages(self, shape, number):
        chunk = self.chunk(shape, number)
        for start, end in runs(chunk.data):
            first = number * wire.CHUNK_PAGES + start
            octets = self.storage.read(shape.places.pages + first * wire.PAGE_SIZE, (end - start) * wire.PAGE_SIZE)
            for page in range(start, end):
                at = (page - start) * wire.PAGE_SIZE
                found = xxh3_64(octets[at:at + wire.PAGE_SIZE]) or 1
                self.pages_read += 1
                if found != chunk.digests[page]:
                    self.report.add(place_of_page(self, shape, number * wire.CHUNK_PAGES + page), 'image.page',
                                    'its digest is %016x, %016x is said' % (found, chunk.digests[page]))


def runs(bits):
    """(start, end) of each run of bits, rising."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        length = (~bits & bits + 1).bit_length() - 1
        yield at + skip, at + skip + length
        at, bits = at + skip + length, bits >> length
