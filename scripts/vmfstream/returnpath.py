# SPDX-License-Identifier: LGPL-2.1-or-later
"""The return paths: the main channel's, with answers and handover, and a page channel's, with nothing but ACKs.

A recorded return path has no header that says which it is. Its records do: one that holds anything but ACKs is the main one,
the others are told apart by the channel in their ACKs.
"""

import re
from collections import namedtuple

from . import wire
from .faults import Fault, require
from .image import Ack
from .records import Body

Verdict = namedtuple('Verdict', 'accepted features page_channels texts')
Ready = namedtuple('Ready', 'token flags static_sum device_sum sums place')
NOBODY = bytes(16)

_INCOMPATIBILITY = re.compile(r'[a-z][a-z0-9.-]*: .+: here .*, there .*')


class ReturnPath:
    def __init__(self, main, order):
        self.main = main
        self.order = order
        self.verdict = None
        self.ready = None
        self.answer = None        # READY or REFUSED
        self.outcome = None       # RUNNING or NEVER
        self.failed = False
        self.reported = False
        self.pongs = 0
        self.host = None
        self.state_directory = None   # TARGET_STATE's
        self.channel = None
        self.acks = []            # (sequence, entries, place)
        self.is_main = False

    def read(self, record):
        if record.kind not in wire.NAMES:
            return
        require(record.kind in wire.TO_SOURCE, 'stream.record-order', 'it belongs to the other direction')
        require(record.kind != wire.ANSWER, 'stream.record-order', 'it belongs to a question, on a channel of its own')
        require(self.verdict is None or self.verdict.accepted, 'stream.record-order', 'after a VERDICT that refused')
        body = Body(record.body, self.order)
        if record.kind != wire.ACK:
            self.is_main = True
        self._readers[record.kind](self, record, body)

    def _read_verdict(self, record, body):
        require(self.verdict is None and not self.acks and not self.answer, 'stream.record-order', 'not the first answer')
        verdict, count, features, page_channels, reserved = body.take('IIQII')
        require(verdict <= 1 and reserved == 0, 'stream.record-body', 'verdict %d, reserved %d' % (verdict, reserved))
        require(count <= wire.MAX_VERDICT_TEXTS, 'stream.record-body', '%d texts' % count)
        require(page_channels <= wire.MAX_CHANNELS, 'stream.record-body', '%d page channels' % page_channels)
        texts = []
        for _ in range(count):
            length, = body.take('H')
            require(1 <= length <= 1024, 'stream.record-body', 'a text of %d octets' % length)
            texts.append(body.text(length, 'a text'))
        body.done()
        self.verdict = Verdict(verdict == 0, features, page_channels, texts)
        require(verdict == 0 or texts, 'stream.record-body', 'refused without a text')
        for text in texts:
            require(_INCOMPATIBILITY.fullmatch(text), 'stream.record-body',
                    'a text that does not read "id: what: here X, there Y": %s' % text)
        self._verdict_and_static_data(verdict, features)

    def _read_target_host(self, record, body):
        require(self.main.static.version < 3 or self.verdict is not None, 'stream.record-order', 'ahead of VERDICT')
        require(self.host is None, 'stream.record-order', 'a second one')
        length, reserved, reserved_too = body.take('HHI')
        require(reserved == 0 and reserved_too == 0, 'stream.record-body', 'a reserved field is not zero')
        require(1 <= length <= 255, 'stream.record-body', 'a name of %d octets' % length)
        self.host = body.text(length, 'the name')
        body.done()

    def _read_target_state(self, record, body):
        require(self.main.static.version < 3 or self.verdict is not None, 'stream.record-order', 'ahead of VERDICT')
        require(self.state_directory is None, 'stream.record-order', 'a second one')
        require(self.answer is None, 'stream.record-order', 'after the answer to SWITCHOVER')
        self.state_directory, = body.take('16s')
        body.done()
        require(self.state_directory != NOBODY, 'stream.record-body', 'an id of zeros')

    def _verdict_and_static_data(self, verdict, features):
        static = self.main.static
        if static.version < 3:
            require(verdict == 1 or self.main.preflight, 'stream.record-order', 'version 2 has one only to refuse')
            return
        offered, required, _ = static.features or (0, 0, 0)
        require(not features & ~offered, 'stream.record-body', 'features in force that were not offered')
        if verdict == 0:
            require(not required & ~features, 'stream.record-body', 'accepted without a required feature')
            opened = self.main.page_channels.count if self.main.page_channels else 0
            require(opened <= self.verdict.page_channels, 'stream.record-body', '%d page channels at most, %d were opened' %
                    (self.verdict.page_channels, opened))

    def _read_ack(self, record, body):
        epoch, channel, sequence, count, reserved = body.take('IIQII')
        require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
        require(count <= wire.MAX_ACK_ENTRIES, 'stream.record-body', '%d entries' % count)
        entries = []
        for _ in range(count):
            block, reserved, chunk, total = body.take('IIQQ')
            require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
            entries.append(((block, chunk), total))
        body.done()
        channels = self.main.page_channels
        require(channels is not None, 'stream.record-order', 'without PAGE_CHANNELS')
        require(epoch == channels.epoch, 'stream.record-order', 'epoch %d in epoch %d' % (epoch, channels.epoch))
        require(channel < max(channels.count, 1), 'stream.record-body', 'channel %d of %d' % (channel, channels.count))
        require(self.channel in (None, channel), 'stream.record-order', 'of channel %d on the return path of channel %d' %
                (channel, self.channel or 0))
        self.channel = channel
        last = self.acks[-1][0] if self.acks else 0
        require(sequence >= last, 'stream.record-order', 'sequence %d after %d' % (sequence, last))
        self.main.features_used.append((wire.ACKS, record.place))
        self.acks.append((sequence, entries, record.place))

    def _read_ready(self, record, body):
        token, directory, flags, n_blocks, static_sum, device_sum = body.take('16s16sIIQQ')
        require(not flags & ~wire.READY_HASHED, 'stream.record-body', 'unknown flags 0x%x' % flags)
        require(body.left() == 8 * n_blocks, 'stream.record-body', '%d octets for %d sums' % (body.left(), n_blocks))
        sums = body.take('%dQ' % n_blocks)
        self._answer(record, token)
        self.ready = Ready(token, flags, static_sum, device_sum, sums, record.place)
        require(directory == (self.state_directory or NOBODY), 'stream.record-body', 'another state directory than TARGET_STATE named')

    def _read_refused(self, record, body):
        self._answer(record, _read_token_and_error(body))

    def _answer(self, record, token):
        require(self.main.switchover is not None, 'stream.record-order', 'without SWITCHOVER')
        require(self.answer is None and not self.failed, 'stream.record-order', 'SWITCHOVER is answered already')
        self.answer = record.kind
        self._check_token(token)

    def _read_running(self, record, body):
        token, = body.take('16s')
        body.done()
        self._outcome(record, token)

    def _read_never(self, record, body):
        self._outcome(record, _read_token_and_error(body))

    def _outcome(self, record, token):
        require(self.answer == wire.READY, 'stream.record-order', 'without READY')
        require(self.main.decision == wire.RUN, 'stream.record-order', 'without RUN')
        require(self.outcome is None, 'stream.record-order', 'RUN is answered already')
        self.outcome = record.kind
        self._check_token(token)

    def _read_report(self, record, body):
        token, flags, reserved, _gap = body.take('16sIIQ')
        body.done()
        require(not flags & ~wire.REPORT_FLAGS and reserved == 0, 'stream.record-body', 'a reserved field or flag is not zero')
        require(self.outcome == wire.RUNNING and not self.reported, 'stream.record-order', 'without RUNNING, or twice')
        self.reported = True
        self.main.features_used.append((wire.REPORT_FEATURE, record.place))
        self._check_token(token)

    def _read_pong(self, record, body):
        cookie, = body.take('Q')
        body.done()
        self.pongs += 1
        require(self.pongs <= len(self.main.pings), 'stream.record-order', 'more PONGs than PINGs')
        sent = self.main.pings[self.pongs - 1]
        require(cookie == sent, 'stream.record-body', 'cookie %016x came back as %016x' % (sent, cookie))

    def _read_disk_synced(self, record, body):
        require(self.answer is None, 'stream.record-order', 'after the answer to SWITCHOVER')
        self.main.disks.read_synced(body)

    def _read_mirrored(self, record, body):
        require(self.answer is None, 'stream.record-order', 'after the answer to SWITCHOVER')
        self.main.disks.read_mirrored(body)

    def _read_failed(self, record, body):
        _read_error(body)
        require(self.answer is None and not self.failed, 'stream.record-order', 'after the answer to SWITCHOVER')
        self.failed = True

    def _check_token(self, token):
        require(token == self.main.switchover.token, 'stream.record-body', 'a token that is not SWITCHOVER\'s')

    _readers = {wire.VERDICT: _read_verdict, wire.ACK: _read_ack, wire.READY: _read_ready, wire.REFUSED: _read_refused,
                wire.RUNNING: _read_running, wire.NEVER: _read_never, wire.REPORT: _read_report, wire.PONG: _read_pong,
                wire.FAILED: _read_failed, wire.TARGET_HOST: _read_target_host, wire.TARGET_STATE: _read_target_state,
                wire.DISK_SYNCED: _read_disk_synced, wire.MIRRORED: _read_mirrored}


