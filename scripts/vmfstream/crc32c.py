# SPDX-License-Identifier: LGPL-2.1-or-later
"""CRC32C: Castagnoli polynomial, reflected, initial value and final xor all ones. Eight octets a step."""

import struct

_POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41, bits reversed


def _make_tables():
    first = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (_POLYNOMIAL if n & 1 else 0)
        first.append(n)
    tables = [first]
    for _ in range(7):
        last = tables[-1]
        tables.append([(c >> 8) ^ first[c & 0xFF] for c in last])
    return tables


_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7 = _make_tables()


def crc32c(octets, crc=0):
    """CRC of @octets, going on from @crc, the value of what came before."""
    crc ^= 0xFFFFFFFF
    whole = len(octets) & ~7
    for low, high in struct.iter_unpack('<II', octets[:whole]):
        low ^= crc
        crc = (_T7[low & 0xFF] ^ _T6[low >> 8 & 0xFF] ^ _T5[low >> 16 & 0xFF] ^ _T4[low >> 24] ^
               _T3[high & 0xFF] ^ _T2[high >> 8 & 0xFF] ^ _T1[high >> 16 & 0xFF] ^ _T0[high >> 24])
    for octet in octets[whole:]:
        crc = _T0[(crc ^ octet) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
