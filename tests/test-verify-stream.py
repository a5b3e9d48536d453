#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader accepts what is right and names what is not.

Each planted fault is a golden stream with one part replaced or one octet changed; the first thing that the reader finds has to
be that fault, by its stable id. Faults are planted in both versions and both byte orders unless they exist in one version only.
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfstream import golden, hashes, wire, xxh3  # noqa: E402
from vmfstream.crc32c import crc32c  # noqa: E402
from vmfstream.golden import FILES, TOKEN, page, plan, write  # noqa: E402
from vmfstream.verify import Verifier  # noqa: E402
from vmfstream.writer import Channel, Memory, image_header, preamble, record  # noqa: E402

results = {True: 0, False: 0}
STATE_DIRECTORY = bytes(range(0x30, 0x40))


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


def findings(main, page_channels=(), returns=(), devices=()):
    verifier = Verifier(devices)
    named = lambda files, what: [('%s %d' % (what, n), memoryview(f)) for n, f in enumerate(files)]  # noqa: E731
    report = verifier.verify(('main', memoryview(main)), named(page_channels, 'channel'), named(returns, 'return'))
    return report, verifier


def expect(name, id, main, **files):
    """@id is what the first finding has to be; None: there is none."""
    report, _ = findings(main, **files)
    found = report.findings[0].id if report.findings else None
    check(name, found == id, 'expected %s, found %s' % (id, report.findings[:3]))


# Planting

def replaced(**parts):
    """The plan of a golden stream with parts replaced; an underscore stands for a space, None for nothing at all."""
    result = plan()
    for name, part in parts.items():
        name = name.replace('_', ' ')
        assert name in result, name
        result[name] = part or (lambda s: None)
    return result


def ahead(name, part):
    """A golden stream with something ahead of a part."""
    original = plan()[name]
    return replaced(**{name.replace(' ', '_'): lambda s: (part(s), original(s))})


def behind(name, part):
    original = plan()[name]
    return replaced(**{name.replace(' ', '_'): lambda s: (original(s), part(s))})


def streams(versions=(2, 3)):
    for version in versions:
        for big_endian in (False, True):
            yield version, big_endian, 'v%d-%s' % (version, 'be' if big_endian else 'le')


def plant(name, id, parts, versions=(2, 3)):
    for version, big_endian, label in streams(versions):
        expect('%s, %s' % (name, label), id, write(parts, version, big_endian).octets())


def surgery(name, id, piece, change, versions=(2, 3), nth=0):
    """Replaces the octets of the @nth piece called @piece by what @change(octets, order) makes of them."""
    for version, big_endian, label in streams(versions):
        stream = golden.golden_stream(version, big_endian)
        target = [p for p in stream.pieces if p.name == piece][nth]
        target.octets = bytes(change(bytearray(target.octets), stream.order))
        expect('%s, %s' % (name, label), id, stream.octets())


def flip(at):
    def change(octets, order):
        octets[at] ^= 1
        return octets
    return change


def resealed(at, format, value):
    """Writes @value into a record at offset @at of its body and makes the CRC right again."""
    def change(octets, order):
        struct.pack_into(order + format, octets, wire.RECORD_HEADER_SIZE + at, value)
        checked, = struct.unpack_from(order + 'I', octets, 8)
        crc = crc32c(bytes(octets[16:16 + checked]), crc32c(bytes(octets[:12])))
        struct.pack_into(order + 'I', octets, 12, crc)
        return octets
    return change


def reheaded(octets, at, value, order, crc_at):
    """The same for a header that ends in its CRC."""
    octets[at:at + len(value)] = value
    struct.pack_into(order + 'I', octets, crc_at, crc32c(bytes(octets[:crc_at])))
    return octets


# Cases

def test_golden_files():
    for name, (version, big_endian) in FILES.items():
        path = os.path.join(ROOT, 'tests', 'golden', name)
        with open(path, 'rb') as file:
            octets = file.read()
        check('%s is what make-golden writes' % name, octets == golden.golden_stream(version, big_endian).octets())
        report, verifier = findings(octets, devices=['counter'])
        check('%s is clean' % name, not report.findings and not report.notes, report.findings)
        check('%s: sums' % name, verifier.sums_checked)
        check('%s: counter is a device' % name, [s.is_device for s in verifier.main.sections.sections] == [True, False])


def test_headers():
    for version in (0, 1, 4):
        surgery('version %d' % version, 'stream.version', 'image header',
                lambda o, order, v=version: image_header(v, order == '>', True))
    surgery('version 1 with another layout of the CRC', 'stream.version', 'image header',
            lambda o, order: flip(20)(bytearray(image_header(1, order == '>', True)), order))
    surgery('marker', 'stream.magic', 'image header', flip(7))
    surgery('id', 'stream.magic', 'image header', flip(8))
    surgery('CRC of the image header', 'stream.crc', 'image header', flip(23))
    surgery('unknown option', 'stream.record-body', 'image header',
            lambda o, order: reheaded(o, 16, bytes([0, o[17] | 4]), '>', 20))
    surgery('reserved octets of the image header', 'stream.record-body', 'image header',
            lambda o, order: reheaded(o, 18, b'\0\1', '>', 20))
    surgery('CRC of the machine header', 'stream.crc', 'machine header', flip(3))
    surgery('reserved octets of the machine header', 'stream.record-body', 'machine header',
            lambda o, order: reheaded(o, 56, b'\0\1\0\0', order, 60))
    surgery('page size', 'stream.record-body', 'machine header',
            lambda o, order: reheaded(o, 32, struct.pack(order + 'I', 8192), order, 60))
    surgery('architecture without a zero', 'stream.record-body', 'machine header',
            lambda o, order: reheaded(o, 0, b'x' * 32, order, 60))
    surgery('something after the zeros of the architecture', 'stream.record-body', 'machine header',
            lambda o, order: reheaded(o, 31, b'x', order, 60))


def test_framing():
    surgery('CRC of metadata', 'stream.crc', 'RAM_BLOCK', flip(16))
    surgery('CRC of a record header', 'stream.crc', 'SECTION', flip(0))
    surgery('CRC of the bit sets', 'stream.crc', 'PAGES', flip(16 + 40))
    surgery('padding', 'stream.record-body', 'PROPERTIES', flip(-1))
    surgery('oversized', 'stream.record-length', 'SECTION',
            lambda o, order: struct.pack(order + 'II', wire.SECTION, (4 << 20) + 1) + bytes(o[8:]))
    surgery('checked beyond the length', 'stream.record-length', 'ROUND',
            lambda o, order: struct.pack(order + 'III', wire.ROUND, 16, 24) + bytes(o[12:]))
    surgery('a body that is checked in part', 'stream.record-length', 'ROUND',
            lambda o, order: record(order, wire.ROUND, bytes(o[16:32]), checked=8))
    surgery('a payload that is checked', 'stream.record-length', 'PAGES',
            lambda o, order: record(order, wire.PAGES, bytes(o[16:]), checked=len(o) - 16))
    surgery('too short for its fields', 'stream.record-body', 'ROUND', lambda o, order: record(order, wire.ROUND, bytes(8)))
    surgery('longer than its fields', 'stream.record-body', 'ROUND', lambda o, order: record(order, wire.ROUND, bytes(24)))
    plant('unknown mandatory record', 'stream.record-unknown', ahead('pages', lambda s: s.add(0x77, b'new')))
    plant('unknown mandatory record in static data', 'stream.record-unknown', ahead('sections', lambda s: s.add(0x77)))
    plant('END with bit 31', None, ahead('pages', lambda s: s.add(wire.END | wire.OPTIONAL)))
    plant('unknown optional record', None, ahead('pages', lambda s: s.add(0x80000077, b'new')))
    plant('unknown optional record in static data', None, ahead('sections', lambda s: s.add(0x80000077, b'new')))
    plant('unknown optional record, partly checked', None, ahead('pages', lambda s: s.add(0x80000077, b'newer', checked=3)))


