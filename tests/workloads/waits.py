"""Waits of known kinds, each in a function of its own on one line of it, and what the program's own clock says of them.

Waits for a line, then for some seconds in all ways at once, then some more for the GIL, and prints one line of JSON:
nanoseconds by function, and of each thread the time that passed and what the kernel says it ran, by thread id.
"""
import json
import os
import select
import socket
import sys
import threading
import time

SECONDS = float(sys.argv[1])

waited = {}
threads = {}
end = 0.0


def now():
    """Time that has passed without this thread on a CPU, up to a constant."""
    return time.monotonic() - time.thread_time()


def note(name, began):
    waited[name] = waited.get(name, 0) + int((now() - began) * 1e9)


def wait_sleep():
    while time.monotonic() < end:
        began = now()
        time.sleep(0.01)  # waits
        note('wait_sleep', began)


def wait_short():
    while time.monotonic() < end:
        began = now()
        time.sleep(0.0003)  # waits
        note('wait_short', began)


def wait_lock():
    lock = threading.Lock()
    lock.acquire()
    gives = threading.Thread(target=give, args=[lambda: lock.release()], daemon=True)
    gives.start()
    while time.monotonic() < end:
        began = now()
        lock.acquire()  # waits
        note('wait_lock', began)


def wait_pipe():
    reads, writes = os.pipe()
    threading.Thread(target=give, args=[lambda: os.write(writes, b'x')], daemon=True).start()
    while time.monotonic() < end:
        began = now()
        os.read(reads, 1)  # waits
        note('wait_pipe', began)


def wait_socket():
    reads, writes = socket.socketpair()
    threading.Thread(target=give, args=[lambda: writes.send(b'x')], daemon=True).start()
    while time.monotonic() < end:
        began = now()
        reads.recv(1)  # waits
        note('wait_socket', began)


def wait_select():
    reads, _writes = os.pipe()
    while time.monotonic() < end:
        began = now()
        select.select([reads], [], [], 0.012)  # waits
        note('wait_select', began)


def wait_child():
    while time.monotonic() < end:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.1)
            os._exit(0)
        began = now()
        os.waitpid(pid, 0)  # waits
        note('wait_child', began)


def wait_gil():
    path = '/proc/self/stat'
    while time.monotonic() < end:
        began = now()
        os.access(path, os.R_OK)  # waits
        note('wait_gil', began)


def give(one):
    """Ends a wait of another thread each 15 ms."""
    while time.monotonic() < end + 0.2:
        time.sleep(0.015)
        try:
            one()
        except (RuntimeError, OSError):
            # Nobody waits, or the other has ended.
            pass


def spin():
    while time.monotonic() < end:
        for _ in range(1000):
            pass


def kernel_says(tid):
    with open('/proc/self/task/%d/schedstat' % tid) as file:
        return int(file.read().split()[0])


def accounted(work):
    tid = threading.get_native_id()
    began, ran = time.monotonic(), kernel_says(tid)
    work()
    passed = int((time.monotonic() - began) * 1e9)
    threads[tid] = [work.__name__, passed, kernel_says(tid) - ran]


def all_at_once(started):
    global end
    end = time.monotonic() + SECONDS
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


print('ready', flush=True)
sys.stdin.readline()
works = [wait_sleep, wait_short, wait_lock, wait_pipe, wait_socket, wait_select, wait_child]
all_at_once([threading.Thread(target=accounted, args=[work]) for work in works])
# Not accounted for: a thread waits for the GIL before it can look at a clock.
all_at_once([threading.Thread(target=work) for work in [spin, wait_gil]])
print(json.dumps({'waited': waited, 'threads': threads}), flush=True)
sys.stdin.read()
