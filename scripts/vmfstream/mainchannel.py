# SPDX-License-Identifier: LGPL-2.1-or-later
"""The main channel: the order of its records, and the bodies that are neither static data, pages nor sections.

Every record comes by one method, read(), which first asks whether the record may stand here and then what it says. A record
that breaks a rule is left out, and the reading goes on, so that one run shows as much as can be told.
"""

from collections import namedtuple

from . import wire
from .disks import Disks
from .faults import Fault, require
from .pages import PageChannel, read_hint
from .records import Body
from .sections import Sections
from .static import StaticData

PageChannels = namedtuple('PageChannels', 'session count epoch')
BlockSum = namedtuple('BlockSum', 'data zero hole sum')
Switchover = namedtuple('Switchover', 'token flags static_sum device_sum blocks place')


class MainChannel:
    def __init__(self, options, order, image, report):
        self.options = options
        self.order = order
        self.image = image
        self.report = report
        self.static = StaticData(options.version)
        self.static_end = None         # offset where static data ended
        self.explicit_end = False
        self.sections = None
        self.disks = Disks(())
        self.page_channels = None
        self.pages = None              # the PageChannel of a main channel that carries pages itself
        self.switchover = None
        self.decision = None           # RUN or ABORT
        self.preflight = False
        self.preflight_open = False    # PREFLIGHT was the last record
        self.pings = []
        self.features_used = []        # (feature, place) of what is allowed only if the feature is in force
        self.ended = False
        self.unknown_records = 0

    def read(self, record):
        if record.kind not in wire.NAMES:
            self.unknown_records += 1
            return
        require(record.kind not in wire.TO_SOURCE, 'stream.record-order', 'it belongs on the return path')
        require(record.kind not in wire.ONLY_IN_IMAGES, 'stream.record-order', 'it belongs in an image')
        require(not self.options.one_way or record.kind in wire.ONE_WAY, 'stream.record-order', 'in a one-way stream')
        require(record.kind != wire.INQUIRE, 'stream.record-order', 'it is asked on a channel of its own')
        if self.preflight_open:
            require(record.kind == wire.END, 'stream.record-order', 'END has to follow PREFLIGHT')
        body = Body(record.body, self.order)
        if record.kind in wire.STATIC:
            require(self.static_end is None, 'static.late', 'static data after its end')
            self.static.read(record.kind, body)
        elif record.kind == wire.STATIC_DATA_END:
            body.done()
            self._explicit_end(record)
        elif self._ends_static_data(record):
            self._readers[record.kind](self, record, body)
        else:
            self._read_ahead(record, body)

    # Static data

    def _explicit_end(self, record):
        require(self.static_end is None, 'static.double-end', 'static data has ended at offset %d' % (self.static_end or 0))
        self.explicit_end = True
        self._end_static_data(record.end, record.place)

    def _ends_static_data(self, record):
        """Whether static data is over with this record, which is neither static data nor its end."""
        if self.static_end is not None:
            return True
        if self.options.version >= 3:
            self.report.add(record.place, 'static.missing-end', 'before STATIC_DATA_END')
        elif record.kind not in wire.INFERS_STATIC_END:
            return False
        self._end_static_data(record.offset, record.place)
        return True

    def _end_static_data(self, offset, place):
        self.static_end = offset
        self.sections = Sections(self.static.sections or [], self.order)
        self.disks = Disks(self.static.disks, self.static.has_bases(), self.static.mirrors() and not self.options.one_way)
        copied = self.static.copies_without_feature()
        if copied:
            self.report.add(place, 'stream.record-body', 'disk %s is copied, the feature is not required' % copied)
        if self.static.has_bases() and not self.disks.copies:
            self.report.add(place, 'stream.record-body', 'bases, though no disk is copied')
        for name in self.static.missing():
            self.report.add(place, 'stream.record-order', 'static data ends without %s' % name)

    def _read_ahead(self, record, body):
        """Version 2 ahead of the first record of its list: HINT and ROUND end nothing, nor does PING."""
        if record.kind == wire.HINT:
            read_hint(body)
        elif record.kind in (wire.ROUND, wire.PING):
            self._readers[record.kind](self, record, body)
        else:
            raise Fault('stream.record-order', 'before the end of static data')

    # The rest

    def _before_switchover(self):
        require(self.switchover is None, 'stream.record-order', 'after SWITCHOVER')
        require(self.decision is None, 'stream.record-order', 'after ABORT')

    def _read_preflight(self, record, body):
        body.done()
        require(self.page_channels is None and self.switchover is None and self.decision is None and
                not any(s.parts for s in self.sections.sections), 'stream.record-order', 'after the first page or state')
        self.preflight = self.preflight_open = True

    def _read_page_channels(self, record, body):
        session, count, epoch = body.take('16sII')
        body.done()
        self._before_switchover()
        require(self.page_channels is None, 'stream.record-order', 'a second one in its epoch')
        self.page_channels = PageChannels(session, count, epoch)
        if count == 0:
            self.pages = PageChannel(0, epoch, self.static.blocks, self.image, self.features_used)
        require(count <= wire.MAX_CHANNELS, 'stream.record-body', '%d page channels' % count)
        require(epoch == 1, 'stream.record-body', 'epoch %d on a first connection' % epoch)
        require(count == 0 or not self.options.one_way, 'stream.record-body', '%d page channels in a one-way stream' % count)

    def _read_page_record(self, record, body):
        require(self.page_channels is not None, 'stream.record-order', 'before PAGE_CHANNELS')
        self._before_switchover()
        require(self.pages is not None, 'stream.record-order', 'on the main channel although there are page channels')
        self.pages.read(record, body)

    def _read_section(self, record, body):
        self._before_switchover()
        self.sections.read(body, record.place)

    def _read_round(self, record, body):
        _round, reserved, _pending = body.take('IIQ')
        body.done()
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        self._before_switchover()

    def _read_extent(self, record, body):
        self._before_switchover()
        self.disks.read_extent(body)

    def _read_base(self, record, body):
        self._before_switchover()
        self.disks.read_base(body)

    def _read_disk_sync(self, record, body):
        self._before_switchover()
        self.disks.read_sync(body)

    def _read_switchover(self, record, body):
        self._before_switchover()
        token, flags, n_blocks, static_sum, device_sum = body.take('16sIIQQ')
        require(not flags & ~3, 'stream.record-body', 'unknown flags 0x%x' % flags)
        blocks = []
        for n in range(n_blocks):
            block, reserved, data, zero, hole, total = body.take('IIQQQQ')
            require(block == n and reserved == 0, 'stream.record-body', 'block %d where %d is next, or a reserved field is not '
                    'zero' % (block, n))
            blocks.append(BlockSum(data, zero, hole, total))
        body.done()
        self.switchover = Switchover(token, flags, static_sum, device_sum, blocks, record.place)
        require(n_blocks == len(self.static.blocks), 'stream.record-body', '%d blocks, there are %d' %
                (n_blocks, len(self.static.blocks)))
        if flags & wire.SWITCHOVER_AUDIT_BEFORE:
            self.features_used.append((wire.AUDIT_BEFORE, record.place))
        self._complete_for_switchover(record.place)

    def _complete_for_switchover(self, place):
        incomplete = self.sections.incomplete()
        if incomplete:
            self.report.add(place, 'section', 'not complete: %s' % ', '.join(incomplete))
        if self.disks.copies and not self.disks.last:
            self.report.add(place, 'stream.record-order', 'ahead of the last DISK_SYNC')
        if self.page_channels is None:
            self.report.add(place, 'stream.record-order', 'without PAGE_CHANNELS')
        elif self.pages is not None and not self.pages.end_mark:
            self.report.add(place, 'stream.record-order', 'ahead of END_MARK')

    def _read_decision(self, record, body):
        token, = body.take('16s')
        body.done()
        require(self.decision is None, 'stream.record-order', 'after %s' % wire.type_name(self.decision or 0))
        require(self.switchover is not None or record.kind == wire.ABORT, 'stream.record-order', 'before SWITCHOVER')
        self.decision = record.kind
        self._check_token(token)

    def _read_query(self, record, body):
        token, = body.take('16s')
        body.done()
        require(self.switchover is not None, 'stream.record-order', 'before SWITCHOVER')
        self._check_token(token)

    def _check_token(self, token):
        require(self.switchover is None or token == self.switchover.token, 'stream.record-body',
                'a token that is not SWITCHOVER\'s')

    def _read_ping(self, record, body):
        cookie, = body.take('Q')
        body.done()
        self.pings.append(cookie)

    def _read_end(self, record, body):
        body.done()
        self.preflight_open = False
        self.ended = True
        require(self.preflight or self.switchover or self.decision, 'channel.cut',
                'without SWITCHOVER, PREFLIGHT or ABORT')

    _readers = {wire.PREFLIGHT: _read_preflight, wire.PAGE_CHANNELS: _read_page_channels, wire.PAGES: _read_page_record,
                wire.HINT: _read_page_record, wire.END_MARK: _read_page_record, wire.SECTION: _read_section,
                wire.EXTENT: _read_extent, wire.BASE: _read_base, wire.DISK_SYNC: _read_disk_sync,
                wire.ROUND: _read_round, wire.SWITCHOVER: _read_switchover, wire.RUN: _read_decision,
                wire.ABORT: _read_decision, wire.QUERY: _read_query, wire.PING: _read_ping, wire.END: _read_end}