def test_truncated():
    for version, big_endian, label in streams():
        stream = golden.golden_stream(version, big_endian)
        octets, at = stream.octets(), 0
        for piece in stream.pieces:
            cuts = {0, 1, 8, 15, 16, 17, len(piece.octets) // 2, len(piece.octets) - 1}
            for cut in sorted(at + c for c in cuts if c < len(piece.octets)):
                report, _ = findings(octets[:cut])
                check('cut at %d in %s, %s' % (cut, piece.name, label),
                      'channel.cut' in [f.id for f in report.findings], report.findings)
            at += len(piece.octets)


def test_static_data():
    plant('no STATIC_DATA_END', 'static.missing-end', replaced(static_end=None, switchover=lambda s: s.switchover(TOKEN, 0, 0)),
          versions=[3])
    plant('no STATIC_DATA_END in version 2', None,
          replaced(static_end=lambda s: setattr(s, 'static_octets', s.octets())), versions=[2])
    plant('an explicit STATIC_DATA_END in version 2', None,
          replaced(static_end=lambda s: (s.add(wire.STATIC_DATA_END), setattr(s, 'static_octets', s.octets()))), versions=[2])
    plant('STATIC_DATA_END twice', 'static.double-end', ahead('page channels', lambda s: s.add(wire.STATIC_DATA_END)), versions=[3])
    plant('STATIC_DATA_END after it was inferred', 'static.double-end', ahead('pages', lambda s: s.add(wire.STATIC_DATA_END)))
    plant('static data after its end', 'static.late', ahead('pages', lambda s: s.host('late')))
    plant('a RAM block after the pages', 'static.late', ahead('state', lambda s: s.ram_block('late', 4096, 0)))
    plant('FEATURES twice', 'static.duplicate', ahead('host', lambda s: s.features(2, 2)), versions=[3])
    plant('FEATURES in version 2', 'stream.record-order', ahead('host', lambda s: s.features(2, 2)), versions=[2])
    plant('no FEATURES', 'stream.record-order', replaced(features=None), versions=[3])
    plant('no SECTIONS', 'stream.record-order', replaced(sections=None))
    plant('HOST twice', 'static.duplicate', ahead('host', lambda s: s.host('another')))
    plant('required feature not offered', 'stream.record-body', replaced(features=lambda s: s.features(2, 6)), versions=[3])
    plant('65 page channels wanted', 'stream.record-body', replaced(features=lambda s: s.features(2, 2, 65)), versions=[3])
    plant('a RAM block twice', 'static.duplicate', behind('blocks', lambda s: s.ram_block('rom', 4096, 0)))
    plant('a section twice', 'static.duplicate', replaced(sections=lambda s: s.sections((('a', 0, 1), ('a', 0, 2)))))
    plant('a property twice', 'static.duplicate', replaced(properties=lambda s: s.properties((('a', '1'), ('a', '1')))))
    plant('index of a RAM block', 'stream.record-body', behind('blocks', lambda s: s.ram_block('more', 4096, 0, index=4)))
    plant('size of a RAM block', 'stream.record-body', behind('blocks', lambda s: s.ram_block('more', 4097, 0)))
    plant('a RAM block of nothing', 'stream.record-body', behind('blocks', lambda s: s.ram_block('more', 0, 0)))
    plant('a RAM block beyond 2^48', 'stream.record-body', behind('blocks', lambda s: s.ram_block('more', (1 << 48) + 4096, 0)))
    plant('a RAM block without a name', 'stream.record-body', behind('blocks', lambda s: s.ram_block('', 4096, 0)))
    plant('a name that is not ASCII', 'stream.record-body', behind('blocks', lambda s: s.ram_block('a\x1bb', 4096, 0)))
    plant('a property that is not text', 'stream.record-body', replaced(properties=lambda s: s.properties((('a', '\0'),))))
    plant('reserved field of RAM_BLOCK', 'stream.record-body', behind('blocks', lambda s: s.add(
        wire.RAM_BLOCK, s.packed('IIQQIHH', 3, 0, 4096, 0, 4096, 1, 7) + b'x')))
    plant('257 RAM blocks', 'stream.record-body', behind('blocks', lambda s: [
        s.ram_block('b%d' % n, 4096, 0) for n in range(3, 257)]))
    surgery('n of properties', 'stream.record-body', 'PROPERTIES', resealed(0, 'I', 257))
    surgery('length of a property', 'stream.record-body', 'PROPERTIES', resealed(10, 'H', 255))


def pages_like(**how):
    return behind('pages', lambda s: s.pages(s.memory, **how))


def raw_pages(block=0, flags=0, sequence=5, chunk=0, epoch=1, n_data=0, data=0, zero=1, payload=b''):
    return behind('pages', lambda s: (s.add(wire.PAGES, s.packed('IIQQII', block, flags, sequence, chunk, epoch, n_data) +
                                            s.packed('16Q', data, *[0] * 7, zero, *[0] * 7) + payload),
                                      setattr(s, 'sequence', s.sequence + 1)))


def test_pages():
    plant('a block that is not there', 'ram.range', raw_pages(block=3))
    plant('a chunk beyond the end', 'ram.range', raw_pages(chunk=2))
    plant('a chunk far beyond the end', 'ram.range', raw_pages(chunk=(1 << 64) - 1))
    plant('a bit beyond the end of the block', 'ram.range', raw_pages(chunk=1, zero=8))
    plant('a data bit beyond the end of the block', 'ram.range', raw_pages(block=1, data=1 << 8, n_data=1, payload=page(0)))
    plant('a page that is data and zero', 'ram.range', raw_pages(data=3, zero=1, n_data=2, payload=page(0) * 2))
    plant('no page at all', 'ram.range', raw_pages(zero=0))
    plant('n_data too small', 'stream.record-body', raw_pages(data=3, zero=0, n_data=1, payload=page(0)))
    plant('n_data too large', 'stream.record-body', raw_pages(data=1, zero=0, n_data=2, payload=page(0) * 2))
    plant('payload too short', 'stream.record-body', raw_pages(data=3, zero=0, n_data=2, payload=page(0)))
    plant('129 pages of data', 'stream.record-body', behind('pages', lambda s: s.pages(
        s.memory, 0, 0, {n: page(n) for n in range(129)}, first_pass=False)))
    plant('128 pages of data', None, behind('pages', lambda s: s.pages(
        s.memory, 0, 0, {n: page(n) for n in range(128)}, first_pass=False)))
    plant('unknown flags', 'stream.record-body', raw_pages(flags=2))
    plant('sequence gap', 'stream.record-order', raw_pages(sequence=6))
    plant('sequence again', 'stream.record-order', raw_pages(sequence=4))
    plant('another epoch', 'stream.record-order', raw_pages(epoch=2))
    plant('a page in the first pass twice', 'ram.counts', pages_like(block=0, chunk=0, zero=(3,)))
    plant('a page that was a hole', None, pages_like(block=0, chunk=0, data={77: page(9)}, first_pass=False))
    plant('pages before PAGE_CHANNELS', 'stream.record-order', replaced(
        page_channels=lambda s: golden.page_records(s, s.memory), pages=lambda s: s.page_channels(0)))
    plant('no PAGE_CHANNELS', 'stream.record-order', replaced(page_channels=None, pages=None, end_mark=None))
    plant('PAGE_CHANNELS twice', 'stream.record-order', ahead('pages', lambda s: s.page_channels(0)))
    plant('page channels in a one-way stream', 'stream.record-body', replaced(page_channels=lambda s: s.page_channels(1)))
    plant('epoch of a first connection', 'stream.record-body', replaced(page_channels=lambda s: s.page_channels(0, epoch=2)))
    plant('END_MARK that counts too many', 'ram.counts', replaced(end_mark=lambda s: s.end_mark(6)))
    plant('END_MARK that counts too few', 'ram.counts', replaced(end_mark=lambda s: s.end_mark(4)))
    plant('no END_MARK', 'stream.record-order', replaced(end_mark=None))
    plant('END_MARK twice', 'stream.record-order', ahead('switchover', lambda s: s.end_mark()))
    plant('pages after END_MARK', 'stream.record-order', ahead('switchover', lambda s: s.pages(
        s.memory, 0, 0, zero=(9,), first_pass=False)))
    plant('a hint without the feature', 'stream.record-order', ahead('pages', lambda s: s.hint(0, 0, (3,))))
    plant('a hint with the feature', None, {**ahead('pages', lambda s: s.hint(0, 0, (3,))), 'features': lambda s: s.features(
        6, 6)}, versions=[3])
    plant('a hint ahead of the pages in version 2', 'stream.record-order', ahead('pages', lambda s: s.hint(0, 0, (3,))),
          versions=[2])
    plant('a hint out of range', 'ram.range', {**ahead('pages', lambda s: s.hint(1, 0, (8,))), 'features': lambda s: s.features(
        6, 6)}, versions=[3])


def test_sums():
    surgery('a flipped octet of a page', 'ram.sum', 'PAGES', flip(16 + 160 + 5), nth=1)
    surgery('a flipped octet of a page that was sent twice', None, 'PAGES', flip(16 + 160 + 5))
    plant('pages that changed places', 'ram.sum', replaced(pages=lambda s: (golden.page_records(s, Memory()), s.memory.__init__(), [
        s.memory.put(*p) for p in swapped_memory(s)])))
    plant('sum of a block', 'ram.sum', replaced(switchover=lambda s: s.switchover(TOKEN, sums={1: 5})))
    plant('sum of nothing', 'ram.sum', replaced(switchover=lambda s: s.switchover(TOKEN, sums={1: 0})))
    plant('static sum', 'static.sum', replaced(switchover=lambda s: s.switchover(TOKEN, static_sum=1)))
    plant('device sum', 'device-state.sum', replaced(switchover=lambda s: s.switchover(TOKEN, device_sum=1)))
    plant('counts that do not add up', 'ram.counts', replaced(switchover=lambda s: s.switchover(TOKEN, counts={1: (1, 2, 4)})))
    plant('counts that differ from what came', 'ram.counts', replaced(
        switchover=lambda s: s.switchover(TOKEN, counts={1: (2, 1, 5)})))
    plant('a ROM with a hole', 'ram.counts', replaced(
        pages=lambda s: s.pages(s.memory, 2, 0, zero=(0,)), switchover=lambda s: s.switchover(TOKEN)))
    plant('n of blocks', 'stream.record-body', replaced(switchover=lambda s: (s.blocks.pop(), s.switchover(TOKEN))))
    plant('order of blocks', 'stream.record-body', replaced(switchover=lambda s: s.add(
        wire.SWITCHOVER, TOKEN + s.packed('IIQQ', 0, 1, 0, 0) + s.packed('IIQQQQ', 1, 0, 0, 0, 0, 0))))
    plant('flags of SWITCHOVER', 'stream.record-body', replaced(switchover=lambda s: s.switchover(TOKEN, flags=4)))
    plant('guest runs on arrival', None, replaced(switchover=lambda s: s.switchover(TOKEN, flags=1)))
    plant('audit without the feature', 'stream.record-order', replaced(switchover=lambda s: s.switchover(TOKEN, flags=2)))
    plant('SWITCHOVER twice', 'stream.record-order', ahead('end', lambda s: s.switchover(TOKEN)))
    plant('no SWITCHOVER', 'channel.cut', replaced(switchover=None))


def swapped_memory(stream):
    """What page_records() leaves behind, with pages 2 and 3 of ram0's two chunks changed."""
    memory = Memory()
    golden.page_records(Channel(stream.version, stream.big_endian), memory)
    digests = dict(memory.digests)
    digests[0, 3], digests[0, 514] = digests[0, 514], digests[0, 3]
    counts = {0: (3, 3), 1: (1, 2), 2: (1, 1)}
    for (block, number), digest in digests.items():
        yield block, number, digest, False
    stream.memory.first = {block: list(pair) for block, pair in counts.items()}


def test_sections():
    blob, first = golden.BLOB, golden.BLOB_FIRST_PART
    plant('a section that is not complete', 'section', replaced(state=lambda s: s.section(0, 0, b'', last=True)))
    plant('no sections', 'section', replaced(state=None))
    plant('a section that goes on after its end', 'section', behind('state', lambda s: s.section(1, 2, b'')))
    plant('a section twice', 'section', behind('state', lambda s: s.section(1, 0, b'', last=True)))
    plant('sections out of order', 'section', replaced(state=lambda s: (
        s.section(1, 0, blob, last=True), s.section(0, 0, golden.counter_state(s.order), last=True))))
    plant('a part that is missing', 'section', replaced(state=lambda s: (
        s.section(0, 0, b'', last=True), s.section(1, 0, blob[:first]), s.section(1, 2, blob[first:], last=True))))
    plant('a section that begins twice', 'section', replaced(state=lambda s: (
        s.section(0, 0, b'', last=True), s.section(1, 0, blob[:first]), s.section(1, 1, blob[first:], last=True, first=True))))
    plant('a section that never begins', 'section', replaced(state=lambda s: (
        s.section(0, 0, b'', last=True, first=False), s.section(1, 0, blob, last=True))))
    plant('an id that SECTIONS lacks', 'section', behind('state', lambda s: s.section(2, 0, b'', last=True)))
    plant('a part above 1 MiB', 'stream.record-body', replaced(state=lambda s: (
        s.section(0, 0, b'', last=True), s.section(1, 0, bytes((1 << 20) + 1), last=True))))
    plant('state after SWITCHOVER', 'stream.record-order', ahead('end', lambda s: s.section(1, 2, b'')))
    plant('reserved field of SECTION', 'stream.record-body', behind('state', lambda s: s.add(
        wire.SECTION, s.packed('IIII', 1, 2, 2, 1))))


def test_device_state():
    def counter(make):
        return replaced(state=lambda s: (s.section(0, 0, make(s.order), last=True), s.section(1, 0, golden.BLOB, last=True)))

    def device(name, id, make):
        for version, big_endian, label in streams():
            expect('device state: %s, %s' % (name, label), id, write(counter(make), version, big_endian).octets(),
                   devices=['counter'])

    whole = golden.counter_state
    device('as it should be', None, whole)
    device('without the subsection', None, lambda o: whole(o, b''))
    device('two subsections', None, lambda o: whole(o, golden.extra(o) + golden.extra(o, b'other', 0)))
    device('a subsection twice', 'device-state', lambda o: whole(o, golden.extra(o) * 2))
    device('flags of a subsection', 'device-state', lambda o: whole(o, golden.extra(o, optional=2)))
    device('no end', 'device-state', lambda o: whole(o)[:-1])
    device('something after the end', 'device-state', lambda o: whole(o) + b'\0')
    device('no subsection and no end', 'device-state', lambda o: whole(o, b'\x54'))
    device('fields beyond the end', 'device-state', lambda o: struct.pack(o + 'I', 0xFFFFFFFF) + whole(o)[4:])
    device('a subsection beyond the end', 'device-state', lambda o: whole(o, golden.extra(o)[:-2] + b''))
    device('a mark that is not 0x53', 'device-state', lambda o: whole(o, b'\x54' + golden.extra(o)[1:]))
    device('a subsection without a name', 'device-state', lambda o: whole(o, golden.extra(o, b'')))
    device('nothing', 'device-state', lambda o: b'')
    plant('a section that is not known to be a device', None, counter(lambda o: b'anything'))


def test_order():
    plant('no END', 'channel.cut', replaced(end=None))
    plant('END twice', None, behind('end', lambda s: s.end()))
    plant('RUN in a one-way stream', 'stream.record-order', ahead('end', lambda s: s.token(wire.RUN, TOKEN)))
    plant('PREFLIGHT in a one-way stream', 'stream.record-order', ahead('page channels', lambda s: s.add(wire.PREFLIGHT)))
    plant('a record of images', 'stream.record-order', ahead('state', lambda s: s.add(wire.RAM_ONLY)))
    plant('READY on the main channel', 'stream.record-order', ahead('end', lambda s: s.add(wire.READY)))
    plant('reserved field of ROUND', 'stream.record-body', replaced(round=lambda s: s.add(wire.ROUND, s.packed('IIQ', 1, 1, 0))))
    plant('ROUND ahead of static data ends nothing in version 2', None, ahead('host', lambda s: s.round(0, 0)), versions=[2])
    plant('ROUND ahead of STATIC_DATA_END in version 3', 'static.missing-end', ahead('host', lambda s: s.round(0, 0)), versions=[3])
    plant('END_MARK ahead of the end of static data', 'stream.record-order', ahead('host', lambda s: s.end_mark(0)), versions=[2])
    plant('a hint ahead of static data ends nothing in version 2', None, ahead('host', lambda s: s.hint(0, 0, (3,))), versions=[2])
    plant('reserved field of a hint', 'stream.record-body', {**ahead('pages', lambda s: s.add(wire.HINT, s.packed(
        'IIQ8Q', 0, 1, 0, *[1] * 8))), 'features': lambda s: s.features(6, 6)}, versions=[3])
    plant('a hint that is too long', 'stream.record-body', {**ahead('pages', lambda s: s.add(wire.HINT, s.packed(
        'IIQ10Q', 0, 0, 0, *[1] * 10))), 'features': lambda s: s.features(6, 6)}, versions=[3])
    plant('RUN ahead of static data', 'stream.record-order', ahead('host', lambda s: s.token(wire.RUN, TOKEN)), versions=[2])


# Two-way streams

class Exchange:
    """A whole migration on two page channels with its return paths; chunk 0 of ram0 moves from one channel to the other."""

    def __init__(self, version, big_endian, **parts):
        self.version, self.big_endian = version, big_endian
        self.memory = None
        self.channels = [Channel(version, big_endian) for _ in range(2)]
        self.answers = [Channel(version, big_endian) for _ in range(2)]
        self.back = Channel(version, big_endian)
        self.main = None
        plan = self.plan()
        for name in parts:
            assert name in plan, name
        for name, part in {**plan, **parts}.items():
            if part:
                part(self)

    def plan(self):
        return {'static': Exchange.static, 'verdict': Exchange.verdict,
                'named': lambda x: x.back.add(wire.TARGET_STATE, STATE_DIRECTORY), 'open': Exchange.open, 'first': Exchange.first,
                'second': Exchange.second, 'third': Exchange.third, 'end_marks': Exchange.end_marks, 'ping': Exchange.ping,
                'state': lambda x: golden.state(x.main), 'switchover': lambda x: x.main.switchover(TOKEN),
                'ready': Exchange.ready, 'run': lambda x: x.main.token(wire.RUN, TOKEN),
                'running': lambda x: x.back.add(wire.RUNNING, TOKEN),
                'report': Exchange.report, 'end': lambda x: x.main.end()}

    def static(self):
        parts = plan()
        keep = ('machine', 'properties', 'blocks', 'sections', 'features', 'host', 'static end')
        parts['features'] = lambda s: s.features(0x1F, 0, 2) if s.version >= 3 else None
        self.main = write({name: parts[name] for name in keep}, self.version, self.big_endian, one_way=False)
        self.memory = self.main.memory

    def verdict(self):
        if self.version >= 3:
            self.back.verdict(0x1F, 2)

    def open(self):
        self.main.page_channels(2, golden.SESSION)
        for n in range(2):
            self.channels[n].preamble(n, golden.SESSION)
            self.answers[n].ack(self.memory, n, 0)

    def first(self):
        self.channels[0].pages(self.memory, 0, 0, {3: page(1), 4: page(2)}, zero=(5,))
        self.answers[0].ack(self.memory, 0, 1, [(0, 0)])
        self.channels[1].pages(self.memory, 0, 1, {2: page(3)})
        self.channels[1].pages(self.memory, 2, 0, {0: page(5)}, zero=(1,))

    def second(self):
        self.channels[1].pages(self.memory, 0, 0, {3: page(6)}, zero=(4,), first_pass=False)
        self.answers[1].ack(self.memory, 1, 3, [(0, 1), (2, 0), (0, 0)])

    def third(self):
        self.channels[0].pages(self.memory, 0, 0, {3: page(7)}, first_pass=False)
        self.answers[0].ack(self.memory, 0, 2, [(0, 0)])

    def end_marks(self):
        for n in range(2):
            self.channels[n].end_mark()
            self.answers[n].ack(self.memory, n, self.channels[n].sequence)

    def ping(self):
        self.main.add(wire.PING, self.main.packed('Q', 77))
        self.back.add(wire.PONG, self.main.packed('Q', 77))

    def ready(self, token=TOKEN, flags=0, static_sum=None, device_sum=None, sums=None, directory=STATE_DIRECTORY):
        main = self.main
        body = token + directory + main.packed('IIQQ', flags, len(main.blocks), main.static_sum() if static_sum is None else
                                               static_sum, main.device_sum() if device_sum is None else device_sum)
        for block in range(len(main.blocks)):
            body += main.packed('Q', (sums or {}).get(block, self.memory.sum(block)))
        self.back.add(wire.READY, body)

    def report(self):
        if self.version >= 3:
            self.back.add(wire.REPORT, TOKEN + self.main.packed('IIQ', 1, 0, 1234567))

    def files(self):
        return {'main': self.main.octets(), 'page_channels': [c.octets() for c in self.channels],
                'returns': [self.back.octets()] + [a.octets() for a in self.answers]}


def exchange(name, id, versions=(2, 3), files=None, **parts):
    for version, big_endian, label in streams(versions):
        made = Exchange(version, big_endian, **parts).files()
        expect('exchange: %s, %s' % (name, label), id, **{**made, **(files or {})})


def test_exchange():
    exchange('whole', None)
    exchange('order of a stream', 'ram.sum', switchover=lambda x: x.main.switchover(TOKEN, sums={0: 1}), ready=None, run=None,
             running=None, report=None)
    for version, big_endian, label in streams():
        made = Exchange(version, big_endian).files()
        report, verifier = findings(made['main'], made['page_channels'])
        check('order unknown without ACKs, ' + label, not report.findings and report.notes and not verifier.sums_checked,
              report.findings)
        report, verifier = findings(**Exchange(version, big_endian, third=None).files())
        check('two orders explain the ACKs, ' + label, not report.findings and report.notes, report.findings)
        report, verifier = findings(made['main'], made['page_channels'][:1])
        check('a channel that is not given, ' + label, not report.findings and report.notes, report.findings)
        report, verifier = findings(made['main'])
        check('no channel given, ' + label, not report.findings and report.notes, report.findings)
        made = Exchange(version, big_endian, third=None, second=None).files()
        report, verifier = findings(made['main'], made['page_channels'])
        check('order not needed, ' + label, not report.findings and verifier.sums_checked, report.findings)


def test_page_channels():
    def altered(n, change):
        def part(x):
            Exchange.end_marks(x)
            change(x.channels[n].pieces[0], x)
        return part

    def new_preamble(**how):
        def change(piece, x):
            given = {'version': x.version, 'big_endian': x.big_endian, 'channel': 0, 'session': golden.SESSION, **how}
            piece.octets = preamble(**given)
        return altered(0, change)

    def flipped(at):
        return altered(0, lambda piece, x: setattr(piece, 'octets', bytes(flip(at)(bytearray(piece.octets), ''))))

    exchange('marker of a preamble', 'stream.magic', end_marks=flipped(0))
    exchange('CRC of a preamble', 'stream.crc', end_marks=flipped(20))
    exchange('version of a preamble', 'stream.version', end_marks=new_preamble(version=4))
    exchange('reserved octets of a preamble', 'stream.record-body', end_marks=new_preamble(reserved=1))
    exchange('session of a preamble', 'channel.handshake', end_marks=new_preamble(session=bytes(16)))
    exchange('a channel twice', 'channel.handshake', end_marks=new_preamble(channel=1))
    exchange('a channel out of range', 'channel.handshake', end_marks=new_preamble(channel=2))
    exchange('epoch of a preamble', 'channel.handshake', end_marks=new_preamble(epoch=2))
    exchange('65 page channels', 'stream.record-body', open=lambda x: (Exchange.open(x), x.main.pieces.pop(),
                                                                       x.main.page_channels(65, golden.SESSION)))
    exchange('pages on the main channel', 'stream.record-order', state=lambda x: (
        x.main.pages(Memory(), 0, 0, zero=(9,)), golden.state(x.main)))
    exchange('state on a page channel', 'stream.record-order', third=lambda x: (
        Exchange.third(x), x.channels[0].add(wire.PING, bytes(8))))
    exchange('END_MARK missing on a page channel', 'channel.cut', end_marks=None)
    exchange('END_MARK of a page channel', 'ram.counts', end_marks=lambda x: (x.channels[0].end_mark(3), x.channels[1].end_mark()))
    exchange('END on a page channel', None, end_marks=lambda x: (Exchange.end_marks(x), x.channels[0].add(wire.END)))
    exchange('pages after END_MARK on a page channel', 'stream.record-order', end_marks=lambda x: (
        Exchange.end_marks(x), x.channels[0].pages(Memory(), 0, 0, zero=(9,))))
    exchange('a flipped octet on a page channel', 'ram.sum', third=lambda x: (Exchange.third(x), setattr(
        x.channels[0].pieces[-1], 'octets', bytes(flip(-9)(bytearray(x.channels[0].pieces[-1].octets), '')))))
    exchange('the first pass on two channels', 'ram.counts', third=lambda x: x.channels[0].pages(
        x.memory, 0, 1, {2: page(3)}))


def test_return_paths():
    exchange('epoch of an ACK', 'stream.record-order', third=lambda x: (
        x.channels[0].pages(x.memory, 0, 0, {3: page(7)}, first_pass=False),
        x.answers[0].ack(x.memory, 0, 2, [(0, 0)], epoch=2)))
    exchange('an ACK of another channel', 'stream.record-order', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 1, 2)))
    exchange('an ACK of a channel that is not there', 'stream.record-body', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 2, 2)))
    exchange('an ACK that goes back', 'stream.record-order', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 0, 1)))
    exchange('an ACK ahead of its record', 'stream.record-order', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 0, 3)))
    exchange('an ACK without its chunk', 'stream.record-body', third=lambda x: (
        x.channels[0].pages(x.memory, 0, 0, {3: page(7)}, first_pass=False), x.answers[0].ack(x.memory, 0, 2)))
    exchange('an ACK of a chunk out of range', 'ram.range', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 0, 2, [(0, 2)])))
    exchange('an ACK with another sum', 'ram.sum', third=lambda x: (
        x.channels[0].pages(x.memory, 0, 0, {3: page(7)}, first_pass=False), x.answers[0].ack(Memory(), 0, 2, [(0, 0)])))
    exchange('an ACK with another sum, one channel', 'ram.sum', second=None, third=None, end_marks=lambda x: (
        x.answers[1].ack(Memory(), 1, 2, [(0, 1), (2, 0)]), x.channels[0].end_mark(), x.channels[1].end_mark()))
    exchange('READY ahead of the last ACK', 'ram.counts', third=lambda x: x.channels[0].pages(
        x.memory, 0, 0, {3: page(7)}, first_pass=False), end_marks=lambda x: [c.end_mark() for c in x.channels])
    exchange('a VERDICT that accepts in version 2', 'stream.record-order', versions=[2], verdict=lambda x: x.back.verdict(3, 2))
    exchange('features that were not offered', 'stream.record-body', versions=[3], verdict=lambda x: x.back.verdict(0x3F, 2))
    exchange('more channels than the VERDICT allows', 'stream.record-body', versions=[3],
             verdict=lambda x: x.back.verdict(0x1F, 1))
    exchange('no answer after a refusal', 'stream.record-order', verdict=lambda x: x.back.verdict(
        3, 2, ['static.incompatible: RAM block ram0: here 4096, there 8192']))
    exchange('a text without form', 'stream.record-body', versions=[3], verdict=lambda x: x.back.verdict(3, 2, ['no']))
    exchange('ACKs without the feature', 'stream.record-order', versions=[3], verdict=lambda x: x.back.verdict(0x1E, 2))
    exchange('another cookie', 'stream.record-body', ping=lambda x: (
        x.main.add(wire.PING, bytes(8)), x.back.add(wire.PONG, b'x' * 8)))
    exchange('PONG without PING', 'stream.record-order', ping=lambda x: x.back.add(wire.PONG, bytes(8)))
    exchange('token of READY', 'stream.record-body', ready=lambda x: x.ready(token=bytes(16)))
    exchange('a sum of READY', 'ram.sum', ready=lambda x: x.ready(sums={0: 1}))
    exchange('static sum of READY', 'static.sum', ready=lambda x: x.ready(static_sum=1))
    exchange('device sum of READY', 'device-state.sum', ready=lambda x: x.ready(device_sum=1))
    exchange('no state directory', None, named=None, ready=lambda x: x.ready(directory=bytes(16)))
    exchange('a state directory of zeros', 'stream.record-body', named=lambda x: x.back.add(wire.TARGET_STATE, bytes(16)))
    exchange('a state directory named twice', 'stream.record-order', named=lambda x: [
        x.back.add(wire.TARGET_STATE, STATE_DIRECTORY) for _ in range(2)])
    exchange('a state directory ahead of VERDICT', 'stream.record-order', versions=[3], verdict=lambda x: (
        x.back.add(wire.TARGET_STATE, STATE_DIRECTORY), x.verdict()))
    exchange('a state directory after READY', 'stream.record-order', named=None, ready=lambda x: (
        x.ready(directory=bytes(16)), x.back.add(wire.TARGET_STATE, STATE_DIRECTORY)))
    exchange('another state directory in READY', 'stream.record-body', ready=lambda x: x.ready(directory=TOKEN))
    exchange('no state directory in READY', 'stream.record-body', ready=lambda x: x.ready(directory=bytes(16)))
    exchange('a state directory in READY alone', 'stream.record-body', named=None)
    exchange('a guest that could not be started', None, versions=[3], report=lambda x: x.back.add(
        wire.REPORT, TOKEN + x.main.packed('IIQ', 2, 0, 0)))
    exchange('an answer on the return path', 'stream.record-order', report=lambda x: x.back.add(
        wire.ANSWER, TOKEN + STATE_DIRECTORY + x.main.packed('II', 1, 0)))
    exchange('flags of READY', 'stream.record-body', ready=lambda x: x.ready(flags=2))
    exchange('an audit that was not done', 'stream.record-body', versions=[3],
             switchover=lambda x: x.main.switchover(TOKEN, flags=2))
    exchange('an audit', None, versions=[3], switchover=lambda x: x.main.switchover(TOKEN, flags=2),
             ready=lambda x: x.ready(flags=1))
    exchange('READY twice', 'stream.record-order', ready=lambda x: (x.ready(), x.ready()))
    exchange('RUNNING without READY', 'stream.record-order', ready=None)
    exchange('RUNNING without RUN', 'stream.record-order', run=None)
    exchange('token of RUN', 'stream.record-body', run=lambda x: x.main.token(wire.RUN, bytes(16)))
    exchange('RUN and ABORT', 'stream.record-order', run=lambda x: (
        x.main.token(wire.RUN, TOKEN), x.main.token(wire.ABORT, TOKEN)))
    exchange('NEVER', None, running=lambda x: x.back.error(wire.NEVER, 'guest', 'no', TOKEN), report=None)
    exchange('a text beyond the record', 'stream.record-body', running=lambda x: x.back.add(
        wire.NEVER, TOKEN + x.back.packed('HHI', 5, 9, 0) + b'guestno'), report=None)
    exchange('REPORT without RUNNING', 'stream.record-order', versions=[3], running=None)
    exchange('REPORT in version 2', 'stream.record-order', versions=[2], report=lambda x: x.back.add(
        wire.REPORT, TOKEN + x.main.packed('IIQ', 1, 0, 1)))
    exchange('REFUSED, then ABORT', None, ready=lambda x: x.back.error(wire.REFUSED, 'ram.sum', 'differs', TOKEN),
             run=lambda x: x.main.token(wire.ABORT, TOKEN), running=None, report=None)
    exchange('FAILED', None, ready=lambda x: x.back.error(wire.FAILED, 'section', 'no'), run=None, running=None, report=None)
    exchange('FAILED after READY', 'stream.record-order', running=lambda x: x.back.error(wire.FAILED, 'section', 'no'),
             report=None)
    exchange('the other direction', 'stream.record-order', report=lambda x: x.back.add(wire.END))
    exchange('a return path that is cut', 'channel.cut', report=lambda x: (
        x.report(), setattr(x.back.pieces[-1], 'octets', x.back.pieces[-1].octets[:-8])))


