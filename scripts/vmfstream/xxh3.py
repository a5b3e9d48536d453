# SPDX-License-Identifier: LGPL-2.1-or-later
"""XXH3 with seed 0, of 64 and of 128 bits, in plain Python.

Above 240 octets the sum over the stripes of one block commutes, so each lane is summed on its own over slices, which is what
makes a page cost about a tenth of a millisecond here.
"""

import struct
from operator import xor

_SECRET = bytes.fromhex(
    'b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221'
    'b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8'
    'fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb17'
    '0ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e')
_M64 = 0xFFFFFFFFFFFFFFFF
_M32 = 0xFFFFFFFF
_P32_1, _P32_2, _P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_P64_1, _P64_2, _P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P64_4, _P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

_STRIPE = 64
_BLOCK = 1024  # 16 stripes: the secret moves by 8 octets a stripe and has 192 - 64 to spend
_WORDS = struct.unpack('<24Q', _SECRET)
_LANE_KEYS = [_WORDS[i:i + 16] for i in range(8)]
_SCRAMBLE_KEYS = _WORDS[16:24]


def _u32(octets, at):
    return int.from_bytes(octets[at:at + 4], 'little')


def _u64(octets, at):
    return int.from_bytes(octets[at:at + 8], 'little')


def _fold(a, b):
    product = a * b
    return (product ^ product >> 64) & _M64


def _avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & _M64
    return h ^ h >> 32


def _avalanche64(h):
    h ^= h >> 33
    h = h * _P64_2 & _M64
    h ^= h >> 29
    h = h * _P64_3 & _M64
    return h ^ h >> 32


def _rotated(h, n):
    return (h << n | h >> (64 - n)) & _M64


def _to_16(d):
    n = len(d)
    if n == 0:
        return _avalanche64(_u64(_SECRET, 56) ^ _u64(_SECRET, 64))
    if n <= 3:
        combined = d[0] << 16 | d[n >> 1] << 24 | d[n - 1] | n << 8
        return _avalanche64(combined ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4))
    if n <= 8:
        h = (_u32(d, n - 4) + (_u32(d, 0) << 32)) ^ _u64(_SECRET, 8) ^ _u64(_SECRET, 16)
        h ^= _rotated(h, 49) ^ _rotated(h, 24)
        h = h * 0x9FB21C651E98DF25 & _M64
        h ^= (h >> 35) + n
        h = h * 0x9FB21C651E98DF25 & _M64
        return h ^ h >> 28
    low = _u64(d, 0) ^ _u64(_SECRET, 24) ^ _u64(_SECRET, 32)
    high = _u64(d, n - 8) ^ _u64(_SECRET, 40) ^ _u64(_SECRET, 48)
    swapped = int.from_bytes(low.to_bytes(8, 'little'), 'big')
    return _avalanche((n + swapped + high + _fold(low, high)) & _M64)


def _mix16(d, at, key):
    return _fold(_u64(d, at) ^ _u64(_SECRET, key), _u64(d, at + 8) ^ _u64(_SECRET, key + 8))


