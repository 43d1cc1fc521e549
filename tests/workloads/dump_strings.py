"""Writes strings of every kind and the bytes of their objects in memory to stdout. Read by tests/strings.rs.

First u32 PY_VERSION_HEX, then for each string: u32 length of its UTF-8, the UTF-8 (lone surrogates replaced
by U+FFFD), u32 length of the object, the object as it lies in memory; u32 0xffffffff ends the stream. All
little-endian.
"""

import ctypes
import struct
import sys


class Subclass(str):
    """Its instances are not compact."""


def utf8(string):
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in string).encode()


def words():
    """Strings as code objects have them, and odd ones."""
    alphabets = {
        "ascii": "abcXYZ019_./",
        "latin1": "a\xe9\xfc\xff",
        "ucs2": "a\xe9\u0416\u4e2d\uffff\udc80",
        "ucs4": "a\xe9\u4e2d\U0001f600\U0010ffff",
    }
    for alphabet in alphabets.values():
        for length in (0, 1, 2, 3, 7, 8, 63, 64, 4095, 4096, 4097, 10000):
            text = (alphabet * (length // len(alphabet) + 1))[-length or len(alphabet) * length :][:length]
            yield text
    code = words.__code__
    yield from (code.co_name, code.co_filename, *code.co_names, *code.co_varnames)
    yield sys.intern("interned " + "by hand")
    yield from sorted(sys.modules)
    # A UTF-8 copy that hangs off the object must not matter.
    cached = "\u0416\u0416"
    ctypes.pythonapi.PyUnicode_AsUTF8AndSize(ctypes.py_object(cached), None)
    yield cached


def main():
    out = sys.stdout.buffer
    out.write(struct.pack("<I", sys.hexversion))
    for string in [*words(), Subclass("not compact")]:
        text = utf8(string)
        memory = ctypes.string_at(id(string), sys.getsizeof(string))
        out.write(struct.pack("<I", len(text)) + text)
        out.write(struct.pack("<I", len(memory)) + memory)
    out.write(struct.pack("<I", 0xFFFFFFFF))


main()