def places(x):
    """The directions of an exchange by name."""
    return {'main': x.main, 'back': x.back, 'channel': x.channels[0], 'answer': x.answers[0]}


def field(where, piece, at, format, value, id='stream.record-body', versions=(2, 3), nth=0):
    """Writes one field of a record and makes the CRC right again."""
    for version, big_endian, label in streams(versions):
        x = Exchange(version, big_endian)
        target = [p for p in places(x)[where].pieces if p.name == piece][nth]
        target.octets = bytes(resealed(at, format, value)(bytearray(target.octets), x.main.order))
        expect('field at %d of %s, %s' % (at, piece, label), id, **x.files())


def test_fields():
    field('main', 'PROPERTIES', 4, 'I', 1)
    field('main', 'RAM_BLOCK', 4, 'I', 2)
    field('main', 'RAM_BLOCK', 24, 'I', 2048)
    field('main', 'SECTIONS', 0, 'I', 1025)
    field('main', 'SECTIONS', 4, 'I', 1)
    field('main', 'SECTIONS', 8, 'I', 1)
    field('main', 'SECTIONS', 22, 'H', 1)
    field('main', 'FEATURES', 20, 'I', 1, versions=[3])
    field('main', 'HOST', 2, 'H', 1)
    field('main', 'HOST', 4, 'I', 1)
    field('main', 'SWITCHOVER', 40, 'I', 1)
    field('main', 'SWITCHOVER', 44, 'I', 1)
    field('channel', 'PAGES', 0, 'I', 3, 'ram.range')
    field('back', 'VERDICT', 0, 'I', 2, versions=[3])
    field('back', 'VERDICT', 0, 'I', 1, versions=[3])
    field('back', 'VERDICT', 4, 'I', 257, versions=[3])
    field('back', 'VERDICT', 16, 'I', 65, versions=[3])
    field('back', 'VERDICT', 20, 'I', 1, versions=[3])
    field('answer', 'ACK', 16, 'I', 4097)
    field('answer', 'ACK', 20, 'I', 1)
    field('answer', 'ACK', 28, 'I', 1, nth=1)
    field('back', 'READY', 36, 'I', 2)
    field('back', 'REPORT', 16, 'I', 4, versions=[3])
    field('back', 'REPORT', 20, 'I', 1, versions=[3])
    field('back', 'RUNNING', 0, 'B', 0)
    field('back', 'REPORT', 0, 'B', 0, versions=[3])


