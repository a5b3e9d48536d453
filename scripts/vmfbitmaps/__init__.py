# SPDX-License-Identifier: LGPL-2.1-or-later
"""An independent reader of files of dirty bitmaps, written from docs/bitmap-format.rst alone.

It shares no code with the engine, so that the two find each other's misreadings of the page. verify-bitmaps is the program.
"""
