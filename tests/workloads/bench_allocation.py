"""Works on memory, much or some, and says how much CPU time that took. Tools that attach get a second to do so.

Arguments: the work, and how often it is done (once if that is not said); the time is that of one.
"""
import json
import re
import sys
import time


def heavy():
    kept = []
    for n in range(120000):
        row = {"id": n, "name": "row %d" % n, "values": [n] * 100, "blob": bytes(700)}
        if n % 20 == 0:
            kept.append(row)
    return kept


def normal():
    text = json.dumps([{"id": n, "name": "row %d" % n, "tags": ["a", "b", str(n)]} for n in range(3000)])
    pattern = re.compile(r'"row (\d+)"')
    total = 0
    for _ in range(25):
        rows = json.loads(text)
        rows.sort(key=lambda row: row["name"])
        total += len(pattern.findall(text)) + sum(row["id"] for row in rows)
    return total


time.sleep(1)
n_times = int(sys.argv[2]) if len(sys.argv) > 2 else 1
begun = time.process_time()
for _ in range(n_times):
    kept = {"heavy": heavy, "normal": normal}[sys.argv[1]]()
print("seconds", (time.process_time() - begun) / n_times, flush=True)
