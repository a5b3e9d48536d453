# SPDX-License-Identifier: LGPL-2.1-or-later
"""PAGES, HINT and END_MARK of one channel, be it a page channel or the main one."""

from . import wire
from .faults import Fault, require


def bit_set(words):
    value = 0
    for n, word in enumerate(words):
        value |= word << 64 * n
    return value


def pages_in(bits):
    """The page numbers in a bit set, rising."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def check_range(blocks, block, chunk, bits):
    require(block < len(blocks), 'ram.range', 'block %d of %d' % (block, len(blocks)))
    pages = blocks[block].size // wire.PAGE_SIZE - chunk * wire.CHUNK_PAGES
    require(pages > 0, 'ram.range', 'chunk %d is beyond the end of block %s' % (chunk, blocks[block].name))
    if pages < wire.CHUNK_PAGES:
        require(bits >> pages == 0, 'ram.range', 'bits beyond the end of block %s' % blocks[block].name)


class PageChannel:
    def __init__(self, number, epoch, blocks, image, features_used):
        self.number = number
        self.epoch = epoch
        self.blocks = blocks
        self.image = image
        self.features_used = features_used
        self.records = 0       # PAGES records so far
        self.end_mark = False

    def read(self, record, body):
        require(not self.end_mark, 'stream.record-order', 'after END_MARK')
        {wire.PAGES: self._read_pages, wire.HINT: self._read_hint, wire.END_MARK: self._read_end_mark}[record.kind](record, body)

    def _read_pages(self, record, body):
        number = self.records
        self.records += 1      # also when it is refused: one damaged record shall not make a fault of each one after it
        block, flags, sequence, chunk, epoch, n_data = body.take('IIQQII')
        data, zero = bit_set(body.take('8Q')), bit_set(body.take('8Q'))
        require(not flags & ~wire.FIRST_PASS, 'stream.record-body', 'unknown flags 0x%x' % flags)
        require(n_data <= wire.MAX_PAGES_DATA, 'stream.record-body', '%d pages of data' % n_data)
        require(n_data == data.bit_count(), 'stream.record-body',
                'n_data is %d, the bit set has %d' % (n_data, data.bit_count()))
        require(body.left() == n_data * wire.PAGE_SIZE, 'stream.record-body',
                'a payload of %d octets for %d pages' % (body.left(), n_data))
        require(sequence == number, 'stream.record-order', 'sequence %d where %d is next' % (sequence, number))
        require(epoch == self.epoch, 'stream.record-order', 'epoch %d in epoch %d' % (epoch, self.epoch))
        check_range(self.blocks, block, chunk, data | zero)
        require(not data & zero, 'ram.range', 'a page is data and zero')
        require(data | zero, 'ram.range', 'no page at all')
        self.image.add(self.number, sequence, self.blocks[block], chunk, data, zero,
                       body.octets[wire.PAGES_FIXED:], bool(flags & wire.FIRST_PASS), record.place)

    def _read_hint(self, record, body):
        block, _, chunk, data = read_hint(body)
        check_range(self.blocks, block, chunk, data)
        self.features_used.append((wire.HINTS, record.place))

    def _read_end_mark(self, record, body):
        count, = body.take('Q')
        body.done()
        self.end_mark = True
        if count != self.records:
            raise Fault('ram.counts', 'END_MARK says %d records, the channel carried %d' % (count, self.records))


def read_hint(body):
    block, reserved, chunk = body.take('IIQ')
    data = bit_set(body.take('8Q'))
    body.done()
    require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
    return block, reserved, chunk, data
