# SPDX-License-Identifier: LGPL-2.1-or-later
"""The RAM image that a stream builds, as digests, and the sums over it.

Theory of operation
-------------------
What a recording cannot say is the order of records on different channels. So nothing is applied while files are read: each
chunk keeps, for each channel, the records that touched it, with the digests of their pages, and the image is put together at
the end, chunk by chunk.

- One channel touched the chunk: its order is the order. Each acknowledged sum is compared on the way.
- Several did, and their acknowledgements are known. A chunk moves to another channel only when all its records on the old one
  are acknowledged, so what lies between two acknowledgements that name the chunk is a group which nothing of another channel
  can cut in two. The order of the groups is one that explains all acknowledged sums; if none does, that is a fault, and
  if several do and end differently, the block's sum is not checked.
- Several did, and there are no acknowledgements: pages that only one channel carried, or that ended alike on all, are
  determined; if others remain, the block's sum is not checked, and a note says so.
"""

from array import array
from collections import namedtuple

from . import wire
from .faults import require
from .pages import pages_in
from .hashes import xxh3_64

_M64 = 0xFFFFFFFFFFFFFFFF

Touch = namedtuple('Touch', 'sequence pages digests')   # digests of @pages, in their order; 0 is a page of zeros
Ack = namedtuple('Ack', 'sequence sum place')
Group = namedtuple('Group', 'touches ack')


def page_digest(octets):
    return xxh3_64(octets) or 1


def mix(page, digest):
    if digest == 0:
        return 0
    x = digest ^ (page + 1) * 0x9E3779B97F4A7C15 & _M64
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & _M64
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & _M64
    return x ^ x >> 32


class ChunkState:
    """The digests of a chunk as records are applied, and their sum."""

    def __init__(self, chunk, mixed=None):
        self.first = chunk * wire.CHUNK_PAGES
        self.mixed = dict(mixed or {})

    def copy(self):
        other = ChunkState(0, self.mixed)
        other.first = self.first
        return other

    def apply(self, touches):
        for touch in touches:
            for page, digest in zip(touch.pages, touch.digests):
                self.mixed[page] = mix(self.first + page, digest)

    def sum(self):
        return sum(self.mixed.values()) & _M64


