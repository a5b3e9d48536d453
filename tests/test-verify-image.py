#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent reader of images accepts what is right and names what is not.

Each planted fault is a golden image with one part replaced, one field that lies in an image that hangs together otherwise, or one
octet changed afterwards; the first thing that the reader finds has to be that fault, by its stable id. In both byte orders.

usage: test-verify-image.py [JUDGE]

With tests/judge-images each of these images is given to the engine as well, which has to come to the same verdict: this is where
the two understandings of the format meet.
"""

import errno
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfimage import form, golden  # noqa: E402
from vmfimage.chain import Chain  # noqa: E402
from vmfimage.header import Places  # noqa: E402
from vmfimage.image import DIGEST_OF_ZEROS, runs  # noqa: E402
from vmfimage.order import pack_order  # noqa: E402
from vmfimage.sparse import Sparse  # noqa: E402
from vmfimage.storage import Storage  # noqa: E402
from vmfimage.writer import ImageWriter, Parent  # noqa: E402
from vmfstream import golden as streams  # noqa: E402
from vmfstream import wire  # noqa: E402
from vmfstream.writer import image_header, machine_header  # noqa: E402

results = {True: 0, False: 0}
PAGE = wire.PAGE_SIZE


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


def verified(file, others=None, candidates=(), pages=True):
    """The chain, once verified. @others: path -> Sparse, what else there is."""
    files = {**(others or {}), 'main': file}

    def open_storage(path):
        if path not in files:
            raise FileNotFoundError(errno.ENOENT, 'not there', path)
        files[path].name = path
        return files[path]

    chain = Chain(candidates, open_storage)
    chain.verify('main', pages)
    return chain


class Judge:
    """The engine, as tests/judge-images."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.directory = tempfile.mkdtemp(prefix='vmf-judge-')
        self.judged = 0

    def ids(self, file, others, candidates):
        """Of all that it finds wrong."""
        paths = {name: os.path.join(self.directory, name) for name in ('main', *others, *candidates)}
        for name, sparse in {**others, 'main': file}.items():
            sparse.save(paths[name])
        self.process.stdin.write('\t'.join('file:' + paths[name] for name in ('main', *candidates)) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, 'the judge ended: %s' % self.process.wait()
        for name in {**others, 'main': file}:
            os.unlink(paths[name])
        self.judged += 1
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        check('the judge ends well', self.process.wait() == 0)
        os.rmdir(self.directory)


judge = Judge(sys.argv[1]) if len(sys.argv) > 1 else None


def expect(name, id, file, others=None, candidates=(), pages=True):
    """@id is what the first finding has to be; None: there is none. Returns that finding. The engine lists what it finds in no order."""
    report = verified(file, others, candidates, pages).report
    found = report.findings[0] if report.findings else None
    check(name, (found.id if found else None) == id, 'expected %s, found %s' % (id, report.findings[:3]))
    if judge and pages:
        ids = judge.ids(file, others or {}, candidates)
        check('%s, by the engine' % name, id in ids if id else not ids, 'expected %s, it finds %s' % (id, ids))
    return found


def base(order):
    """What a golden layer stands on, by its name."""
    name = golden.file_name('image', order)
    return {name: golden.golden_image(name)}


# Planting

def replaced(kind, **parts):
    """The plan of a golden image with parts replaced; an underscore stands for a space, None for nothing at all."""
    plan = golden.plan(kind)
    for name, part in parts.items():
        name = name.replace('_', ' ')
        assert name in plan, name
        plan[name] = part or (lambda w, s: None)
    return plan


def ahead(kind, name, part):
    original = golden.plan(kind)[name]
    return replaced(kind, **{name.replace(' ', '_'): lambda w, s: (part(w, s), original(w, s))})


def plant(name, id, kind, parts):
    """Records that are written otherwise."""
    for order in golden.ORDERS:
        expect('%s, %s-%s' % (name, kind, order), id, golden.writer(kind, order, parts).write().seal().file, base(order))


def lie(name, id, kind, edit=lambda w: None, tables=None, pages=True, where_said=None, **seal):
    """Octets or fields that are edited ahead of the digests over them."""
    for order in golden.ORDERS:
        writer = golden.writer(kind, order).write()
        edit(writer)
        writer.seal(tables=tables and tables(writer), **seal)
        found = expect('%s, %s-%s' % (name, kind, order), id, writer.file, base(order), pages=pages)
        if where_said and found:
            check('%s, %s-%s: where' % (name, kind, order), found.record == where_said, found)


def misplaced(name, id, kind, block, **places):
    """LAYOUT says other places of @block than the true ones. A value is what makes the lie of the truth and the writer."""
    for order in golden.ORDERS:
        writer = golden.writer(kind, order).write()
        true = writer.shapes[block].places
        writer.lie[block] = true._replace(**{what: value(getattr(true, what), writer) for what, value in places.items()})
        expect('%s, %s-%s' % (name, kind, order), id, writer.write().seal().file, base(order))


def damage(name, id, kind, where, where_said=None, pages=True, bit=3):
    """An octet that changes after all was sealed. @where(writer): its offset."""
    for order in golden.ORDERS:
        writer = golden.writer(kind, order).write().seal()
        writer.file.flip(where(writer), bit)
        found = expect('%s, %s-%s' % (name, kind, order), id, writer.file, base(order), pages=pages)
        if where_said and found:
            check('%s, %s-%s: where' % (name, kind, order), found.record == where_said, found)


# Cases

def test_golden_files():
    for name, (kind, order) in golden.FILES.items():
        with gzip.open(os.path.join(ROOT, 'tests', 'golden', name + '.gz')) as file:
            octets = file.read()
        written = golden.golden_image(name)
        check('%s is what make-golden writes' % name, octets == written.read(0, written.size))
        expect('%s is what it should be' % name, None, written, base(order))
        chain = verified(written, base(order))
        check('%s is clean' % name, not chain.report.findings and not chain.report.notes, chain.report.findings)
        check('%s: sums' % name, chain.whole)
        check('%s: pages' % name, sum(image.pages_read for image in chain.images) == (7 if kind in ('layer', 'held') else 4))
        tail = chain.images[0].tail
        check('%s: disks' % name, (tail.ram_only, [d.name for d in tail.disks]) ==
              (kind == 'layer', ['disk0', 'disk1'] if kind in ('disks', 'held') else []))


def test_commit_block():
    for length in (0, 1, 8, 4095):
        file = golden.golden_image('image-v1-le.img')
        file.truncate(length)
        expect('%d octets of an image' % length, 'image.magic', file)
    nothing = Sparse()
    nothing.truncate(1 << 20)
    expect('zeros', 'image.incomplete', nothing)
    stream = Sparse()
    stream.write(0, streams.golden_stream(3, False).octets())
    expect('a stream', 'image.magic', stream)
    for order in golden.ORDERS:
        file = golden.golden_image(golden.file_name('image', order))
        file.write(0, bytes(4096))
        expect('a commit block of zeros over an image, ' + order, 'image.incomplete', file)
        for at in (0, 7):
            damage('magic', 'image.magic', 'image', lambda w, at=at: at)
    damage('version', 'image.version', 'image', lambda w: 8)
    lie('version 3, and all else otherwise', 'image.version', 'image', version=3, crc=0)
    for at in (12, 16, 33, 40, 57, 64, 79, 80, 111, 112, 128, 143, 144, 4091, 4092, 4095):
        damage('octet %d of the commit block' % at, 'image.crc', 'image', lambda w, at=at: at)
    lie('unknown flags', 'image.layout', 'image', commit={'flags': 2})
    lie('reserved octets', 'image.layout', 'image', reserved=b'\0' * 3947 + b'\1')
    lie('an id of zeros', 'image.layout', 'image', commit={'id': bytes(16)})
    lie('root digest', 'image.digest', 'image', root=bytes(16))
    lie('root digest, little-endian', 'image.digest', 'image', root=bytes(range(16)))


def test_ranges():
    for name, fields in (
            ('no header', {'header_length': 0}), ('header above 1 MiB', {'header_length': (1 << 20) + 1}),
            ('no tail', {'tail_length': 0}), ('tail above 64 MiB', {'tail_length': (64 << 20) + 1}),
            ('no tables', {'table_length': 0}), ('tables of 12 octets', {'table_length': 12}),
            ('tables not aligned', {'table_offset': 8200}), ('tail not aligned', {'tail_offset': 8192 + 8}),
            ('tail behind the file size', {'tail_offset': 1 << 40}), ('tables behind the file size', {'table_offset': 1 << 40}),
            ('tables up to 2^64', {'table_offset': (1 << 64) - 4096, 'table_length': 1 << 62}),
            ('tail at the end of all offsets', {'tail_offset': (1 << 64) - 4096}),
            ('file size beyond the storage', {'file_size': 1 << 40}), ('file size not aligned', {'file_size': 4097}),
            ('file size of nothing', {'file_size': 0}), ('file size 2^64', {'file_size': (1 << 64) - 4096})):
        lie(name, 'image.layout', 'image', commit=fields, where_said='commit block')
    for order in golden.ORDERS:
        whole = golden.golden_image(golden.file_name('image', order))
        for cut in (4096, 8192, 1 << 20, 2 << 20, whole.size - 4096, whole.size - 1):
            file = whole.copy()
            file.truncate(cut)
            expect('cut at %d, %s' % (cut, order), 'image.layout', file)
        file = whole.copy()
        file.write(whole.size + 5000, b'something else')
        expect('a device that is larger, ' + order, None, file)


def test_damaged_areas():
    damage('header', 'image.digest', 'image', lambda w: 4096, 'header')
    damage('end of the header', 'image.digest', 'image', lambda w: 4096 + w.header_length - 1, 'header')
    damage('tables', 'image.digest', 'image', lambda w: w.table_offset + 9, 'chunk tables')
    damage('tail', 'image.digest', 'disks', lambda w: w.tail_offset, 'tail')
    damage('end of the tail', 'image.digest', 'layer', lambda w: w.tail_offset + w.tail_length - 1, 'tail')
    damage('the other half of a digest block', 'image.digest', 'image', lambda w: w.shapes[0].places.digests + 8 * 300, 'chunk 0 of ram0')
    damage('a digest', 'image.digest', 'layer', lambda w: w.shapes[0].places.digests + 4096 + 8 * 2, 'chunk 1 of ram0')
    damage('a data bit more', 'image.digest', 'image', lambda w: w.shapes[0].places.data_bitmap + 20, 'chunk 0 of ram0')
    damage('a data bit more in a chunk that had none', 'image.digest', 'layer', lambda w: w.shapes[2].places.data_bitmap,
           'chunk 0 of rom', bit=1)
    damage('a zero bit more', 'image.digest', 'layer', lambda w: w.shapes[0].places.zero_bitmap + 20, 'chunk 0 of ram0')
    damage('both bits', 'image.digest', 'layer', lambda w: (set_both(w), w.shapes[0].places.data_bitmap)[1])
    damage('bits behind the end', 'image.digest', 'image', lambda w: w.shapes[0].places.data_bitmap + 64, 'chunk 1 of ram0')
    damage('a word behind the end', 'image.layout', 'image', lambda w: w.shapes[0].places.data_bitmap + 72, 'padding')
    damage('a digest in a digest block that means nothing', None, 'layer', lambda w: w.shapes[2].places.digests)
    damage('a page', 'image.page', 'image', lambda w: w.shapes[0].places.pages + 514 * PAGE + 4095, 'page 514 of ram0')
    damage('a page that nobody reads', None, 'image', lambda w: w.shapes[0].places.pages + 514 * PAGE, pages=False)
    damage('a page that is not there', None, 'image', lambda w: w.shapes[0].places.pages + 5 * PAGE)
    damage('padding of the header', 'image.layout', 'image', lambda w: 4096 + w.header_length, 'padding')
    damage('padding of the tables', 'image.layout', 'image', lambda w: w.table_offset + 4095, 'padding')
    damage('padding ahead of the pages', 'image.layout', 'image', lambda w: w.shapes[0].places.pages - 1, 'padding')
    damage('padding behind the pages', 'image.layout', 'image', lambda w: w.shapes[1].places.pages + 8 * PAGE, 'padding')
    damage('the last octet', 'image.layout', 'image', lambda w: w.file.size - 1, 'padding')


def set_both(writer):
    """The first page of the block gets the zero bit, and damage() gives bit 3 of the same octet the other one."""
    at = writer.shapes[0].places.zero_bitmap
    writer.file.write(at, bytes([8]))
    writer.seal()


def test_damage_everywhere():
    """Octets at random in all that means something: each is found, and by the id of its area."""
    rng = random.Random(5)
    for name, (kind, order) in golden.FILES.items():
        writer = golden.writer(kind, order).write().seal()
        spans = [(4096, writer.header_length, 'image.digest'), (writer.table_offset, len(writer.shapes) * 8, 'image.digest'),
                 (writer.tail_offset, writer.tail_length, 'image.digest'), (16, 4096 - 16, 'image.crc')]
        for block, page in writer.pages:
            places = writer.shapes[block].places
            spans.append((places.pages + page * PAGE, PAGE, 'image.page'))
            spans.append((places.digests + page // 512 * 4096, 4096, 'image.digest'))
        for start, length, id in spans:
            for _ in range(5):
                at, bit = start + rng.randrange(length), rng.randrange(8)
                writer.file.flip(at, bit)
                expect('%s: bit %d of octet %d' % (name, bit, at), id, writer.file, base(order))
                writer.file.flip(at, bit)


def test_layout():
    misplaced('pages at a multiple of 1 MiB', 'image.layout', 'image', 0, pages=lambda at, w: at + (1 << 20))
    misplaced('pages behind the end', 'image.layout', 'image', 2, pages=lambda at, w: 1 << 50)
    misplaced('pages that wrap around', 'image.layout', 'image', 0, pages=lambda at, w: (1 << 64) - (2 << 20))
    misplaced('pages over the commit block', 'image.layout', 'image', 0, pages=lambda at, w: 0)
    misplaced('pages over other pages', 'image.layout', 'image', 1, pages=lambda at, w: w.shapes[0].places.pages)
    misplaced('pages within other pages', 'image.layout', 'image', 1, pages=lambda at, w: w.shapes[0].places.pages + (2 << 20))
    misplaced('a bitmap not aligned', 'image.layout', 'image', 0, data_bitmap=lambda at, w: at + 8)
    misplaced('a bitmap over the header', 'image.layout', 'image', 0, data_bitmap=lambda at, w: 4096)
    misplaced('a bitmap over the tables', 'image.layout', 'image', 0, data_bitmap=lambda at, w: w.table_offset)
    misplaced('a bitmap over the tail', 'image.layout', 'image', 1, data_bitmap=lambda at, w: w.tail_offset)
    misplaced('two bitmaps in one place', 'image.layout', 'layer', 0, zero_bitmap=lambda at, w: w.shapes[0].places.data_bitmap)
    misplaced('a bitmap within pages', 'image.layout', 'image', 1, data_bitmap=lambda at, w: w.shapes[0].places.pages + 4096)
    misplaced('digest blocks behind the end', 'image.layout', 'image', 0, digests=lambda at, w: w.tail_offset + 4096)
    misplaced('digest blocks over each other', 'image.layout', 'image', 1, digests=lambda at, w: w.shapes[0].places.digests + 4096)
    misplaced('digest blocks not aligned', 'image.layout', 'image', 0, digests=lambda at, w: at + 512)
    misplaced('a zero bitmap in no layer', 'image.layout', 'image', 0, zero_bitmap=lambda at, w: 1 << 20)
    misplaced('a layer without a zero bitmap', 'image.layout', 'layer', 0, zero_bitmap=lambda at, w: 0)
    lie('tables of a chunk too many', 'image.layout', 'image', tables=lambda w: bytes(8 * 5))
    lie('tables of a chunk too few', 'image.layout', 'image', tables=lambda w: bytes(8 * 3))
    lie('a file size beyond the last area', 'image.layout', 'image', lambda w: w.file.write(9 << 20, bytes(4096)),
        commit={'file_size': 9 << 20})
    for order in golden.ORDERS:
        empty = ImageWriter(replaced('image', blocks=None), golden.ORDERS[order], golden.IMAGE_ID, {})
        expect('no RAM, ' + order, 'image.layout', empty.write().seal().file)
        expect('no RAM, and tables, ' + order, 'image.layout', empty.write().seal(tables=bytes(8)).file)


def test_order_of_areas():
    """A reader relies on the rules, not on the order of areas: pages first, tables and bitmaps behind the tail."""
    for order in golden.ORDERS:
        writer = golden.writer('layer', order)
        place = writer._place

        def elsewhere(n_pages, header_length, writer=writer, place=place):
            _, tail = place(n_pages, header_length)
            at = form.aligned(tail, 4096) + (1 << 20)
            for n, shape in enumerate(writer.shapes):
                moved = at + n * (1 << 20)
                shape.places = Places(shape.places.pages, moved, moved + 8192, moved + 4096 * 5)
            return at - 4096, tail

        writer._place = elsewhere
        writer.write()
        end = max(shape.places.digests + shape.n_chunks * 4096 for shape in writer.shapes)
        writer.file.size = end
        expect('areas in another order, ' + order, None, writer.seal(commit={'file_size': end}).file, base(order))


def test_chunks():
    def entry(n, value):
        def tables(writer):
            true = [writer.entry(shape, c) for shape in writer.shapes for c in range(shape.n_chunks)]
            true[n] = value
            return struct.pack('<4Q', *true)
        return tables

    bitmap = lambda w, block=0: w.shapes[block].places.data_bitmap  # noqa: E731
    lie('an entry that is wrong', 'image.digest', 'image', tables=entry(0, 1))
    lie('an entry that is missing', 'image.digest', 'image', tables=entry(1, 0))
    lie('an entry of a chunk without bits', 'image.digest', 'layer', lambda w: w.file.write(w.shapes[2].places.zero_bitmap, b'\0'),
        tables=entry(3, 1))
    # A chunk without bits: nobody who trusts the entry looks there.
    lie('bits of a chunk whose entry is 0', 'image.digest', 'image', tables=entry(3, 0), pages=False)
    lie('zero bits of a chunk whose entry is 0', 'image.digest', 'layer', tables=entry(3, 0))
    lie('a bit behind the end', 'image.bitmap', 'image', lambda w: w.set_bit(0, 515, 'data_bitmap'))
    lie('a bit behind the end, of a block of eight', 'image.bitmap', 'image', lambda w: w.set_bit(1, 8, 'data_bitmap'))
    lie('a zero bit behind the end', 'image.bitmap', 'layer', lambda w: w.set_bit(0, 515, 'zero_bitmap'))
    lie('both bits', 'image.bitmap', 'layer', lambda w: w.set_bit(0, 4, 'zero_bitmap'))
    lie('a data bit without a digest', 'image.digest', 'image', lambda w: w.set_bit(0, 9, 'data_bitmap'))
    lie('a digest without a data bit', 'image.digest', 'image',
        lambda w: w.file.write(w.shapes[0].places.digests + 8 * 9, b'\1'))
    lie('a digest behind the end', 'image.digest', 'image', lambda w: w.file.write(w.shapes[0].places.digests + 4096 + 8 * 400, b'\1'))
    lie('a data bit of a page of zeros', 'image.bitmap', 'image', lambda w: (
        w.set_bit(0, 9, 'data_bitmap'), w.file.write(w.shapes[0].places.digests + 72, struct.pack('<Q', DIGEST_OF_ZEROS))))
    lie('bits that are big-endian', 'image.digest', 'image', lambda w: w.file.write(bitmap(w), struct.pack('>Q', 8)))
    lie('a digest that is not the page\'s', 'ram.sum', 'image',
        lambda w: w.file.write(w.shapes[0].places.digests + 8 * 3, b'\1'), pages=False)
    lie('a digest that is not the page\'s, and the page', 'image.page', 'image',
        lambda w: w.file.write(w.shapes[0].places.digests + 8 * 3, b'\1'))
    lie('a page that SWITCHOVER does not count', 'ram.counts', 'image', lambda w: w.put_page(0, 7, streams.page(3)))
    lie('a page that changed places', 'ram.sum', 'image', lambda w: (
        w.put_page(0, 514, streams.page(6)), w.put_page(0, 3, streams.page(3))))
    lie('a zero bit more in a layer', None, 'layer', lambda w: w.set_bit(1, 3, 'zero_bitmap'))
    lie('a zero bit over a page of the parent', 'ram.counts', 'layer', lambda w: w.file.write(
        w.shapes[2].places.zero_bitmap, b'\0'))


def test_header_records():
    late = lambda part: ahead('image', 'header end', part)  # noqa: E731
    plant('version 2', 'stream.version', 'image', otherwise_headed(lambda s: image_header(2, s.big_endian, True)))
    plant('two-way', 'stream.record-body', 'image', otherwise_headed(lambda s: image_header(3, s.big_endian, False)))
    plant('another marker', 'stream.magic', 'image', otherwise_headed(lambda s: b'\0' + image_header(3, s.big_endian, True)[1:]))
    plant('page size', 'stream.record-body', 'image', replaced('image', machine=lambda w, s: s.machine(
        'golden', bytes(16), page_size=8192)))
    plant('CRC of the machine header', 'stream.crc', 'image', replaced('image', machine=lambda w, s: (
        s.machine('golden', bytes(16)), setattr(s.pieces[-1], 'octets', machine_header(s.order, 'golden', bytes(16))[:-1] + b'\0'))))
    plant('no STATIC_DATA_END', 'static.missing-end', 'image', replaced('image', static_end=None, switchover=lambda w, s: (
        setattr(s, 'static_octets', b''), w.switchover(s))))
    plant('STATIC_DATA_END twice', 'static.double-end', 'image', ahead('image', 'layout', lambda w, s: s.add(wire.STATIC_DATA_END)))
    plant('static data after its end', 'static.late', 'image', late(lambda w, s: s.host('late')))
    plant('no SECTIONS', 'stream.record-order', 'image', replaced('image', sections=None))
    plant('no FEATURES', 'stream.record-order', 'image', replaced('image', features=None))
    plant('FEATURES without sums', 'stream.record-body', 'image', replaced('image', features=lambda w, s: s.features(4, 0)))
    plant('sums that are not required', 'stream.record-body', 'image', replaced('image', features=lambda w, s: s.features(2, 0)))
    plant('a feature beside sums', 'stream.record-body', 'image', replaced('image', features=lambda w, s: s.features(6, 2)))
    plant('a RAM block twice', 'static.duplicate', 'image', ahead('image', 'sections', lambda w, s: s.ram_block('rom', PAGE, 0)))
    plant('no LAYOUT', 'stream.record-order', 'image', replaced('image', layout=None))
    plant('LAYOUT twice', 'stream.record-order', 'image', late(lambda w, s: s.layout(w.places)))
    plant('LAYOUT ahead of STATIC_DATA_END', 'static.missing-end', 'image', ahead('image', 'static end', lambda w, s: s.layout(w.places)))
    plant('LAYOUT of a block too few', 'stream.record-body', 'image', replaced('image', layout=lambda w, s: s.layout(w.places[:-1])))
    plant('LAYOUT that counts too many', 'stream.record-body', 'image', replaced('image', layout=lambda w, s: s.layout(w.places, count=4)))
    plant('LAYOUT that is too long', 'stream.record-body', 'image', replaced('image', layout=lambda w, s: s.add(
        wire.LAYOUT, s.packed('II', 3, 0) + bytes(32 * 4))))
    plant('flags of LAYOUT', 'stream.record-body', 'image', replaced('image', layout=lambda w, s: s.layout(w.places, flags=1)))
    plant('PARENT in no layer', 'stream.record-order', 'image', late(lambda w, s: s.parent(bytes(16), bytes(16), 'file:x')))
    plant('a layer without PARENT', 'stream.record-order', 'layer', replaced('layer', parent=None))
    plant('PARENT twice', 'stream.record-order', 'layer', ahead('layer', 'header end', golden.plan('layer')['parent']))
    plant('PARENT ahead of LAYOUT', 'stream.record-order', 'layer', {
        **replaced('layer', parent=None), **ahead('layer', 'layout', golden.plan('layer')['parent'])})
    plant('PARENT without a name', 'stream.record-body', 'layer', named(''))
    plant('PARENT whose name is too long', 'stream.record-body', 'layer', named('file:' + 'x' * 4091))
    plant('PARENT whose name has a control character', 'stream.record-body', 'layer', named('file:\n'))
    plant('reserved field of PARENT', 'stream.record-body', 'layer', named('file:x', reserved=1))
    plant('the other reserved field of PARENT', 'stream.record-body', 'layer', named('file:x', reserved_too=1))
    plant('a page channel', 'stream.record-order', 'image', late(lambda w, s: s.page_channels()))
    plant('a disk in the header', 'stream.record-order', 'image', late(lambda w, s: golden.disks(s)))
    plant('an unknown record', 'stream.record-unknown', 'image', late(lambda w, s: s.add(0x77)))
    plant('an unknown optional record', None, 'image', late(lambda w, s: s.add(0x80000077, b'new')))
    plant('padding of a record', 'stream.record-body', 'image', late(lambda w, s: s.add(0x80000077, b'new', padding=b'\1' * 5)))
    plant('CRC of a record', 'stream.crc', 'image', late(lambda w, s: (s.add(0x80000077, b'new'), setattr(
        s.pieces[-1], 'octets', s.pieces[-1].octets.replace(b'new', b'old')))))
    plant('a record above 4 MiB', 'stream.record-length', 'image', late(lambda w, s: (s.add(0x80000077, b''), setattr(
        s.pieces[-1], 'octets', s.packed('IIII', 0x80000077, 5 << 20, 0, 0)))))
    plant('no END', 'channel.cut', 'image', replaced('image', header_end=lambda w, s: setattr(s, 'header_pieces', len(s.pieces))))
    plant('END cut in two', 'channel.cut', 'image', replaced('image', header_end=lambda w, s: (
        s.header_end(), setattr(s.pieces[-1], 'octets', s.pieces[-1].octets[:8]))))
    plant('END twice', 'image.layout', 'image', late(lambda w, s: s.end()))
    plant('a header that is longer than its records', 'image.layout', 'image', replaced('image', header_end=lambda w, s: (
        s.header_end(), setattr(s.pieces[-1], 'octets', s.pieces[-1].octets + bytes(8)))))


def otherwise_headed(make):
    """The image header is there before the plan begins."""
    machine = golden.plan()['machine']
    return replaced('image', machine=lambda w, s: (setattr(s.pieces[0], 'octets', make(s)), machine(w, s)))


def named(name, **how):
    return replaced('layer', parent=lambda w, s: s.parent(w.parent.id, w.parent.root, name, **how))


def test_tail_records():
    def tail(name, id, part, kind='image', at='state'):
        plant(name, id, kind, ahead(kind, at, part))

    def disk(what, id, **how):
        values = {'name': 'disk9', 'size': PAGE, 'identity': 'serial', **how}
        tail(what, id, lambda w, s: s.disk(**values), at='disks')

    disk('a disk', None)
    disk('a disk whose content is here', None, flags=1)
    disk('a disk without a name', 'stream.record-body', name='')
    disk('a disk whose name is too long', 'stream.record-body', name='x' * 64)
    disk('a disk without identity', 'stream.record-body', identity='')
    disk('a disk whose mark is too long', 'stream.record-body', mark='x' * 256)
    disk('flags of a disk', 'stream.record-body', flags=2)
    disk('reserved field of a disk', 'stream.record-body', reserved=1)
    disk('the other reserved field of a disk', 'stream.record-body', reserved_too=1)
    disk('a name that is not text', 'stream.record-body', name='a\x7f')
    tail('a disk twice', 'image.disk', lambda w, s: s.disk('disk1', PAGE, 'x'), 'disks')
    tail('a disk that is too long', 'stream.record-body', lambda w, s: s.add(
        wire.DISK, s.packed('IIQHHHH', 0, 0, 0, 1, 1, 0, 0) + b'abc'))
    tail('a disk after state', 'stream.record-order', lambda w, s: s.disk('disk9', PAGE, 'x'), at='switchover')
    tail('RAM_ONLY beside disks', 'stream.record-order', lambda w, s: s.ram_only(), 'disks')
    tail('a disk beside RAM_ONLY', 'stream.record-order', lambda w, s: s.disk('disk9', PAGE, 'x'), 'layer')
    tail('RAM_ONLY twice', 'stream.record-order', lambda w, s: s.ram_only(), 'layer')
    tail('RAM_ONLY after state', 'stream.record-order', lambda w, s: s.ram_only(), at='switchover')
    tail('RAM_ONLY with a body', 'stream.record-body', lambda w, s: s.add(wire.RAM_ONLY, bytes(8)))
    tail('LAYOUT in the tail', 'stream.record-order', lambda w, s: s.layout(w.places))
    tail('static data in the tail', 'static.late', lambda w, s: s.host('late'))
    tail('pages in the tail', 'stream.record-order', lambda w, s: s.pages(s.memory, 0, 0, {3: streams.page(1)}))
    tail('an unknown record', 'stream.record-unknown', lambda w, s: s.add(0x77))
    tail('an unknown optional record', None, lambda w, s: s.add(0x80000077))
    tail('state after SWITCHOVER', 'stream.record-order', lambda w, s: s.section(1, 2, b''), at='end')
    tail('SWITCHOVER twice', 'stream.record-order', lambda w, s: w.switchover(s), at='end')
    tail('a section that SECTIONS lacks', 'section', lambda w, s: s.section(2, 0, b'', last=True))
    plant('a section that is not complete', 'section', 'image', replaced('image', state=lambda w, s: s.section(0, 0, b'', last=True)))
    plant('no sections', 'section', 'image', replaced('image', state=None))
    plant('no SWITCHOVER', 'stream.record-order', 'image', replaced('image', switchover=None))
    plant('no END', 'channel.cut', 'image', replaced('image', end=None))
    tail('END twice', 'image.layout', lambda w, s: s.end(), at='end')
    plant('a tail that is longer than its records', 'image.layout', 'image', replaced('image', end=lambda w, s: (
        s.end(), setattr(s.pieces[-1], 'octets', s.pieces[-1].octets + bytes(16)))))


def test_switchover():
    def said(name, id, kind='image', **how):
        plant(name, id, kind, replaced(kind, switchover=lambda w, s: w.switchover(s, **how)))

    said('the guest runs', None, flags=1)
    said('audit', 'stream.record-body', flags=2)
    said('flags', 'stream.record-body', flags=4)
    said('a token that is another', 'stream.record-body', token=streams.TOKEN)
    said('static sum', 'static.sum', static_sum=1)
    said('device sum', 'device-state.sum', device_sum=1)
    said('counts that do not add up', 'ram.counts', counts={1: (1, 0, 6)})
    said('zero pages', 'ram.counts', counts={1: (1, 2, 5)})
    said('a page too many', 'ram.counts', counts={1: (2, 0, 6)})
    said('sum of a block', 'ram.sum', sums={1: 5})
    said('sum of a block in a layer', 'ram.sum', 'layer', sums={0: 5})
    said('the layer\'s own pages alone', 'ram.counts', 'layer', counts={0: (1, 0, 514)})
    plant('blocks too few', 'stream.record-body', 'image', replaced('image', switchover=lambda w, s: (
        s.blocks.pop(), w.switchover(s), s.blocks.append(2))))


DISK = 3   # the block that the disk of the golden image with one is
LAST = streams.DISK_SIZE // PAGE


def held_layer(order, parent, size=streams.DISK_SIZE):
    """A layer with the disk over @parent, as 'below': a page that changed, and one that became zeros."""
    parts = golden.plan('held')
    parts['guest disks'] = lambda w, s: (s.guest_disk('disk0', size), s.guest_disk('disk1', 1 << 20, copied=False))
    parts['disks'] = lambda w, s: s.disk('disk0', size, 'serial:golden-0', flags=1)
    parts['parent'] = golden.plan('layer')['parent']
    return ImageWriter(parts, golden.ORDERS[order], golden.LAYER_ID, {(DISK, 1): streams.page(20)}, ((DISK, 17),),
                       Parent(parent, 'file:below')).write().seal().file


def test_held_disks():
    damage('version', 'image.version', 'held', lambda w: 8, bit=0)
    damage('a page of a disk', 'image.page', 'held', lambda w: w.shapes[DISK].places.pages + 17 * PAGE, 'page 17 of disk disk0')
    damage('what fills the last page up', 'image.page', 'held', lambda w: w.shapes[DISK].places.pages + LAST * PAGE + 4095,
           'page %d of disk disk0' % LAST)
    damage('a digest of a disk', 'image.digest', 'held', lambda w: w.shapes[DISK].places.digests, 'chunk 0 of disk disk0')
    damage('padding behind a disk', 'image.layout', 'held', lambda w: w.shapes[DISK].places.pages + (LAST + 1) * PAGE - 1 + PAGE, 'padding')
    lie('bits behind the end of a disk', 'image.bitmap', 'held', lambda w: w.set_bit(DISK, LAST + 1, 'data_bitmap'))
    lie('version 1 with a disk', 'stream.record-body', 'held', commit={'version': 1})
    lie('version 2 without one', 'stream.record-body', 'image', commit={'version': 2})
    misplaced('a disk over memory', 'image.layout', 'held', DISK, pages=lambda true, w: w.shapes[0].places.pages)
    misplaced('a disk that is not aligned', 'image.layout', 'held', DISK, pages=lambda true, w: true + PAGE)
    misplaced('a disk behind the end', 'image.layout', 'held', DISK, pages=lambda true, w: 1 << 40)
    both = wire.SUMS | wire.DISKS
    for order in golden.ORDERS:
        empty = golden.writer('image', order, replaced('image', features=lambda w, s: s.features(both, both))).write()
        expect('version 2 that holds no disk, ' + order, 'image.layout', empty.seal(commit={'version': 2}).file)
    plant('the feature is not there', 'stream.record-body', 'held', replaced(
        'held', features=lambda w, s: s.features(wire.SUMS, wire.SUMS)))
    plant('a place too few', 'stream.record-body', 'held', replaced('held', layout=lambda w, s: s.layout(w.places[:-1])))
    plant('a disk too large', 'stream.record-body', 'held', replaced('held', layout=lambda w, s: s.layout(w.places), guest_disks=huge))
    for what, id, part in (
            ('none is said to be here', 'image.disk', lambda w, s: s.disk('disk0', streams.DISK_SIZE, 'x')),
            ('another is said to be here', 'image.disk', lambda w, s: s.disk('disk1', streams.DISK_SIZE, 'x', flags=1)),
            ('both are said to be here', 'image.disk', lambda w, s: [
                s.disk(name, size, 'x', flags=1) for name, size in (('disk0', streams.DISK_SIZE), ('disk1', 1 << 20))]),
            ('it is of another size', 'image.disk', lambda w, s: s.disk('disk0', streams.DISK_SIZE + 512, 'x', flags=1)),
            ('none of its business', 'image.disk', lambda w, s: s.ram_only()), ('nothing is said', 'image.disk', None)):
        plant(what, id, 'held', replaced('held', disks=part))
    for what, id, how in (('counts of a disk', 'ram.counts', {'counts': {DISK: (2, 0, LAST - 1)}}),
                          ('counts of a disk that do not add up', 'ram.counts', {'counts': {DISK: (3, 0, 5)}}),
                          ('sum of a disk', 'ram.sum', {'sums': {DISK: 7}})):
        plant(what, id, 'held', replaced('held', switchover=lambda w, s, how=how: w.switchover(s, **how)))


def huge(writer, stream):
    """Its GUEST_DISK says so; where its parts are is as for the small one."""
    stream.guest_disk('disk0', (1 << 46) + 512)
    stream.disks[-1] = streams.DISK_SIZE, True
    stream.guest_disk('disk1', 1 << 20, copied=False)


def test_layers_with_disks():
    for order in golden.ORDERS:
        whole, bare = (golden.writer(kind, order).write().seal() for kind in ('held', 'image'))
        expect('a layer with the disk, ' + order, None, held_layer(order, whole), {'below': whole.file})
        expect('a layer without it, ' + order, None, layer_over(whole, order, golden.LAYER_ID).write().seal().file, {'below': whole.file})
        expect('a parent without it, ' + order, 'image.parent', held_layer(order, bare), {'below': bare.file})
        expect('a parent with another, ' + order, 'image.parent', held_layer(order, whole, streams.DISK_SIZE + 512), {'below': whole.file})


def layer_over(parent_writer, order, id, name='below', **how):
    writer = golden.writer('layer', order, parent=Parent(parent_writer, 'file:' + name), **how)
    writer.id = id
    return writer


def test_parents():
    for order, other in (('le', 'be'), ('be', 'le')):
        layer = golden.golden_image(golden.file_name('layer', order))
        parent = base(order)[golden.file_name('image', order)]
        name = golden.file_name('image', order)
        found = expect('no parent, ' + order, 'image.parent', layer)
        check('no parent: where', found.record == 'PARENT')
        expect('a parent of another id, ' + order, 'image.parent', layer, {name: golden.golden_image(golden.file_name('disks', order))})
        changed = golden.writer('image', order, replaced('image', host=lambda w, s: s.host('other'))).write().seal().file
        expect('a parent of another root digest, ' + order, 'image.parent', layer, {name: changed})
        expect('a parent given by hand, ' + order, None, layer, {'elsewhere': parent}, candidates=['elsewhere'])
        expect('one of two given by hand, ' + order, None, layer, {'a': changed, 'b': parent}, candidates=['a', 'b'])
        expect('a wrong one given by hand, ' + order, 'image.parent', layer, {'a': changed}, candidates=['a'])
        expect('a parent given by hand that is not there, ' + order, None, layer, {name: parent}, candidates=['a'])
        expect('nor anywhere else, ' + order, 'image.parent', layer, candidates=['a'])
        elsewhere = ImageWriter(golden.plan('layer'), golden.ORDERS[order], golden.LAYER_ID, {},
                                parent=Parent(golden.writer('image', order).write().seal(), 'nbd://host/export')).write().seal().file
        expect('a parent that is no file, ' + order, 'image.parent', elsewhere)
        expect('a parent that is no file, given by hand, ' + order, None, elsewhere, {'a': parent}, candidates=['a'])
        crossed = layer_over(golden.writer('image', other).write().seal(), order, golden.LAYER_ID).write().seal().file
        expect('a parent of the other octet order, ' + order, None, crossed,
               {'below': golden.golden_image(golden.file_name('image', other))})
        damaged = parent.copy()
        damaged.flip(100)
        found = expect('a damaged parent, ' + order, 'image.crc', layer, {name: damaged})
        check('a damaged parent: which', found.file == name, found)
        damaged = parent.copy()
        damaged.flip(golden.writer('image', order).write().shapes[0].places.pages + 3 * PAGE)
        expect('a damaged page of a parent, ' + order, 'image.page', layer, {name: damaged})
        for what, parts in (
                ('architecture', {'machine': lambda w, s: s.machine('other', streams.UUID)}),
                ('address', {'blocks': lambda w, s: [s.ram_block(n, z, a + 4096, r) for n, z, a, r in streams.BLOCKS]}),
                ('name', {'blocks': lambda w, s: [s.ram_block(n + 'x', z, a, r) for n, z, a, r in streams.BLOCKS]}),
                ('flags', {'blocks': lambda w, s: [s.ram_block(n, z, a) for n, z, a, r in streams.BLOCKS]}),
                ('size', {'blocks': lambda w, s: [s.ram_block(n, z + PAGE, a, r) for n, z, a, r in streams.BLOCKS]}),
                ('number', {'blocks': lambda w, s: [s.ram_block(*b) for b in (*streams.BLOCKS, ('more', PAGE, 0))]})):
            below = golden.writer('image', order, replaced('image', **parts)).write().seal()
            over = layer_over(below, order, golden.LAYER_ID).write().seal().file
            expect('a parent of another %s, %s' % (what, order), 'image.parent', over, {'below': below.file})
        below = golden.writer('image', order, replaced('image', host=lambda w, s: s.host('other'), properties=None)).write().seal()
        expect('a parent of other properties, ' + order, None, layer_over(below, order, golden.LAYER_ID).write().seal().file,
               {'below': below.file})


def chain_of(n, order):
    """@n images that stand on each other; each layer has a page of its own, and the next one makes it zeros."""
    files, below = {}, golden.writer('image', order).write().seal()
    for depth in range(1, n):
        files['below%d' % depth] = below.file
        layer = layer_over(below, order, bytes([depth]) * 16, 'below%d' % depth)
        layer.pages, layer.zeros = {(0, depth + 10): streams.page(depth)}, {(0, depth + 9)}
        below = layer.write().seal()
    return below.file, files


def test_chains():
    top, files = chain_of(5, 'le')
    chain = verified(top, files)
    check('five images', not chain.report.findings and len(chain.images) == 5 and chain.whole, chain.report.findings)
    expect('64 images', None, *chain_of(64, 'be'))
    expect('65 images', 'image.parent', *chain_of(65, 'be'))
    below = golden.writer('image', 'le').write().seal()
    expect('an id twice in a chain', 'image.parent', layer_over(below, 'le', golden.IMAGE_ID).write().seal().file, {'below': below.file})
    own = Parent(golden.writer('image', 'le').write().seal(), 'file:main')
    own.id = golden.LAYER_ID
    expect('a layer over itself', 'image.parent', golden.writer('layer', 'le', parent=own).write().seal().file)


def test_hostile_numbers():
    """Whatever a field says, the reader ends, and has found something."""
    rng = random.Random(7)
    numbers = (0, 1, 7, 4095, 4096, 1 << 21, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)
    for field in ('file_size', 'header_length', 'table_offset', 'table_length', 'tail_offset', 'tail_length'):
        for number in numbers:
            writer = golden.writer('layer', 'le').write()
            file = writer.seal(commit={field: number}).file
            check('%s %d' % (field, number), verified(file, base('le')).report.findings)
    for _ in range(100):
        writer = golden.writer('layer', 'be').write()
        block, what = rng.randrange(3), rng.choice(Places._fields)
        writer.lie[block] = writer.shapes[block].places._replace(**{what: rng.choice(numbers)})
        check('LAYOUT with %s' % (writer.lie,), verified(writer.write().seal().file, base('be')).report.findings)
    whole = golden.golden_image('image-v1-le.img')
    for n in range(200):
        file = whole.copy()
        at = rng.choice((16, 4096, rng.randrange(file.size)))
        file.write(at, rng.randbytes(rng.choice((1, 16, 5000))))
        verified(file)    # no exception


def test_tables_beyond_memory():
    for order in golden.ORDERS:
        writer = golden.writer('image', order).write().seal()
        writer.seal(commit={'file_size': 1 << 50, 'table_offset': 1 << 40, 'table_length': 1 << 40})
        writer.file.truncate(1 << 50)
        try:
            verified(writer.file)
            check('tables of a TiB are read', False)
        except OSError as error:
            check('tables of a TiB', error.errno == errno.EFBIG)


def test_runs():
    rng = random.Random(3)
    for _ in range(200):
        bits = rng.getrandbits(512) & rng.getrandbits(512) if rng.randrange(4) else (1 << 512) - 1
        again = 0
        for start, end in runs(bits):
            again |= (1 << end) - (1 << start)
        check('runs of %x' % bits, again == bits)


def test_files():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, 'image')
        whole = golden.golden_image('image-v1-le.img')
        whole.write(whole.size - 1, b'x')
        whole.save(path)
        storage = Storage(path)
        check('a file is what was saved', storage.read(0, storage.size) == whole.read(0, whole.size))
        for start in (4096, 1 << 20, (6 << 20) + PAGE * 8, whole.size - 2, whole.size - 1, whole.size):
            check('first octet that is not zero from %d' % start,
                  storage.first_nonzero(start, whole.size) == whole.first_nonzero(start, whole.size))
        storage.close()


def test_command():
    command = os.path.join(ROOT, 'scripts', 'verify-image')

    def run(*arguments):
        return subprocess.run([sys.executable, command, *arguments], capture_output=True, text=True, check=False)

    check('command: no file', run().returncode == 2)
    check('command: file that is not there', run(os.path.join(ROOT, 'not-there')).returncode == 2)
    with tempfile.TemporaryDirectory() as directory:
        os.mkdir(os.path.join(directory, 'elsewhere'))
        names = ('image-v1-be.img', 'layer-v1-be.img', 'bad.img', 'elsewhere/layer.img')
        image, layer, bad, lonely = (os.path.join(directory, name) for name in names)
        written = golden.writer('image', 'be').write().seal()
        written.file.save(image)
        for path in (layer, lonely):
            golden.golden_image('layer-v1-be.img').save(path)
        ended = run(layer, '--pages')
        check('command: a layer finds its parent', ended.returncode == 0 and 'layer 1 deep' in ended.stdout and
              '7 pages read, hashed by ' in ended.stdout, ended)
        ended = run(lonely)
        check('command: a layer elsewhere', ended.returncode == 1 and ': PARENT: image.parent: ' in ended.stdout, ended)
        ended = run('--json', lonely, '--parent', image)
        last = json.loads(ended.stdout.splitlines()[-1])
        check('command: --parent', ended.returncode == 0 and last['clean'] and last['sums_checked'] and last['ram_only'] and
              last['chain'] == [lonely, image] and not last['pages_checked'], ended)
        for octets, says in ((pack_order(written.id, written.root, [(0, 3), (2, 1)]), 'order of 2 first touches'),
                             (pack_order(written.id, written.root, [(0, 515)]), 'ignored: it names a page that is not there'),
                             (pack_order(written.id, bytes(16), []), 'ignored: of another image'),
                             (pack_order(written.id, written.root, [(0, 3)])[:-9] + bytes(9), 'ignored: damaged'), (b'', 'too short')):
            with open(image + '.order', 'wb') as file:
                file.write(octets)
            ended = run(image)
            check('command: an order, ' + says, ended.returncode == 0 and says in ended.stdout, ended)
        written.file.flip(written.shapes[2].places.pages + 7)
        written.file.save(bad)
        check('command: pages are read where they are wanted', run(bad).returncode == 0)
        ended = run(bad, '--pages')
        place = '%s:%d: page 0 of rom: image.page: ' % (bad, written.shapes[2].places.pages)
        check('command: a fault', ended.returncode == 1 and ended.stdout.startswith(place), ended)
        first = json.loads(run('--json', '--pages', bad).stdout.splitlines()[0])
        check('command: a fault in JSON', (first['type'], first['id'], first['record']) == ('fault', 'image.page', 'page 0 of rom'), first)
        ended = subprocess.run([sys.executable, os.path.join(ROOT, 'scripts', 'make-golden'), directory], check=False)
        check('make-golden writes images', ended.returncode == 0 and all(
            gzip.open(os.path.join(directory, name + '.gz')).read() == golden.golden_image(name).read(0, golden.golden_image(name).size)
            for name in golden.FILES))


def main():
    for name, test in list(globals().items()):
        if name.startswith('test_'):
            test()
    if judge:
        judge.close()
        check('the engine judged', judge.judged > 300)
    print('%d passed, %d failed' % (results[True], results[False]))
    return 1 if results[False] else 0


if __name__ == '__main__':
    sys.exit(main())
