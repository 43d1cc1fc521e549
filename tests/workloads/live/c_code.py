"""C code that works with the GIL released, in two threads at the same time."""

import hashlib

try:
    from zlib import compress as work
except ImportError:
    # A build without libraries.
    from hashlib import md5 as work

from harness import Crew, run

TEXT = bytes(range(256)) * 1024


def compress():
    for _ in range(2):
        work(TEXT)


def digest():
    for _ in range(2):
        hashlib.sha256(TEXT).digest()


CREW = Crew(["compressor", "digester"], [compress, digest])


def body():
    CREW.round()
