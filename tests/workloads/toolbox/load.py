"""A load of a fixed number of requests: `load.py N COMMAND...` starts the command, reads the port that it prints first, asks
its four pages in turn, N times in all, on three connections at a time, and ends as the command does."""

import signal
import subprocess
import sys
import threading
import urllib.request

PATHS = ["page", "orders", "api", "search"]
N_CLIENTS = 3


def ask(port, paths, failures):
    for path in paths:
        try:
            with urllib.request.urlopen("http://127.0.0.1:%d/%s" % (port, path), timeout=60) as answer:
                answer.read()
        except OSError as error:
            failures.append("%s: %s" % (path, error))
            return


def main(n_requests, command):
    # Who ends the load ends the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        drive(server, n_requests)
    finally:
        if server.poll() is None:
            server.terminate()


def drive(server, n_requests):
    # A tool may print a word of its own before.
    lines = (line.strip() for line in server.stdout)
    port = next((line for line in lines if line.isdigit()), None)
    failures = []
    if port:
        paths = [PATHS[i % len(PATHS)] for i in range(n_requests)]
        clients = [
            threading.Thread(target=ask, args=(int(port), paths[i::N_CLIENTS], failures))
            for i in range(N_CLIENTS)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    else:
        failures.append("the server printed no port")
    if failures:
        server.terminate()
    sys.stdout.write(server.stdout.read())
    status = server.wait()
    if failures:
        sys.exit("load: " + "; ".join(failures))
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