def test_lengths():
    """Each record of an exchange, longer and shorter by 8 octets. Only SECTION has content of any length."""
    for version, big_endian, label in streams():
        for where, channel in places(Exchange(version, big_endian)).items():
            for n, piece in enumerate(channel.pieces):
                if piece.name not in ('image header', 'machine header', 'preamble', 'SECTION'):
                    for change in (8, -8):
                        lengthened(version, big_endian, where, n, change, label)


def lengthened(version, big_endian, where, n, change, label):
    x = Exchange(version, big_endian)
    piece, order = places(x)[where].pieces[n], x.main.order
    kind, length = struct.unpack_from(order + 'II', piece.octets)
    if length + change >= 0:
        body = (piece.octets[16:16 + length] + bytes(8))[:length + change]
        piece.octets = record(order, kind, body)
        expect('%s longer by %d, %s' % (piece.name, change, label), 'stream.record-body', **x.files())


def test_names():
    long = 'n' * 256
    plant('no key', 'stream.record-body', replaced(properties=lambda s: s.properties((('', 'a'),))))
    plant('a long key', 'stream.record-body', replaced(properties=lambda s: s.properties(((long[:64], 'a'),))))
    plant('a long value', 'stream.record-body', replaced(properties=lambda s: s.properties((('a', long),))))
    plant('the longest key and value', None, replaced(properties=lambda s: s.properties(((long[:63], long[:255]),))))
    plant('257 properties', 'stream.record-body', replaced(properties=lambda s: s.properties([(str(n), '') for n in range(257)])))
    plant('a host without a name', 'stream.record-body', replaced(host=lambda s: s.host('')))
    plant('a host with a long name', 'stream.record-body', replaced(host=lambda s: s.host(long)))
    plant('a host whose name is not UTF-8', 'stream.record-body', replaced(
        host=lambda s: s.add(wire.HOST, s.packed('HHI', 2, 0, 0) + b'\xc3\x28')))
    plant('a section without a name', 'stream.record-body', replaced(sections=lambda s: s.sections((('', 0, 1),))))
    plant('a section with a long name', 'stream.record-body', replaced(sections=lambda s: s.sections(((long[:64], 0, 1),))))
    exchange('a VERDICT with an empty text', 'stream.record-body', versions=[3], verdict=lambda x: x.back.add(
        wire.VERDICT, x.back.packed('IIQIIH', 1, 1, 0, 0, 0, 0)))
    exchange('a VERDICT with a long text', 'stream.record-body', versions=[3],
             verdict=lambda x: x.back.verdict(0, 0, ['id: what: here X, there ' + 'Y' * 1024]))
    exchange('a VERDICT with 257 texts', 'stream.record-body', versions=[3],
             verdict=lambda x: x.back.verdict(0, 0, ['id: what: here X, there Y'] * 257))


