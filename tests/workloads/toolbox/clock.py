"""The programs' own account of their CPU time: what the answers of all tools are compared with.

A program adds up what its coarse calls take, by the clock of its thread, and at its end writes that as JSON into the file
that `TOOLBOX_ACCOUNT` names. A reading of the clock takes some 0.3 us, a call that is measured so some 100 us or more:
what the account itself costs is far below a point. Shares are of `root`, so that neither the interpreter's start nor the
imports count.
"""

import json
import os
import time

thread_time = time.thread_time


def write(account):
    """Writes `account`: seconds of the thread's CPU time by function, with (`cumulative`) and without (`own`) what it
    calls, `root` as one of the former, `lines` by function and source text, and the `wall` time of the root."""
    file = os.environ.get("TOOLBOX_ACCOUNT")
    if file:
        with open(file, "w") as output:
            json.dump(account, output)
