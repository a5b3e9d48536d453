# SPDX-License-Identifier: LGPL-2.1-or-later
"""XXH3-64 and XXH3-128: libxxhash where it is installed, which hashes at the speed of memory, else the plain ones of xxh3.py.

Both are the same functions of octets; verify-image says which it used, since it decides how long a large image takes.
"""

import ctypes

from . import xxh3


class _Wide(ctypes.Structure):
    _fields_ = [('low', ctypes.c_uint64), ('high', ctypes.c_uint64)]


def _load(name='libxxhash.so.0'):
    """The two functions and what they are called."""
    try:
        library = ctypes.CDLL(name)
        narrow, wide = library.XXH3_64bits, library.XXH3_128bits
    except (OSError, AttributeError):   # not there, or older than XXH3
        return xxh3.xxh3_64, xxh3.xxh3_128, 'plain Python'
    narrow.argtypes = wide.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    narrow.restype, wide.restype = ctypes.c_uint64, _Wide

    def xxh3_64(octets):
        octets = octets if isinstance(octets, bytes) else bytes(octets)
        return narrow(octets, len(octets))

    def xxh3_128(octets):
        octets = octets if isinstance(octets, bytes) else bytes(octets)
        digest = wide(octets, len(octets))
        return digest.high.to_bytes(8, 'big') + digest.low.to_bytes(8, 'big')

    return xxh3_64, xxh3_128, 'libxxhash'


xxh3_64, xxh3_128, IMPLEMENTATION = _load()