class Image:
    def __init__(self):
        self.chunks = {}       # (block, chunk) -> channel -> list of Touch
        self.first_pass = {}   # (block, chunk) -> bit set of pages
        self.counts = {}       # block -> [data, zero] of the first pass
        self.acks = {}         # (block, chunk) -> channel -> list of Ack
        self.acked_channels = set()
        self.records = 0
        self.data_pages = 0
        self.zero_pages = 0

    def add(self, channel, sequence, block, chunk, data, zero, payload, first_pass, place):
        key = block.index, chunk
        bits = data | zero
        pages, digests = array('H', pages_in(bits)), array('Q')
        at = 0
        for page in pages:
            if data >> page & 1:
                digests.append(page_digest(payload[at:at + wire.PAGE_SIZE]))
                at += wire.PAGE_SIZE
            else:
                digests.append(0)
        self.chunks.setdefault(key, {}).setdefault(channel, []).append(Touch(sequence, pages, digests))
        self.records += 1
        self.data_pages += data.bit_count()
        self.zero_pages += zero.bit_count()
        if first_pass:
            self._count_first_pass(key, data, zero)

    def _count_first_pass(self, key, data, zero):
        seen = self.first_pass.get(key, 0)
        counts = self.counts.setdefault(key[0], [0, 0])
        counts[0] += data.bit_count()
        counts[1] += zero.bit_count()
        self.first_pass[key] = seen | data | zero
        again = seen & (data | zero)
        if again:
            page = key[1] * wire.CHUNK_PAGES + next(pages_in(again))
            require(False, 'ram.counts', 'page %d of block %d is in the first pass twice' % (page, key[0]))

    def first_pass_counts(self, block):
        """Data, zero and hole pages of the first pass, as received."""
        data, zero = self.counts.get(block.index, (0, 0))
        return data, zero, block.size // wire.PAGE_SIZE - data - zero

    def add_ack(self, key, channel, ack):
        self.acks.setdefault(key, {}).setdefault(channel, []).append(ack)

    def chunks_touched(self, channel):
        """For each PAGES record of @channel, in order: its chunk."""
        touched = {}
        for key, channels in self.chunks.items():
            for touch in channels.get(channel, ()):
                touched[touch.sequence] = key
        return touched

    def block_sums(self, report):
        """Block index -> sum, or None where the order of channels leaves it open. Reports sums in ACKs that differ."""
        sums = {}
        for key in sorted(self.chunks):
            total = sums.get(key[0], 0)
            one = self._chunk_sum(key, report)
            sums[key[0]] = None if total is None or one is None else total + one & _M64
        return sums

    def _chunk_sum(self, key, report):
        channels = self.chunks[key]
        acks = self.acks.get(key, {})
        if len(channels) == 1:
            (channel, touches), = channels.items()
            return self._in_order(key, touches, acks.get(channel, ()), report)
        if all(channel in self.acked_channels for channel in channels):
            return self._by_acks(key, channels, acks, report)
        return self._without_acks(key, channels)

    @staticmethod
    def _in_order(key, touches, acks, report):
        state = ChunkState(key[1])
        for group in _groups(touches, acks):
            state.apply(group.touches)
            if group.ack and group.ack.sum != state.sum():
                report.add(group.ack.place, 'ram.sum', 'chunk %d of block %d: acknowledged sum %016x, its pages give %016x' %
                           (key[1], key[0], group.ack.sum, state.sum()))
        return state.sum()

    @staticmethod
    def _by_acks(key, channels, acks, report):
        groups = [_groups(touches, acks.get(channel, ())) for channel, touches in sorted(channels.items())]
        if any(own[-1].ack is None for own in groups):
            return Image._without_acks(key, channels)
        finals = _explain(ChunkState(key[1]), groups)
        if not finals:
            report.add(groups[0][0].ack.place, 'ram.sum',
                       'chunk %d of block %d: no order of the channels explains the acknowledged sums' % (key[1], key[0]))
        return finals.pop() if len(finals) == 1 else None

    @staticmethod
    def _without_acks(key, channels):
        last = {}
        for touches in channels.values():
            own = {}
            for touch in touches:
                own.update(zip(touch.pages, touch.digests))
            for page, digest in own.items():
                last.setdefault(page, set()).add(digest)
        if any(len(digests) > 1 for digests in last.values()):
            return None
        first = key[1] * wire.CHUNK_PAGES
        return sum(mix(first + page, min(digests)) for page, digests in last.items()) & _M64


def _groups(touches, acks):
    """Cuts @touches at each acknowledgement; the last group may have none."""
    groups, at = [], 0
    for ack in acks:
        start = at
        while at < len(touches) and touches[at].sequence < ack.sequence:
            at += 1
        groups.append(Group(touches[start:at], ack))
    if at < len(touches):
        groups.append(Group(touches[at:], None))
    return groups


def _explain(state, groups):
    """The sums that the chunk may end with: after each order of @groups, one list a channel, in which every acknowledged sum
    comes true. The same groups in another order may leave something else, so a state is known by its position and its sum."""
    finals, known = set(), set()
    pending = [(tuple(0 for _ in groups), state)]
    while pending:
        position, state = pending.pop()
        if (position, state.sum()) in known:
            continue
        known.add((position, state.sum()))
        steps = [(n, groups[n][at]) for n, at in enumerate(position) if at < len(groups[n])]
        if not steps:
            finals.add(state.sum())
        for n, group in steps:
            after = state.copy()
            after.apply(group.touches)
            if group.ack.sum == after.sum():
                pending.append((position[:n] + (position[n] + 1,) + position[n + 1:], after))
    return finals
