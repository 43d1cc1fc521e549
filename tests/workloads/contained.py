"""Two threads that use the CPU, each in lines that say so, until they are killed.

Prints `ready`, and the ids that their own pid namespace has for the main thread and the other one.
"""

import threading


def spin():
    n = 0
    while True:  # spins
        n += 1  # spins


def work():
    spin()  # called by work


def main():
    worker = threading.Thread(target=work, name="worker \u00e9", daemon=True)
    worker.start()
    print("ready", threading.get_native_id(), worker.native_id, flush=True)
    spin()  # called by main


main()  # called by the module