def test_order_of_an_exchange():
    def late(name, id, part, **parts):
        exchange(name, id, end=lambda x: (part(x), x.main.end()), **parts)

    late('the other direction', 'stream.record-order', lambda x: x.main.add(wire.READY))
    late('PAGES after SWITCHOVER', 'stream.record-order', lambda x: x.main.pages(Memory(), 0, 0, zero=(9,)))
    late('SECTION after SWITCHOVER', 'stream.record-order', lambda x: x.main.section(0, 1, b''))
    late('ROUND after SWITCHOVER', 'stream.record-order', lambda x: x.main.round(9, 0))
    late('PAGE_CHANNELS after SWITCHOVER', 'stream.record-order', lambda x: x.main.page_channels(2, golden.SESSION))
    late('PREFLIGHT after SWITCHOVER', 'stream.record-order', lambda x: x.main.add(wire.PREFLIGHT))
    late('RUN twice', 'stream.record-order', lambda x: x.main.token(wire.RUN, TOKEN))
    late('QUERY', None, lambda x: x.main.token(wire.QUERY, TOKEN))
    late('INQUIRE on the main channel', 'stream.record-order', lambda x: x.main.token(wire.INQUIRE, TOKEN))
    late('token of QUERY', 'stream.record-body', lambda x: x.main.token(wire.QUERY, bytes(16)))
    exchange('RUN ahead of SWITCHOVER', 'stream.record-order', ping=lambda x: x.main.token(wire.RUN, TOKEN))
    exchange('QUERY ahead of SWITCHOVER', 'stream.record-order', ping=lambda x: x.main.token(wire.QUERY, TOKEN))
    exchange('state after ABORT', 'stream.record-order', ping=lambda x: x.main.token(wire.ABORT, TOKEN), switchover=None,
             ready=None, run=None, running=None, report=None)
    exchange('PREFLIGHT with a body', 'stream.record-body', open=lambda x: x.main.add(wire.PREFLIGHT, bytes(8)), first=None,
             second=None, third=None, end_marks=None, ping=None, state=None, switchover=None, ready=None, run=None,
             running=None, report=None)
    late('QUERY that is too long', 'stream.record-body', lambda x: x.main.add(wire.QUERY, TOKEN + bytes(8)))
    late('reserved field of REFUSED', 'stream.record-body', lambda x: x.back.add(
        wire.REFUSED, TOKEN + x.back.packed('HHI', 2, 2, 1) + b'idno'), ready=None, run=None, running=None, report=None)
    late('REFUSED that is too long', 'stream.record-body', lambda x: x.back.add(
        wire.REFUSED, TOKEN + x.back.packed('HHI', 2, 2, 0) + b'idno '), ready=None, run=None, running=None, report=None)
    exchange('ABORT ahead of SWITCHOVER', None, ping=lambda x: x.main.token(wire.ABORT, TOKEN), state=None, switchover=None,
             ready=None, run=None, running=None, report=None)
    exchange('READY without SWITCHOVER', 'stream.record-order', ping=lambda x: x.main.token(wire.ABORT, TOKEN), state=None,
             switchover=None, ready=lambda x: x.back.add(wire.READY, TOKEN + bytes(16) + x.back.packed('IIQQ', 0, 0, 0, 0)),
             run=None, running=None, report=None)
    exchange('RUNNING twice', 'stream.record-order', running=lambda x: [x.back.add(wire.RUNNING, TOKEN) for _ in range(2)])
    exchange('REPORT twice', 'stream.record-order', versions=[3], report=lambda x: [x.report(), x.report()])
    exchange('VERDICT twice', 'stream.record-order', versions=[3], report=lambda x: (x.report(), x.verdict()))
    exchange('ACKs of a page channel on the main return path', 'stream.record-order',
             report=lambda x: (x.report(), x.back.ack(x.memory, 0, 2)))
    exchange('END ahead of END_MARK on a page channel', 'stream.record-order', end_marks=lambda x: (
        Exchange.end_marks(x), x.channels[0].pieces.pop(), x.channels[0].add(wire.END)))
    exchange('options of a preamble', 'channel.handshake', end_marks=lambda x: (Exchange.end_marks(x), setattr(
        x.channels[0].pieces[0], 'octets', preamble(5 - x.version, x.big_endian, 0, golden.SESSION))))
    exchange('a chunk twice in an ACK', None, third=lambda x: (
        x.channels[0].pages(x.memory, 0, 0, {3: page(7)}, first_pass=False), x.answers[0].ack(x.memory, 0, 2, [(0, 0)] * 2)))
    exchange('a chunk twice in an ACK, with different sums', 'stream.record-body', third=lambda x: (
        x.channels[0].pages(x.memory, 0, 0, {3: page(7)}, first_pass=False), x.answers[0].add(wire.ACK, x.back.packed(
            'IIQIIIIQQIIQQ', 1, 0, 2, 2, 0, 0, 0, 0, x.memory.sum(0, 0), 0, 0, 0, 1))))
    exchange('an ACK beyond the records', 'stream.record-order', third=lambda x: (
        Exchange.third(x), x.answers[0].ack(x.memory, 0, 9)))
    exchange('n of blocks in READY', 'stream.record-body', ready=lambda x: (x.main.blocks.pop(), x.ready()))
    exchange('accepted without a required feature', 'stream.record-body', versions=[3],
             verdict=lambda x: x.back.verdict(0x1D, 2), static=requiring_sums)
    for version, big_endian, label in streams():
        files = Exchange(version, big_endian).files()
        one_way = golden.golden_stream(version, big_endian).octets()
        expect('a page channel that was not announced, ' + label, 'stream.record-order', one_way,
               page_channels=files['page_channels'][:1])
        x = Exchange(version, big_endian, **{n: None for n in list(Exchange.plan(None))[2:]})
        x.main.add(wire.PREFLIGHT)
        x.main.end()
        x.answers[0].ack(x.memory, 0, 0)
        expect('an ACK without PAGE_CHANNELS, ' + label, 'stream.record-order', x.main.octets(),
               returns=[x.answers[0].octets()])


