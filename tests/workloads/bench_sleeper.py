"""One of many processes of the benchmark: sleeps, and now and then works for about a millisecond.

Prints `ready`, then goes on until stdin is closed.
"""

import json
import select
import sys
import textwrap


def encode(n_items):
    return json.dumps([{"index": index, "text": str(index) * 3} for index in range(n_items)])


def wrap(text):
    return textwrap.wrap(text, 40)


def wake():
    text = encode(60)
    wrap(text[:400])
    return json.loads(text)


def main():
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        wake()


main()
