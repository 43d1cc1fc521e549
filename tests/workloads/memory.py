"""Phases whose memory is known, each in a function of its own. Waits for a line, runs them, and prints what the kernel
says of each: page faults, growth of anonymous resident memory in bytes, and the bytes that it is made for."""

import json
import mmap
import os
import resource
import sys
import time

MIB = 1 << 20


def faults():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def anonymous():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def small_objects():
    return [bytes(31) for _ in range(MIB)]


def one_array():
    return bytearray(256 * MIB)


def churn():
    for _ in range(100000):
        bytes(4000)


def written_pages():
    area = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(area, "madvise") and hasattr(mmap, "MADV_NOHUGEPAGE"):
        area.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, 64 * MIB, mmap.PAGESIZE):
        area[offset] = 1
    return area


def huge_pages():
    """Its bytes are known only where the kernel gave huge pages: where there are far fewer faults than pages."""
    area = mmap.mmap(-1, 1026 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if not hasattr(area, "madvise") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    area.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, 1026 * MIB, mmap.PAGESIZE):
        area[offset] = 1
    return area


def copied_pages(area):
    for offset in range(0, 64 * MIB, mmap.PAGESIZE):
        area[offset : offset + 1] = b"2"


def in_child(work, *arguments):
    """A forked worker that copies what it writes to. It answers with its figures."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = faults()
        work(*arguments)
        os.write(writer, b"%d" % (faults() - before))
        # What it alone ran can be read only while it lives.
        time.sleep(0.5)
        os._exit(0)
    os.close(writer)
    answer = b""
    while True:
        part = os.read(reader, 100)
        if not part:
            break
        answer += part
    os.close(reader)
    os.waitpid(pid, 0)
    return int(answer)


def main():
    kept = []
    phases = []
    for work, n_bytes in [
        (small_objects, 0),
        (one_array, 256 * MIB),
        (churn, 0),
        (written_pages, 64 * MIB),
        (huge_pages, 1026 * MIB),
    ]:
        faults_before, anonymous_before = faults(), anonymous()
        kept.append(work())
        if kept[-1] is None and work is not churn:
            # Not before 3.8.
            continue
        grown = anonymous() - anonymous_before
        phases.append([work.__name__, faults() - faults_before, grown, n_bytes])
    area = bytearray(64 * MIB)
    area[::4096] = b"1" * (64 * MIB // 4096)
    n_copied = in_child(copied_pages, area)
    phases.append(["copied_pages", n_copied, n_copied * mmap.PAGESIZE, 64 * MIB])
    print(json.dumps(phases), flush=True)


print("ready", flush=True)
sys.stdin.readline()
main()
sys.stdin.readline()