def requiring_sums(x):
    parts = plan()
    keep = ('machine', 'properties', 'blocks', 'sections', 'features', 'host', 'static end')
    parts['features'] = lambda s: s.features(0x1F, wire.SUMS, 2)
    x.main = write({name: parts[name] for name in keep}, x.version, x.big_endian, one_way=False)
    x.memory = x.main.memory


def test_preflight():
    for version, big_endian, label in streams():
        x = Exchange(version, big_endian, **{n: None for n in list(Exchange.plan(None))[2:]})
        start = len(x.main.pieces)
        x.main.add(wire.PREFLIGHT)
        x.main.end()
        if version < 3:
            x.back.verdict(wire.SUMS | wire.ACKS, 2)
        expect('preflight, ' + label, None, x.main.octets(), returns=[x.back.octets()])
        x.main.pieces.insert(start + 1, x.main.pieces[start])
        expect('preflight without END, ' + label, 'stream.record-order', x.main.octets())
        x = Exchange(version, big_endian, end=lambda x: (x.main.add(wire.PREFLIGHT), x.main.end()))
        expect('preflight after pages, ' + label, 'stream.record-order', **x.files())
    x = Exchange(3, False, **{n: None for n in list(Exchange.plan(None))[2:]})
    x.main.end()
    expect('a question without PREFLIGHT', 'channel.cut', x.main.octets())


