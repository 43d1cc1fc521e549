"""Two threads that make functions, run them for 5 ms of CPU time and drop them, each under names of its own.

Each function is told by its name, by its file and by its lines, and calls another one made with it. For each
the report has the CPU time and the number of times that its thread was switched out.
"""

import resource
import threading

from harness import run, thread_time

SOURCE = """
def outer_{name}(end, clock):
    return inner_{name}(end, clock)
def inner_{name}(end, clock):
    total = 0
    while clock() < end:
        for number in range(200):
            total += number & 3
    return total
"""

run.report["made"] = []


def make(name, idx):
    namespace = {}
    exec(compile("\n" * idx + SOURCE.format(name=name), "<made %s>" % name, "exec"), namespace)
    return namespace["outer_" + name]


def switches():
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_nivcsw + usage.ru_nvcsw


def live_and_die(kind, idx):
    name = "%s_%d" % (kind, idx)
    outer = make(name, idx % 1000)
    begun, n_switches = thread_time(), switches()
    outer(begun + 0.005, thread_time)
    seconds, n_switches = thread_time() - begun, switches() - n_switches
    if not run.is_traced:
        run.report["made"].append([name, idx % 1000, seconds, n_switches])


class Maker(threading.Thread):
    def __init__(self, kind):
        super().__init__(name=kind, daemon=True)
        self.kind = kind
        self.begin = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.start()

    def run(self):
        idx = 0
        while True:
            self.begin.acquire()
            for _ in range(5):
                live_and_die(self.kind, idx)
                idx += 1
            run.untrace_thread()
            self.ended.release()


MAKERS = [Maker("left"), Maker("right")]


def body():
    for maker in MAKERS:
        maker.begin.release()
    for maker in MAKERS:
        maker.ended.acquire()
