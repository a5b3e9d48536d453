#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The independent readers of dirty bitmaps, in files and in streams, accept what is right and name what is not.

Each planted fault is a golden file with one sector replaced, or one octet changed, or a golden stream with one message replaced; the first
thing that the reader finds has to be that fault. Each of them is given to the engine as well (JUDGE, tests/judge-bitmaps), which has to
make the same of it: this is where the two understandings of the pages meet.

usage: test-verify-bitmaps.py JUDGE
"""

import json
import os
import random
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'scripts'))

from vmfbitmaps import form, golden  # noqa: E402
from vmfbitmaps.golden import BITMAPS, DISK_BYTES, FILES, MTIME_NS, Writer  # noqa: E402
from vmfbitmaps.reader import BitmapFile, summary  # noqa: E402
from vmfstream import bitmaps as section  # noqa: E402
from vmfstream import golden as streams  # noqa: E402
from vmfstream.verify import Verifier  # noqa: E402

results = {True: 0, False: 0}
BITS_OF_FINE = form.BITS + 1   # 13 sectors


def check(name, condition, detail=''):
    results[bool(condition)] += 1
    if not condition:
        print('FAILED: %s: %s' % (name, detail))


class Judge:
    """The engine, as tests/judge-bitmaps."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.directory = tempfile.mkdtemp(prefix='vmf-judge-')
        self.path = os.path.join(self.directory, 'bitmaps')
        self.judged = 0

    def ask(self, octets, disk_bytes=None):
        """Of a file of bitmaps, or without @disk_bytes the content of a section."""
        with open(self.path, 'wb') as file:
            file.write(octets)
        self.process.stdin.write('section\t%s\n' % self.path if disk_bytes is None else 'file\t%s\t%d\n' % (self.path, disk_bytes))
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, 'the judge ended: %s' % self.process.wait()
        self.judged += 1
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        check('the judge ends well', self.process.wait() == 0)
        os.unlink(self.path)
        os.rmdir(self.directory)


judge = Judge(sys.argv[1])


def verdict(file):
    """What the judge would say, by this reader."""
    if file.header is None:
        return None
    regions = [first + n for first, number in form.runs(file.intents) for n in range(number)]
    return {'regions': None if 'intents' in [f.id for f in file.findings] else regions, 'bitmaps': [_of(file, b) for b in file.bitmaps]}


def _of(file, bitmap):
    unit, end = bitmap.entry.granularity, file.header.disk_bytes
    octets = [[first * unit, min((first + number) * unit, end) - first * unit] for first, number in form.runs(bitmap.bits)]
    return [bitmap.entry.name, unit, bitmap.entry.records, not bitmap.why, [] if bitmap.why else octets[:64]]


def expect(name, id, octets, disk_bytes=DISK_BYTES):
    """@id: of the first finding; None: there is none."""
    file = BitmapFile('main', octets, disk_bytes).verify()
    found = file.findings[0].id if file.findings else None
    check(name, found == id, 'expected %s, found %s' % (id, file.findings[:3]))
    mine, its = verdict(file), judge.ask(octets, disk_bytes)
    if mine and its and mine['regions'] is None:    # what is left of damaged intents is nobody's
        its['regions'] = None
    check('%s, by the engine' % name, mine == its, '%s, the engine makes %s of it' % (mine, its))
    return file


def header(**change):
    writer = Writer()
    how = {key: change.pop(key) for key in ('magic', 'version', 'flags', 'rest') if key in change}
    return writer.replace(0, form.pack_header(writer.header._replace(**change), **how)).octets()


def entry(index=0, **change):
    writer = Writer()
    how = {key: change.pop(key) for key in ('flags', 'name_length', 'rest') if key in change}
    body = form.pack_entry(writer.entries[index]._replace(**change), **how)
    return writer.replace(writer.find(form.ENTRY, index), body).octets()


def sector(which, nth=0, **change):
    writer = Writer()
    return writer.replace(writer.find(which, nth), **change).octets()


# Cases