def test_command():
    command = os.path.join(ROOT, 'scripts', 'verify-stream')

    def run(*arguments):
        return subprocess.run([sys.executable, command, *arguments], capture_output=True, text=True, check=False)

    path = os.path.join(ROOT, 'tests', 'golden', 'v3-le.vmf')
    ended = run(path)
    check('command: clean', ended.returncode == 0 and 'clean; version 3, little-endian, one-way' in ended.stdout, ended)
    check('command: no file', run().returncode == 2)
    check('command: file that is not there', run(path + '.not').returncode == 2)
    with tempfile.TemporaryDirectory() as directory:
        names = [os.path.join(directory, n) for n in ('main', 'c0', 'c1', 'r', 'r0', 'r1', 'bad', 'empty')]
        made = Exchange(3, True).files()
        bad = plan()
        bad['end mark'] = lambda s: s.end_mark(99)
        contents = [made['main'], *made['page_channels'], *made['returns'], write(bad, 3, False).octets(), b'']
        for name, octets in zip(names, contents):
            with open(name, 'wb') as file:
                file.write(octets)
        ended = run(names[0], '--page-channel', *names[1:3], '--return', *names[3:6], '--json')
        last = json.loads(ended.stdout.splitlines()[-1])
        check('command: page channels', ended.returncode == 0 and last['sums_checked'] and last['clean'], ended)
        ended = run(names[6])
        check('command: a fault', ended.returncode == 1 and ': END_MARK: ram.counts: ' in ended.stdout.splitlines()[0], ended)
        first = json.loads(run('--json', names[6]).stdout.splitlines()[0])
        check('command: a fault in JSON', (first['type'], first['id'], first['record']) == ('fault', 'ram.counts', 'END_MARK'), first)
        ended = run(names[7])
        check('command: an empty file', ended.returncode == 1 and 'channel.cut' in ended.stdout, ended)
        ended = subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make-golden'), directory], check=False)
        same = all(open(os.path.join(directory, n), 'rb').read() == open(os.path.join(ROOT, 'tests', 'golden', n), 'rb').read()
                   for n in FILES)
        check('make-golden gives the same octets', ended.returncode == 0 and same)


