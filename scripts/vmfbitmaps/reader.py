# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file of bitmaps as a whole: what in it breaks a rule, and what it says of the disk.

Three kinds of findings, as the page has them: ``file``, nothing in it counts; ``bits``, that bitmap says nothing; ``intents``, no
bitmap that records says anything.
"""

import os
import struct

from vmfstream.faults import Fault, Finding

from . import form


class Bitmap:
    def __init__(self, entry):
        self.entry = entry
        self.why = 'it was inconsistent before' if entry.inconsistent else None   # None: it is sound
        self.bits = 0          # as the file has them
        self.granules = 0

    def dirty(self, intents, header):
        """What is dirty once the regions with an intent are counted in."""
        bits = self.bits
        for first, number in form.runs(intents) if self.entry.records else ():
            start = first * header.region_bytes // self.entry.granularity
            end = form.up(min((first + number) * header.region_bytes, header.disk_bytes), self.entry.granularity)
            bits |= (1 << end) - (1 << start)
        return bits


class BitmapFile:
    def __init__(self, name, octets, disk_bytes=None, mtime_ns=None):
        """@disk_bytes, @mtime_ns: of the disk, where they are known; 0 for the latter: it is no file."""
        self.name = name
        self.octets = octets
        self.disk_bytes = disk_bytes
        self.mtime_ns = mtime_ns
        self.findings = []
        self.header = None     # None: damaged as a whole
        self.intents = 0
        self.bitmaps = []

    def verify(self):
        try:
            header = self._read_header()
            self.bitmaps = self._read_entries(header)
            self.header = header
        except Fault as fault:
            self.findings.append(Finding(self.name, self.at * form.SECTOR, self.what, 'file', fault.message))
            self.bitmaps = []
            return self
        self._read_intents()
        first = 1 + self.header.intent_sectors + self.header.bitmaps
        for index, bitmap in enumerate(self.bitmaps):
            self._read_bits(bitmap, index, first)
            first += bitmap.entry.sectors
        self._check_mtime()
        return self

    def _sector(self, number, kind, index, what):
        self.at, self.what = number, what
        octets = self.octets[number * form.SECTOR:(number + 1) * form.SECTOR]
        return form.unseal(bytes(octets), kind, index, self.header and self.header.id, what)

    @staticmethod
    def _demand(condition, message):
        if not condition:
            raise Fault('bitmaps', message)

    # Header and entries: what is wrong there condemns the file

    def _read_header(self):
        demand = self._demand
        self.at, self.what = 0, 'header'
        demand(bytes(self.octets[:8]) == form.MAGIC, 'this is no file of bitmaps')
        body, id = self._sector(0, form.HEADER, 0, 'header')
        size = struct.calcsize(form.HEADER_FIELDS)
        _magic, version, flags, disk, region, intents, bitmaps, sectors, mtime = struct.unpack_from(form.HEADER_FIELDS, body)
        demand(version == form.VERSION, 'version %d; 1 is read' % version)
        demand(not flags & ~form.IN_USE, 'unknown flags 0x%x' % flags)
        demand(not any(body[size:]), 'octets behind the fields that are not zero')
        demand(disk > 0, 'a disk without octets')
        demand(self.disk_bytes in (None, disk), 'it belongs to a disk of %d octets' % disk)
        demand(region == form.region_bytes_of(disk), 'regions of %d octets, not %d' % (region, form.region_bytes_of(disk)))
        expected = form.up(form.up(disk, region), form.PIECE_BITS)
        demand(intents == expected, '%d sectors of intents, not %d' % (intents, expected))
        demand(bitmaps <= form.BITMAPS_MAX, '%d bitmaps' % bitmaps)
        demand(sectors * form.SECTOR <= len(self.octets), '%d sectors, the file has %d octets' % (sectors, len(self.octets)))
        demand(not flags & form.IN_USE or mtime == 0, 'in use, and a time at which the disk was changed')
        return form.Header(id, bool(flags & form.IN_USE), disk, region, intents, bitmaps, sectors, mtime)

    def _read_entries(self, header):
        self.header = header   # for the id
        at, found = 1 + header.intent_sectors + header.bitmaps, []
        try:
            for index in range(header.bitmaps):
                body, _ = self._sector(1 + header.intent_sectors + index, form.ENTRY, index, 'entry %d' % index)
                bitmap = self._read_entry(body, header, at)
                self._demand(bitmap.entry.name not in [b.entry.name for b in found], 'the name %s twice' % bitmap.entry.name)
                found.append(bitmap)
                at += bitmap.entry.sectors
            self.at, self.what = 0, 'header'
            self._demand(at == header.sectors, '%d sectors in all, its bitmaps need %d' % (header.sectors, at))
        except Fault:
            self.header = None
            raise
        return found

    def _read_entry(self, body, header, at):
        demand, size = self._demand, struct.calcsize(form.ENTRY_FIELDS)
        granularity, flags, first, sectors, length = struct.unpack_from(form.ENTRY_FIELDS, body)
        demand(granularity & granularity - 1 == 0 and form.GRANULARITY_MIN <= granularity <= form.GRANULARITY_MAX,
               'a granularity of %d' % granularity)
        demand(not flags & ~(form.RECORDS | form.INCONSISTENT), 'unknown flags 0x%x' % flags)
        demand(1 <= length <= form.NAME_MAX, 'a name of %d octets' % length)
        demand(not any(body[size + length:]), 'octets behind the name that are not zero')
        entry = form.Entry(granularity, bool(flags & form.RECORDS), bool(flags & form.INCONSISTENT), first, sectors,
                           self._text(body[size:size + length]))
        bitmap = Bitmap(entry)
        bitmap.granules = form.up(header.disk_bytes, granularity)
        demand(bitmap.granules <= form.GRANULES_MAX, '%d granules' % bitmap.granules)
        demand(sectors == form.up(bitmap.granules, form.PIECE_BITS), '%d sectors of bits' % sectors)
        demand(first == at, 'its bits begin at sector %d, not %d' % (first, at))
        return bitmap

    def _text(self, octets):
        try:
            text = octets.decode('utf-8')
        except UnicodeDecodeError:
            raise Fault('bitmaps', 'a name that is not UTF-8') from None
        self._demand(not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text), 'a name with a control character')
        return text

    # Intents and bits: what is wrong there makes bitmaps inconsistent

    def _read_words(self, first, number, kind, most, what):
        """@most: bits that may be set."""
        bodies = [self._sector(first + n, kind, n, '%s, sector %d' % (what, n))[0] for n in range(number)]
        bits = form.to_bits(bodies)
        self._demand(bits >> most == 0, '%s: bit %d is beyond the end of the disk' % (what, bits.bit_length() - 1))
        return bits

    def _read_intents(self):
        header = self.header
        try:
            self.intents = self._read_words(1, header.intent_sectors, form.INTENTS, form.up(header.disk_bytes, header.region_bytes),
                                            'intents')
        except Fault as fault:
            self._spoil('intents', fault.message)

    def _spoil(self, id, message):
        self.findings.append(Finding(self.name, self.at * form.SECTOR, self.what, id, message))
        for bitmap in self.bitmaps:
            if bitmap.entry.records and not bitmap.why:
                bitmap.why = message

    def _read_bits(self, bitmap, index, first):
        try:
            bitmap.bits = self._read_words(first, bitmap.entry.sectors, form.BITS + index, bitmap.granules,
                                           'bits of %s' % bitmap.entry.name)
        except Fault as fault:
            self.findings.append(Finding(self.name, self.at * form.SECTOR, self.what, 'bits', fault.message))
            bitmap.why = bitmap.why or fault.message

    def _check_mtime(self):
        """Somebody else wrote the disk: no fault of the file, so no finding."""
        if self.mtime_ns is None or self.header.in_use or self.header.mtime_ns == self.mtime_ns:
            return
        for bitmap in self.bitmaps:
            if bitmap.entry.records and not bitmap.why:
                bitmap.why = 'the disk was changed at another time than the file says'


def summary(file):
    """A dictionary with stable names."""
    held = {'type': 'summary', 'faults': len(file.findings), 'clean': not file.findings}
    if file.header is None:
        return held
    header = file.header
    held.update(disk_bytes=header.disk_bytes, region_bytes=header.region_bytes, in_use=header.in_use, mtime_ns=header.mtime_ns,
                sectors=header.sectors, regions_with_intent=file.intents.bit_count(),
                bitmaps=[_bitmap(file, bitmap) for bitmap in file.bitmaps])
    return held


def _bitmap(file, bitmap):
    dirty = bitmap.dirty(file.intents, file.header)
    return {'name': bitmap.entry.name, 'granularity': bitmap.entry.granularity, 'recording': bitmap.entry.records,
            'inconsistent': bitmap.why, 'dirty_granules': None if bitmap.why else dirty.bit_count(),
            'dirty_granules_in_file': None if bitmap.why else bitmap.bits.bit_count()}


def in_words(held, name):
    state = 'clean' if held['clean'] else '%d fault%s' % (held['faults'], 's' if held['faults'] != 1 else '')
    if 'disk_bytes' not in held:
        return '%s: %s; nothing in it counts' % (name, state)
    parts = ['%s: %s; a disk of %d octets, %s' % (name, state, held['disk_bytes'], 'in use' if held['in_use'] else 'released')]
    parts.append('%d regions of %d octets with an intent' % (held['regions_with_intent'], held['region_bytes']))
    parts += ['%s: %d octets, %s, %s' % (b['name'], b['granularity'], 'recording' if b['recording'] else 'not recording',
                                        'inconsistent (%s)' % b['inconsistent'] if b['inconsistent'] else
                                        '%d granules dirty' % b['dirty_granules']) for b in held['bitmaps']]
    return '; '.join(parts)


def disk_of(path):
    """Size and time of change of a disk, as the page has them."""
    status = os.stat(path)
    if os.path.isfile(path):
        return status.st_size, status.st_mtime_ns
    with open(path, 'rb') as file:
        return file.seek(0, os.SEEK_END), 0