def test_golden_files():
    for name, in_use in FILES.items():
        with open(os.path.join(ROOT, 'tests', 'golden', name), 'rb') as file:
            octets = file.read()
        check('%s is what make-golden writes' % name, octets == golden.golden_file(name))
        file = expect(name, None, octets)
        check('%s: bits' % name, [form.runs(b.bits) for b in file.bitmaps] == [list(runs) for *_, runs in BITMAPS])
        check('%s: use' % name, file.header.in_use == in_use and file.header.mtime_ns == (0 if in_use else MTIME_NS))
        held = {b['name']: b['dirty_granules'] for b in summary(file)['bitmaps']}
        expected = {'daily': 10 - 4 + 64, 'wöchentlich': 6 + 8192, 'stopped': 4, 'doubtful': None, 'coarse': 1} if in_use else \
            {'daily': 10, 'wöchentlich': 6, 'stopped': 4, 'doubtful': None, 'coarse': 0}
        check('%s: dirty' % name, held == expected, held)


def test_time_of_the_disk():
    octets = Writer(False).octets()
    for mtime, sound in ((MTIME_NS, True), (MTIME_NS + 1, False), (0, False)):
        file = BitmapFile('main', octets, DISK_BYTES, mtime).verify()
        check('changed at %d' % mtime, not file.findings and not file.bitmaps[0].why == sound and not file.bitmaps[2].why)
    check('in use, it is not told', not BitmapFile('main', Writer().octets(), DISK_BYTES, 5).verify().bitmaps[0].why)


def test_shapes():
    """Disks whose last region, word or granule is short or just full, and more than one sector of intents."""
    unit = form.REGION_MIN
    for disk in (512, 4096, unit, unit + 512, 62 * 64 * unit, 62 * 64 * unit + 512, form.REGIONS_MAX * unit,
                 form.REGIONS_MAX * unit + 512, 1 << 46):
        regions = form.up(disk, form.region_bytes_of(disk))
        bitmaps = (('a', 64 << 20, True, False, ((form.up(disk, 64 << 20) - 1, 1),)), ('b', 64 << 20, True, False, ((0, 1),)))
        expect('a disk of %d octets' % disk, None, Writer(True, disk, bitmaps, {0, regions - 1}).octets(), disk)
    expect('granules of the whole disk', None, Writer(True, 64 << 20, (('a', 64 << 20, True, False, ((0, 1),)),), ()).octets(), 64 << 20)
    expect('64 bitmaps', None, Writer(bitmaps=[('b%d' % n, 1 << 20, n % 2 == 0, False, ((n % 25, 1),)) for n in range(64)]).octets())
    expect('none', None, Writer(bitmaps=()).octets())
    expect('a released file with intents', None, Writer(False).replace(1, b'\1').octets())
    expect('more octets than sectors', None, Writer().octets() + b'more')


def test_header():
    expect('empty', 'file', b'')
    expect('cut in the header', 'file', Writer().octets()[:300])
    expect('magic', 'file', header(magic=b'vmf-bitz'))
    expect('version', 'file', header(version=2))
    expect('flags', 'file', header(flags=3))
    expect('octets behind the header', 'file', header(rest=bytes(7) + b'x'))
    expect('another disk', 'file', Writer().octets(), DISK_BYTES + 512)
    expect('a disk without octets', 'file', header(disk_bytes=0), 512)
    expect('regions', 'file', header(region_bytes=8 << 20))
    expect('sectors of intents', 'file', header(intent_sectors=2))
    expect('65 bitmaps', 'file', header(bitmaps=65))
    expect('a bitmap less', 'file', header(bitmaps=len(BITMAPS) - 1))
    expect('a bitmap more', 'file', header(bitmaps=len(BITMAPS) + 1))
    for sectors in (0, 1, Writer().header.sectors - 1, Writer().header.sectors + 1, (1 << 64) - 1):
        expect('%d sectors' % sectors, 'file', header(sectors=sectors) + bytes(form.SECTOR))
    expect('in use, and a time', 'file', header(mtime_ns=1))
    expect('kind of the header', 'file', sector(form.HEADER, kind=form.INTENTS))
    expect('index of the header', 'file', sector(form.HEADER, index=1))
    writer = Writer()
    expect('the header of another writing', 'file', writer.replace(0, id=golden.ID + 1).octets())