def test_hashes():
    check('CRC32C of 123456789', crc32c(b'123456789') == 0xE3069283)
    check('CRC32C in two steps', crc32c(b'6789', crc32c(b'12345')) == 0xE3069283)
    check('XXH3-64 of nothing', xxh3.xxh3_64(b'') == 0x2D06800538D394C2)
    check('XXH3-128 of nothing', xxh3.xxh3_128(b'').hex() == '99aa06d3014798d86001c324468d497f')
    check('hashes without libxxhash', hashes._load('libnothing.so')[2] == 'plain Python')
    if hashes.IMPLEMENTATION != 'libxxhash':
        return
    octets = bytes(n * n + (n >> 3) & 0xFF for n in range(4200))
    for length in [*range(0, 1100), 2047, 2048, 2049, 4095, 4096, 4097]:
        check('XXH3-64 of %d octets' % length, xxh3.xxh3_64(octets[:length]) == hashes.xxh3_64(octets[:length]))
        check('XXH3-128 of %d octets' % length, xxh3.xxh3_128(octets[:length]) == hashes.xxh3_128(octets[:length]))


def main():
    for name, test in list(globals().items()):
        if name.startswith('test_'):
            test()
    print('%d passed, %d failed' % (results[True], results[False]))
    return 1 if results[False] else 0


if __name__ == '__main__':
    sys.exit(main())