def _read_token_and_error(body):
    token, = body.take('16s')
    _read_error(body)
    return token


def _read_error(body):
    id_length, text_length, reserved = body.take('HHI')
    require(reserved == 0, 'stream.record-body', 'a reserved field is not zero')
    body.text(id_length, 'the id')
    body.text(text_length, 'the text')
    body.done()


def check_acks(path, image, blocks, records, check_sums, report):
    """Compares the ACKs of one channel with the records that it carried; @records is None where that is not known."""
    touched = image.chunks_touched(path.channel)
    below = 0
    for sequence, entries, place in path.acks:
        try:
            _check_ack(sequence, entries, touched, below, blocks, records)
        except Fault as fault:
            report.fault(place, fault)
        if check_sums:
            for key, total in entries:
                image.add_ack(key, path.channel, Ack(sequence, total, place))
        below = sequence
    if check_sums:
        image.acked_channels.add(path.channel)


def _check_ack(sequence, entries, touched, below, blocks, records):
    keys = {key for key, _ in entries}
    for block, chunk in sorted(keys):
        require(block < len(blocks) and chunk * wire.CHUNK_PAGES * wire.PAGE_SIZE < blocks[block].size, 'ram.range',
                'chunk %d of block %d' % (chunk, block))
    require(len(set(entries)) == len(keys), 'stream.record-body', 'a chunk twice, with different sums')
    if records is None:
        return
    require(sequence <= records, 'stream.record-order', 'sequence %d of a channel with %d records' % (sequence, records))
    expected = {touched[n] for n in range(below, sequence) if n in touched}
    require(expected == keys, 'stream.record-body', 'the entries are not the chunks that records %d to %d touched' %
            (below, sequence - 1))
