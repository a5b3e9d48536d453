# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copied disks: what EXTENT, BASE, DISK_SYNC and DISK_SYNCED say, and the digests that they leave."""

from . import wire
from .faults import require
from .hashes import xxh3_64
from .image import mix

_M64 = 0xFFFFFFFFFFFFFFFF


def granule_digest(octets):
    return (xxh3_64(octets) or 1) if any(octets) else 0


class Copy:
    """One disk, as the records so far leave it."""

    def __init__(self, disk):
        self.disk = disk
        self.granules = -(-disk.size // wire.GRANULE)
        self.mixed = {}                              # granule -> its share of the sum, where that is not 0
        self.named = bytearray(self.granules)
        self.data_octets = 0
        self.base_octets = 0
        self.changed = False                         # an EXTENT has come
        self.total = 0

    def mirror(self, number, offset, length, digest):
        self.total = self.total + mix(number, (mix(offset, digest) ^ mix(length, 1)) or 1) & _M64

    def put(self, granule, digest):
        share = mix(granule, digest)
        self.total = self.total + share - self.mixed.pop(granule, 0) & _M64
        if share:
            self.mixed[granule] = share


class Disks:
    def __init__(self, disks, bases=False, mirrors=False):
        self.bases = bases       # the target has one of each
        self.flags = wire.EXTENT_FIRST | wire.EXTENT_ZERO | (wire.EXTENT_MIRRORED if mirrors else 0)
        self.mirrored = 0        # pieces that were mirrored
        self.written = set()     # those that were answered
        self.copies = {d.index: Copy(d) for d in disks if d.copied}
        self.syncs = {}          # cookie -> sums
        self.answered = set()
        self.last = False

    def _granules(self, copy, offset, length, most, unit=wire.GRANULE):
        """Those of a range that has to be made of whole units."""
        end, size = offset + length, copy.disk.size
        require(length > 0 and end <= size, 'disk.range', 'octets %d to %d of a disk of %d' % (offset, end, size))
        require(offset % unit == 0 and (end == size or end % unit == 0), 'disk.range',
                'octets %d to %d are not in units of %d' % (offset, end, unit))
        require(length <= most, 'disk.range', '%d octets at once' % length)
        return range(offset // wire.GRANULE, -(-end // wire.GRANULE))

    @staticmethod
    def _check_named(copy, granules, first):
        require(all(copy.named[g] != first for g in granules), 'disk.counts',
                'a granule from %d to %d was named before, or was not' % (granules[0], granules[-1]))

    def read_extent(self, body):
        index, flags, offset, length = body.take('IIQQ')
        require(index in self.copies, 'disk.range', 'disk %d, which is not copied' % index)
        require(not self.last, 'stream.record-order', 'after the last DISK_SYNC')
        require(not flags & ~self.flags, 'stream.record-body', 'unknown flags 0x%x' % flags)
        copy, zero, mirrored = self.copies[index], bool(flags & wire.EXTENT_ZERO), bool(flags & wire.EXTENT_MIRRORED)
        granules = self._granules(copy, offset, length, wire.MAX_ZERO_EXTENT if zero else wire.MAX_EXTENT,
                                  copy.disk.sector if mirrored else wire.GRANULE)
        require(body.left() == (0 if zero else length), 'stream.record-body', 'a payload of %d octets' % body.left())
        self._check_named(copy, granules, bool(flags & wire.EXTENT_FIRST))
        copy.changed = True
        payload = body.octets[wire.EXTENT_FIXED:]
        copy.data_octets += 0 if zero else length
        if mirrored:
            copy.mirror(self.mirrored, offset, length, 1 if zero else (xxh3_64(payload) or 1))
            self.mirrored += 1
            return
        for n, granule in enumerate(granules):
            copy.named[granule] = 1
            copy.put(granule, 0 if zero else granule_digest(payload[n * wire.GRANULE:(n + 1) * wire.GRANULE]))

    def read_base(self, body):
        index, flags, offset, length = body.take('IIQQ')
        require(self.bases, 'stream.record-order', 'the feature is not required')
        require(index in self.copies, 'disk.range', 'disk %d, which is not copied' % index)
        require(not flags & ~wire.BASE_ZERO, 'stream.record-body', 'unknown flags 0x%x' % flags)
        copy = self.copies[index]
        require(not copy.changed and not self.last, 'stream.record-order', 'after an EXTENT of its disk')
        granules = self._granules(copy, offset, length, wire.MAX_BASE)
        require(body.left() == (0 if flags & wire.BASE_ZERO else 8 * len(granules)), 'stream.record-body',
                '%d octets of digests for %d granules' % (body.left(), len(granules)))
        self._check_named(copy, granules, True)
        for granule in granules:
            copy.named[granule] = 1
            copy.put(granule, 0 if flags & wire.BASE_ZERO else body.take('Q')[0])
        copy.base_octets += length

    def _sums(self, body):
        cookie, count, flags = body.take('QII')
        sums = []
        for index in sorted(self.copies):
            disk, reserved, total = body.take('IIQ')
            require(disk == index and reserved == 0, 'stream.record-body', 'disk %d where %d is next, or a reserved field' % (disk, index))
            sums.append(total)
        body.done()
        require(count == len(sums), 'stream.record-body', '%d disks, there are %d' % (count, len(sums)))
        return cookie, flags, sums

    def read_sync(self, body):
        require(self.copies and not self.last, 'stream.record-order', 'no disk is copied, or the last one has come')
        cookie, flags, sums = self._sums(body)
        require(flags in wire.SYNC_FLAGS, 'stream.record-body', 'flags 0x%x' % flags)
        self.syncs[cookie] = sums
        self.last = bool(flags & wire.SYNC_LAST)
        for said, (index, copy) in zip(sums, sorted(self.copies.items())):
            require(said == copy.total, 'disk.sum', 'disk %d: %016x said, %016x found' % (index, said, copy.total))
            require(not self.last or all(copy.named), 'disk.counts', 'disk %d: %d granules were never named' %
                    (index, copy.granules - sum(copy.named)))

    def read_mirrored(self, body):
        number, = body.take('Q')
        body.done()
        require(number < self.mirrored and number not in self.written, 'stream.record-order',
                'piece %d, which does not wait for it' % number)
        self.written.add(number)

    def read_synced(self, body):
        require(self.copies, 'stream.record-order', 'no disk is copied')
        cookie, flags, sums = self._sums(body)
        require(flags == 0, 'stream.record-body', 'a reserved field is not zero')
        require(cookie in self.syncs and cookie not in self.answered, 'stream.record-order', 'it answers no DISK_SYNC')
        self.answered.add(cookie)
        require(sums == self.syncs[cookie], 'disk.sum', 'the target has other sums')