def test_entries():
    for granularity in (0, 1, 256, 768, 128 << 20, 1 << 31):
        expect('granularity %d' % granularity, 'file', entry(granularity=granularity))
    expect('another granularity', 'file', entry(granularity=512))
    expect('flags', 'file', entry(flags=4))
    expect('first sector', 'file', entry(first_sector=8))
    expect('a bitmap upon the one before', 'file', entry(1, first_sector=7))
    expect('sectors of bits', 'file', entry(sectors=2))
    expect('no sectors of bits', 'file', entry(sectors=0))
    expect('no name', 'file', entry(name=''))
    expect('a name of 255 octets', None, entry(name='n' * 255))
    expect('a name of 256 octets', 'file', entry(name='n' * 256))
    expect('a name beyond the sector', 'file', entry(name_length=(1 << 32) - 1))
    expect('a name that is not UTF-8', 'file', entry(name=b'\xff\xfe'))
    expect('a line feed in a name', 'file', entry(name='a\nb'))
    expect('DEL in a name', 'file', entry(name='a\x7fb'))
    expect('a control character of two octets in a name', 'file', entry(name='a\x85b'))
    expect('just no control character', None, entry(name='a\xa0b'))
    expect('a zero in a name', 'file', entry(name='a\0b'))
    expect('a name twice', 'file', entry(1, name='daily'))
    expect('octets behind the name', 'file', entry(rest=b'\1'))
    expect('kind of an entry', 'file', sector(form.ENTRY, 1, kind=form.BITS))
    expect('index of an entry', 'file', sector(form.ENTRY, 1, index=2))
    expect('an entry of another writing', 'file', sector(form.ENTRY, 1, id=1))
    fine = Writer(True, 4 << 40, (('a', 1024, True, False, ()),)[:0])
    fine.header = fine.header._replace(bitmaps=1, sectors=fine.header.sectors + 1)
    fine.replace(0, form.pack_header(fine.header))
    fine._add(form.ENTRY, [form.pack_entry(form.Entry(512, True, False, fine.header.sectors, 1 << 21, 'a'))])
    expect('too fine for the disk', 'file', fine.octets(), 4 << 40)


def test_bits():
    end = form.up(DISK_BYTES, 65536)
    expect('a bit beyond the end', 'bits', sector(form.BITS, body=(1 << end).to_bytes(form.BODY, 'little')))
    expect('the last bit', None, sector(form.BITS, body=(1 << end - 1).to_bytes(form.BODY, 'little')))
    expect('the last bit of the sector', 'bits', sector(form.BITS, body=(1 << 3967).to_bytes(form.BODY, 'little')))
    expect('kind of bits', 'bits', sector(form.BITS, kind=form.BITS + 2))
    expect('index of bits', 'bits', sector(BITS_OF_FINE, 5, index=6))
    expect('bits of another writing', 'bits', sector(BITS_OF_FINE, 12, id=1))
    writer = Writer()
    a, b = writer.find(BITS_OF_FINE, 3), writer.find(BITS_OF_FINE, 4)
    writer.sectors[a], writer.sectors[b] = writer.sectors[b], writer.sectors[a]
    expect('two that changed places', 'bits', writer.octets())
    file = expect('the last sector damaged', 'bits', flipped(Writer().octets(), writer.find(BITS_OF_FINE, 12) * form.SECTOR))
    check('only that bitmap', [bool(b.why) for b in file.bitmaps] == [False, True, False, True, False])


def test_intents():
    file = expect('a region beyond the end', 'intents', sector(form.INTENTS, body=b'\x80'))
    check('all that record', [bool(b.why) for b in file.bitmaps] == [True, True, False, True, True])
    expect('the last region', None, sector(form.INTENTS, body=b'\x40'))
    expect('kind of intents', 'intents', sector(form.INTENTS, kind=form.BITS))
    expect('intents of another writing', 'intents', sector(form.INTENTS, id=1))


def flipped(octets, at, bit=0):
    octets = bytearray(octets)
    octets[at] ^= 1 << bit
    return bytes(octets)


