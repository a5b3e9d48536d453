# SPDX-License-Identifier: LGPL-2.1-or-later
"""A recorded stream as a whole: reads its files and checks what only all of them together can say."""

import mmap

from . import bitmaps, wire
from .faults import Fault, Place, Report, require
from .image import Image
from .mainchannel import MainChannel
from .pages import PageChannel
from .records import Body, read_image_header, read_machine_header, read_preamble, walk
from .returnpath import ReturnPath, check_acks
from .hashes import xxh3_64


def map_file(path):
    """The file's octets, without reading them ahead."""
    with open(path, 'rb') as file:
        try:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (ValueError, OSError):   # empty, or not a regular file
            return memoryview(file.read())


class Verifier:
    def __init__(self, devices=()):
        self.report = Report()
        self.image = Image()
        self.devices = frozenset(devices)
        self.options = None
        self.machine = None
        self.main = None
        self.channels = {}
        self.returns = []
        self.trailing = 0
        self.sums_checked = False
        self.bitmaps = None   # of the section dirty-bitmaps
        self.octets = None    # of the main channel

    def verify(self, main, page_channels=(), returns=()):
        """Each argument is a (name, octets) pair or a list of such."""
        try:
            self._read_main(*main)
        except Fault as fault:
            self.report.fault(getattr(fault, 'place', Place(main[0], 0, 'image header')), fault)
        if self.main is not None:
            for file in page_channels:
                self._guarded(self._read_page_channel, 'preamble', *file)
            for file in returns:
                self._guarded(self._read_return, 'record', *file)
            self._check_whole()
        return self.report

    # Files

    def _guarded(self, read, what, file, octets):
        try:
            read(file, octets)
        except Fault as fault:
            self.report.fault(getattr(fault, 'place', Place(file, 0, what)), fault)

    def _read_main(self, file, octets):
        self.octets = octets
        self.options = read_image_header(octets)
        self.order = wire.order_mark(self.options.big_endian)
        self.main = MainChannel(self.options, self.order, self.image, self.report)
        try:
            self.machine = read_machine_header(octets[wire.IMAGE_HEADER_SIZE:], self.order)
        except Fault as fault:
            fault.place = Place(file, wire.IMAGE_HEADER_SIZE, 'machine header')
            if fault.fatal:
                raise
            self.report.fault(fault.place, fault)
        end = wire.IMAGE_HEADER_SIZE + wire.MACHINE_HEADER_SIZE
        end = self._read_records(file, octets, end, self.main.read, lambda: self.main.ended)
        if not self.main.ended:
            raise self._cut(file, end, 'the stream ends without END')
        self.trailing = len(octets) - end

    @staticmethod
    def _cut(file, offset, message):
        fault = Fault('channel.cut', message, fatal=True)
        fault.place = Place(file, offset, 'end of file')
        return fault

    def _read_records(self, file, octets, at, read, ended):
        for record in walk(octets, at, self.order, file, self.report):
            try:
                read(record)
            except Fault as fault:
                self.report.fault(record.place, fault)
            at = record.end
            if ended():
                break
        return at

    def _read_page_channel(self, file, octets):
        preamble = read_preamble(octets)
        channels = self.main.page_channels
        require(channels is not None and channels.count > 0, 'stream.record-order', 'the main channel announces no page channels')
        require(preamble.options == self.options, 'channel.handshake', 'version or options are not the main channel\'s')
        require(preamble.session == channels.session, 'channel.handshake', 'another session')
        require(preamble.epoch == channels.epoch, 'channel.handshake', 'epoch %d in epoch %d' % (preamble.epoch, channels.epoch))
        require(preamble.channel < channels.count, 'channel.handshake', 'channel %d of %d' % (preamble.channel, channels.count))
        require(preamble.channel not in self.channels, 'channel.handshake', 'channel %d twice' % preamble.channel)
        channel = PageChannel(preamble.channel, preamble.epoch, self.main.static.blocks, self.image, self.main.features_used)
        self.channels[preamble.channel] = channel
        ended = []

        def read(record):
            if record.kind not in wire.NAMES:
                return
            require(record.kind in wire.ON_PAGE_CHANNEL, 'stream.record-order', 'on a page channel')
            if record.kind == wire.END:
                Body(record.body, self.order).done()
                ended.append(record)
                require(channel.end_mark, 'stream.record-order', 'without END_MARK')
            else:
                channel.read(record, Body(record.body, self.order))

        end = self._read_records(file, octets, wire.PREAMBLE_SIZE, read, lambda: ended)
        if not channel.end_mark and not ended:
            raise self._cut(file, end, 'the channel ends without END_MARK')

    def _read_return(self, file, octets):
        path = ReturnPath(self.main, self.order)
        self.returns.append((file, path))
        self._read_records(file, octets, 0, path.read, lambda: False)

    # The whole

    def _check_whole(self):
        features = self._features_in_force()
        self._check_features(features)
        carriers = self._carriers()
        for file, path in self.returns:
            self._check_return(file, path, carriers, features)
        complete = len(carriers) == max(self.main.page_channels.count, 1) if self.main.page_channels else True
        sums = self.image.block_sums(self.report)
        self._check_devices()
        self._check_bitmaps()
        if self.main.switchover is not None:
            self._check_switchover(features, complete, sums)
            for _, path in self.returns:
                if path.ready is not None:
                    self._check_ready(path.ready, features)

    def _features_in_force(self):
        if self.options.version < 3:
            return wire.SUMS | (0 if self.options.one_way else wire.ACKS)
        for _, path in self.returns:
            if path.verdict is not None:
                return path.verdict.features
        offered, required, _ = self.main.static.features or (0, 0, 0)
        return (required if self.options.one_way else offered) & wire.FEATURES_KNOWN

    def _check_features(self, features):
        names = {wire.ACKS: 'acks', wire.HINTS: 'hints', wire.AUDIT_BEFORE: 'audit before', wire.REPORT_FEATURE: 'report'}
        for feature, place in self.main.features_used:
            if not features & feature:
                self.report.add(place, 'stream.record-order', 'feature %s is not in force' % names[feature])

    def _carriers(self):
        """Channels that were recorded, by number."""
        if self.main.pages is not None:
            return {0: self.main.pages}
        return self.channels

    def _check_return(self, file, path, carriers, features):
        if path.is_main and path.acks and self.main.pages is None:
            self.report.add(path.acks[0][2], 'stream.record-order', 'of a page channel on the main return path')
        if path.channel is None:
            return
        carrier = carriers.get(path.channel)
        check_acks(path, self.image, self.main.static.blocks, carrier.records if carrier else None,
                   features & wire.SUMS and carrier is not None, self.report)
        last = path.acks[-1]
        answered = any(p.answer == wire.READY for _, p in self.returns)
        if carrier and carrier.end_mark and answered and last[0] != carrier.records:
            self.report.add(last[2], 'ram.counts', 'READY was sent, but %d of %d records of channel %d are acknowledged' %
                            (last[0], carrier.records, path.channel))

    def _check_devices(self):
        for section, fault in self.main.sections.check_devices(self.devices) if self.main.sections else ():
            self.report.add(section.place, fault.id, '%s/%d: %s' %
                            (section.entry.name, section.entry.instance, fault.message))

    def _check_bitmaps(self):
        section = bitmaps.section_of(self.main.sections)
        try:
            self.bitmaps = bitmaps.read_section(section) if section else None
        except Fault as fault:
            self.report.fault(section.place, fault)

    def _check_switchover(self, features, complete, sums):
        switchover = self.main.switchover
        blocks = self.main.static.blocks
        if not complete:
            self.report.note('%d page channels were opened, %d are given: counts and sums of RAM are not checked' %
                             (self.main.page_channels.count, len(self.channels)))
        for block, said in zip(blocks, switchover.blocks):
            self._check_counts(switchover.place, block, said, complete)
        if not features & wire.SUMS:
            self.report.note('sums are not in force: none is checked')
            return
        if complete:
            self.sums_checked = True
            for block, said in zip(blocks, switchover.blocks):
                self._check_block_sum(switchover.place, block, said.sum, sums.get(block.index, 0))
        self._check_sum(switchover.place, 'static.sum', 'static sum', switchover.static_sum,
                        xxh3_64(self.octets[:self.main.static_end]))
        self._check_sum(switchover.place, 'device-state.sum', 'device sum', switchover.device_sum,
                        self.main.sections.device_sum())

    def _check_counts(self, place, block, said, complete):
        pages = block.size // wire.PAGE_SIZE
        if said.data + said.zero + said.hole != pages:
            self.report.add(place, 'ram.counts', 'block %s: %d data, %d zero and %d hole pages of %d' %
                            (block.name, said.data, said.zero, said.hole, pages))
        if block.rom and said.hole:
            self.report.add(place, 'ram.counts', 'block %s is ROM and has %d holes' % (block.name, said.hole))
        data, zero, _ = self.image.first_pass_counts(block)
        if complete and (data, zero) != (said.data, said.zero):
            self.report.add(place, 'ram.counts', 'block %s: %d data and %d zero pages said, %d and %d came' %
                            (block.name, said.data, said.zero, data, zero))

    def _check_block_sum(self, place, block, said, found):
        if found is None:
            self.sums_checked = False
            self.report.note('block %s: the order of the page channels is not known, its sum is not checked' % block.name)
        else:
            self._check_sum(place, 'ram.sum', 'sum of block %s' % block.name, said, found)

    def _check_sum(self, place, id, what, said, found):
        if said != found:
            self.report.add(place, id, '%s: %016x said, %016x found' % (what, said, found))

    def _check_ready(self, ready, features):
        switchover = self.main.switchover
        if switchover.flags & wire.SWITCHOVER_AUDIT_BEFORE and not ready.flags & wire.READY_HASHED:
            self.report.add(ready.place, 'stream.record-body', 'an audit before RUN was asked for, memory was not hashed')
        if len(ready.sums) != len(switchover.blocks):
            self.report.add(ready.place, 'stream.record-body', '%d blocks, there are %d' %
                            (len(ready.sums), len(switchover.blocks)))
        if not features & wire.SUMS:
            return
        for block, said, sent in zip(self.main.static.blocks, ready.sums, switchover.blocks):
            self._check_sum(ready.place, 'ram.sum', 'sum of block %s' % block.name, said, sent.sum)
        self._check_sum(ready.place, 'static.sum', 'static sum', ready.static_sum, switchover.static_sum)
        self._check_sum(ready.place, 'device-state.sum', 'device sum', ready.device_sum, switchover.device_sum)