def _to_128(d):
    n = len(d)
    h = n * _P64_1
    for i in range((n - 1) // 32, -1, -1):
        h += _mix16(d, 16 * i, 32 * i) + _mix16(d, n - 16 * (i + 1), 32 * i + 16)
    return _avalanche(h & _M64)


def _to_240(d):
    n = len(d)
    h = n * _P64_1
    for i in range(8):
        h += _mix16(d, 16 * i, 16 * i)
    h = _avalanche(h & _M64)
    for i in range(8, n // 16):
        h += _mix16(d, 16 * i, 16 * (i - 8) + 3)
    return _avalanche((h + _mix16(d, n - 16, 136 - 17)) & _M64)


def _accumulate(lanes, words, keys):
    """Adds the stripes in @words; keys[i] are lane i's, one a stripe."""
    for i in range(8):
        mixed = map(xor, words[i::8], keys[i])
        lanes[i] = (lanes[i] + sum(words[i ^ 1::8]) + sum([(k & _M32) * (k >> 32) for k in mixed])) & _M64


def _scramble(lanes):
    for i in range(8):
        h = lanes[i]
        lanes[i] = (h ^ h >> 47 ^ _SCRAMBLE_KEYS[i]) * _P32_1 & _M64


def _lanes(d):
    """The eight lanes after all of @d, which is longer than 240 octets."""
    n = len(d)
    lanes = [_P32_3, _P64_1, _P64_2, _P64_3, _P64_4, _P32_2, _P64_5, _P32_1]
    blocks = (n - 1) // _BLOCK
    for b in range(blocks):
        _accumulate(lanes, struct.unpack_from('<128Q', d, b * _BLOCK), _LANE_KEYS)
        _scramble(lanes)
    stripes = (n - 1 - blocks * _BLOCK) // _STRIPE
    if stripes:
        _accumulate(lanes, struct.unpack_from('<%dQ' % (8 * stripes), d, blocks * _BLOCK), _LANE_KEYS)
    last_keys = struct.unpack_from('<8Q', _SECRET, 192 - 64 - 7)
    _accumulate(lanes, struct.unpack_from('<8Q', d, n - _STRIPE), [(k,) for k in last_keys])
    return lanes


def _merged(lanes, key, h):
    for i in range(4):
        h += _fold(lanes[2 * i] ^ _u64(_SECRET, key + 16 * i), lanes[2 * i + 1] ^ _u64(_SECRET, key + 8 + 16 * i))
    return _avalanche(h & _M64)


def xxh3_64(octets):
    n = len(octets)
    if n <= 16:
        return _to_16(octets)
    if n <= 128:
        return _to_128(octets)
    if n <= 240:
        return _to_240(octets)
    return _merged(_lanes(octets), 11, n * _P64_1)


# 128 bits: two halves, low and high.

def _swapped(h, octets=8):
    return int.from_bytes(h.to_bytes(octets, 'little'), 'big')


def _wide_to_8(d):
    n = len(d)
    if n == 0:
        return tuple(_avalanche64(_u64(_SECRET, at) ^ _u64(_SECRET, at + 8)) for at in (64, 80))
    if n <= 3:
        low = d[0] << 16 | d[n >> 1] << 24 | d[n - 1] | n << 8
        high = _swapped(low, 4)
        high = (high << 13 | high >> 19) & _M32
        return (_avalanche64(low ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4)),
                _avalanche64(high ^ _u32(_SECRET, 8) ^ _u32(_SECRET, 12)))
    keyed = (_u32(d, 0) + (_u32(d, n - 4) << 32)) ^ _u64(_SECRET, 16) ^ _u64(_SECRET, 24)
    product = keyed * (_P64_1 + (n << 2))
    low, high = product & _M64, product >> 64
    high = high + (low << 1) & _M64
    low ^= high >> 3
    low = (low ^ low >> 35) * 0x9FB21C651E98DF25 & _M64
    return low ^ low >> 28, _avalanche(high)


def _wide_to_16(d):
    n = len(d)
    first, last = _u64(d, 0), _u64(d, n - 8)
    product = (first ^ last ^ _u64(_SECRET, 32) ^ _u64(_SECRET, 40)) * _P64_1
    low, high = product + ((n - 1) << 54) & _M64, product >> 64
    last ^= _u64(_SECRET, 48) ^ _u64(_SECRET, 56)
    high = high + last + (last & _M32) * (_P32_2 - 1) & _M64
    product = (low ^ _swapped(high)) * _P64_2
    return _avalanche(product & _M64), _avalanche((product >> 64) + high * _P64_2 & _M64)


def _mix32(low, high, d, first, second, key):
    low = low + _mix16(d, first, key) & _M64 ^ _u64(d, second) + _u64(d, second + 8) & _M64
    high = high + _mix16(d, second, key + 16) & _M64 ^ _u64(d, first) + _u64(d, first + 8) & _M64
    return low, high


def _wide_to_240(d):
    n = len(d)
    low, high = n * _P64_1 & _M64, 0
    if n <= 128:
        for i in range((n - 1) // 32, -1, -1):
            low, high = _mix32(low, high, d, 16 * i, n - 16 * (i + 1), 32 * i)
    else:
        for i in range(4):
            low, high = _mix32(low, high, d, 32 * i, 32 * i + 16, 32 * i)
        low, high = _avalanche(low), _avalanche(high)
        for i in range(4, n // 32):
            low, high = _mix32(low, high, d, 32 * i, 32 * i + 16, 3 + 32 * (i - 4))
        low, high = _mix32(low, high, d, n - 16, n - 32, 136 - 17 - 16)
    return (_avalanche(low + high & _M64),
            -_avalanche(low * _P64_1 + high * _P64_4 + n * _P64_2 & _M64) & _M64)


def _wide(octets):
    n = len(octets)
    if n <= 8:
        return _wide_to_8(octets)
    if n <= 16:
        return _wide_to_16(octets)
    if n <= 240:
        return _wide_to_240(octets)
    lanes = _lanes(octets)
    return _merged(lanes, 11, n * _P64_1), _merged(lanes, 192 - 64 - 11, ~(n * _P64_2) & _M64)


def xxh3_128(octets):
    """In canonical form: 16 octets, the most significant one first."""
    low, high = _wide(octets)
    return struct.pack('>QQ', high, low)