def test_any_octet():
    """One bit in each place of importance, some of the rest: found in the sector where it is."""
    octets, rng = Writer().octets(), random.Random(5)
    for at in sorted({*range(0, 60), *range(form.SECTOR - 20, form.SECTOR), *rng.sample(range(len(octets)), 300)}):
        number = at // form.SECTOR
        id = 'intents' if number == 1 else 'file' if number < 2 + len(BITMAPS) else 'bits'
        file = expect('octet %d' % at, id, flipped(octets, at, rng.randrange(8)))
        check('octet %d: where' % at, file.findings[0].offset // form.SECTOR == number, file.findings)


def test_cut():
    octets = Writer().octets()
    for length in sorted({0, 1, 511, *range(512, len(octets), 512), len(octets) - 1}):
        expect('cut at %d' % length, 'file', octets[:length])


def test_program():
    program = os.path.join(ROOT, 'scripts', 'verify-bitmaps')
    with tempfile.TemporaryDirectory() as folder:
        disk, path = os.path.join(folder, 'disk'), os.path.join(folder, 'disk.bitmaps')
        with open(disk, 'wb') as file:
            file.truncate(DISK_BYTES)
        os.utime(disk, ns=(MTIME_NS, MTIME_NS))

        def run(octets, *arguments):
            with open(path, 'wb') as file:
                file.write(octets)
            done = subprocess.run([program, path, *arguments], stdout=subprocess.PIPE, text=True)
            return done.returncode, done.stdout

        code, said = run(Writer(False).octets(), '--disk', disk, '--json')
        held = json.loads(said.splitlines()[-1])
        check('the program says what there is', code == 0 and held['clean'] and held['bitmaps'][0]['dirty_granules'] == 10, said)
        os.utime(disk, ns=(1, 1))
        code, said = run(Writer(False).octets(), '--disk', disk)
        check('it compares the time', code == 0 and 'inconsistent (the disk was changed' in said, said)
        code, said = run(flipped(Writer().octets(), 3000))
        check('it names a fault', code == 1 and said.startswith(path + ':2560: entry 3: file: '), said)
        check('it names what it cannot read', subprocess.run([program, path + 'x'], stderr=subprocess.PIPE).returncode == 2)


# The section of a stream

def moved(**messages):
    """The golden messages with some replaced; None: nothing at all."""
    made = streams.bitmap_messages()
    for name, octets in messages.items():
        name = name.replace('_', ' ')
        assert name in made, name
        made[name] = octets or b''
    return made


def verdict_of(bitmaps):
    """What the judge would say, by this reader: the disks one after the other."""
    said = []
    for bitmap in bitmaps.bitmaps:
        sound, unit = not bitmap.flags & section.INCONSISTENT, bitmap.granularity
        octets = [[first * unit, min((first + number) * unit, bitmap.disk_bytes) - first * unit]
                  for first, number in form.runs(bitmap.bits() if sound else 0)]
        if not bitmap.flags & section.GONE:
            said.append([bitmap.disk, bitmap.name, unit, bool(bitmap.flags & section.RECORDS), bool(bitmap.flags & section.PERSISTENT),
                         sound, octets])
    return sorted(said)


def expect_moved(name, good, messages):
    """In a stream of either byte order, and by the engine."""
    verdicts = []
    for big_endian in (False, True):
        stream = streams.write(streams.bitmap_plan(messages), 3, big_endian)
        verifier = Verifier()
        report = verifier.verify(('main', memoryview(stream.octets())))
        check('%s, %s' % (name, 'be' if big_endian else 'le'), [f.id for f in report.findings] == ([] if good else ['section']),
              report.findings[:3])
        verdicts.append(verdict_of(verifier.bitmaps) if verifier.bitmaps else None)
    its = judge.ask(b''.join(messages.values()))
    check('%s, by the engine' % name, verdicts == [its and sorted(its)] * 2, '%s, the engine makes %s of it' % (verdicts, its))


def test_golden_streams():
    for name, (version, big_endian) in streams.BITMAP_FILES.items():
        with open(os.path.join(ROOT, 'tests', 'golden', name), 'rb') as file:
            octets = file.read()
        check('%s is what make-golden writes' % name, octets == streams.golden_bitmap_stream(version, big_endian).octets())
        verifier = Verifier()
        report = verifier.verify(('main', memoryview(octets)))
        check('%s is clean' % name, not report.findings and not report.notes, report.findings)
        held = {b['name']: (b['dirty_granules'], b['recording'], b['persistent'], b['inconsistent']) for b in verifier.bitmaps.summary()}
        check('%s: bitmaps' % name, held == {'fine': (5, True, False, False), 'daily': (3, True, True, False),
                                            'wöchentlich': (1, False, False, True)}, held)
    expect_moved('the golden messages', True, moved())


def bitmap(granularity=512, disk_bytes=streams.DISK_SIZE, disk='disk0', name='fine', index=0, flags=0):
    return moved(fine=streams.bitmap_message(index, disk, name, granularity, disk_bytes, flags))


def test_messages():
    message, bits = streams.message, streams.bits_message
    expect_moved('nothing', False, {})
    expect_moved('none of them', True, {'end': message(section.END, 'II', 0, 0)})
    expect_moved('an index out of order', False, bitmap(index=1))
    for granularity in (0, 1, 256, 513, 128 << 20):
        expect_moved('granularity %d' % granularity, False, bitmap(granularity))
    expect_moved('flags', False, bitmap(flags=8))
    expect_moved('no name', False, bitmap(name=''))
    expect_moved('no disk', False, bitmap(disk=''))
    expect_moved('a name of 255 octets', True, bitmap(name='n' * 255))
    expect_moved('a name of 256 octets', False, bitmap(name='n' * 256))
    expect_moved('a control character', False, bitmap(name='a\tb'))
    expect_moved('a control character of two octets', False, bitmap(name='a\x80b'))
    expect_moved('a disk without octets', False, bitmap(disk_bytes=0))
    expect_moved('too fine', False, bitmap(disk_bytes=1 << 50))
    expect_moved('a disk of two sizes', False, bitmap(disk_bytes=streams.DISK_SIZE + 512))
    expect_moved('twice', False, bitmap(name='short-lived'))
    expect_moved('a body with more', False, moved(fine=message(section.BITMAP, 'IIIHHQ', 0, 512, 0, 5, 4, streams.DISK_SIZE,
                                                             rest=b'disk0fine!')))
    expect_moved('an unknown type', False, moved(fine=message(5, 'I', 0)))
    expect_moved('a type of zero', False, moved(fine=message(0, 'I', 0)))
    expect_moved('too long', False, moved(fine=message(section.BITMAP, '', rest=bytes(1025))))
    expect_moved('longer than the section', False, moved(end=streams.message(section.END, 'II', 4, 0)[:-1]))
    expect_moved('bits of no bitmap', False, moved(second_bits=bits(4, 0, 1)))
    expect_moved('bits beyond the end', False, moved(second_bits=bits(1, 0, 1 << 256)))
    expect_moved('the last bit', True, moved(second_bits=bits(0, 0, 1 << 640)))
    expect_moved('one bit more', False, moved(second_bits=bits(0, 0, 1 << 641)))
    expect_moved('a piece beyond the end', False, moved(second_bits=bits(0, 1, 0)))
    expect_moved('a piece far beyond the end', False, moved(second_bits=bits(0, (1 << 64) - 1, 0)))
    expect_moved('a reserved field of bits', False, moved(second_bits=bits(0, 0, 1, reserved=1)))
    expect_moved('bits cut short', False, moved(second_bits=message(section.BITS, 'IIQ', 0, 0, 0, rest=bytes(488))))
    expect_moved('bits after the state', False, moved(end=bits(3, 0, 1) + message(section.END, 'II', 4, 0)))
    expect_moved('a state of no bitmap', False, moved(states=message(section.STATE, 'II', 9, 0)))
    expect_moved('a state twice', False, moved(end=message(section.STATE, 'II', 0, 1) + message(section.END, 'II', 4, 0)))
    expect_moved('flags of a state', False, moved(states=message(section.STATE, 'II', 0, 16)))
    expect_moved('no states', False, moved(states=None))
    expect_moved('no end', False, moved(end=None))
    expect_moved('the wrong number', False, moved(end=message(section.END, 'II', 3, 0)))
    expect_moved('a reserved field of the end', False, moved(end=message(section.END, 'II', 4, 1)))
    expect_moved('something after the end', False, moved(end=2 * message(section.END, 'II', 4, 0)))
    expect_moved('half a header after the end', False, moved(end=message(section.END, 'II', 4, 0) + bytes(4)))


def test_too_many_bitmaps():
    for number in (64, 65):
        made = {str(n): streams.bitmap_message(n, 'disk1', 'b%d' % n, 65536, streams.SHARED_SIZE) for n in range(number)}
        made['states'] = b''.join(streams.message(section.STATE, 'II', n, 0) for n in range(number))
        expect_moved('%d bitmaps of a disk' % number, number == 64, {**made, 'end': streams.message(section.END, 'II', number, 0)})


def main():
    for name, test in list(globals().items()):
        if name.startswith('test_'):
            test()
    check('the engine judged', judge.judged > 450)
    judge.close()
    print('%d passed, %d failed' % (results[True], results[False]))
    return 1 if results[False] else 0


if __name__ == '__main__':
    sys.exit(main())
