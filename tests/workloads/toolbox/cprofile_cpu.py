"""cProfile with the clock of the thread's CPU time in place of the wall's: `cprofile_cpu.py FILE SCRIPT ARGUMENTS...`."""

import cProfile
import runpy
import sys
import time


def main(file, script):
    profile = cProfile.Profile(time.thread_time)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, script.rpartition("/")[0])
    try:
        profile.runcall(runpy.run_path, script, run_name="__main__")
    finally:
        profile.dump_stats(file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
