"""A web application on Django, one thread under the standard library's WSGI server: a page by a template, an answer in JSON,
a query of SQLite, a search by regular expressions.

Argument: the number of requests after which it ends. It prints the port that it listens at, on loopback.
"""

import json
import re
import sqlite3
import sys
import time
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from clock import thread_time, write

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.template import Context, Engine
from django.urls import path

N_ORDERS = 4000
TEMPLATE = """<table>{% for order in orders %}<tr class="{% cycle 'odd' 'even' %}">
<td>{{ order.number }}</td><td>{{ order.customer|title }}</td><td>{{ order.amount|floatformat:2 }}</td>
</tr>{% endfor %}</table>"""
PATTERN = re.compile(r"(\w+)@(\w+)\.(?:example|test) .*?status=(5\d\d)")
QUERY = """SELECT customer, count(*), sum(amount), max(amount) FROM orders
WHERE amount > ? GROUP BY customer ORDER BY 3 DESC LIMIT 20"""

template = Engine().from_string(TEMPLATE)
database = sqlite3.connect(":memory:")
spent = {}
lines = {}


def timed(by, name, begin):
    """Adds the time since `begin` to the account, and returns what it is now."""
    now = thread_time()
    by[name] = by.get(name, 0.0) + now - begin
    return now


def fill():
    orders = [(i, "customer %d" % (i * 7 % 97), i * 37 % 1000 / 8) for i in range(N_ORDERS)]
    database.execute("CREATE TABLE orders (number INTEGER, customer TEXT, amount REAL)")
    database.executemany("INSERT INTO orders VALUES (?, ?, ?)", orders)
    return [dict(zip(("number", "customer", "amount"), order)) for order in orders]


ORDERS = fill()
LOG = "\n".join(
    "user%d@host%d.%s GET /%d status=%d" % (i, i % 13, ("example", "com")[i % 2], i, 200 + i % 400)
    for i in range(1500)
)


def render(orders):
    return template.render(Context({"orders": orders}))


def query(least):
    return database.execute(QUERY, (least,)).fetchall()


def encode(orders):
    return json.dumps({"orders": orders, "n": len(orders)}, indent=1)


def find(text):
    return [match.groups() for match in PATTERN.finditer(text)]


def page(request):
    begin = thread_time()
    answer = HttpResponse(render(ORDERS[:60]))
    timed(spent, "page", begin)
    return answer


def orders(request):
    begin = thread_time()
    rows = query(20.0)
    queried = timed(lines, "rows = query(20.0)", begin)
    text = encode(rows)
    timed(lines, "text = encode(rows)", queried)
    answer = HttpResponse(text, content_type="application/json")
    timed(spent, "orders", begin)
    return answer


def api(request):
    begin = thread_time()
    answer = HttpResponse(encode(ORDERS[:400]), content_type="application/json")
    timed(spent, "api", begin)
    return answer


def search(request):
    begin = thread_time()
    answer = JsonResponse({"found": find(LOG)})
    timed(spent, "search", begin)
    return answer


# No module of a name: some tools run this file as one that cannot be imported again.
URLS = (path("page", page), path("orders", orders), path("api", api), path("search", search))


class Handler(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class Server(WSGIServer):
    # The load's clients wait here, so that the server always has something to do.
    request_queue_size = 64


def serve(server, n_requests):
    for _ in range(n_requests):
        server.handle_request()


def main(n_requests):
    settings.configure(ROOT_URLCONF=URLS, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="none", LOGGING_CONFIG=None)
    django.setup()
    handler = get_wsgi_application()

    def application(environ, start_response):
        begin = thread_time()
        answer = handler(environ, start_response)
        timed(spent, "application", begin)
        return answer

    server = Server(("127.0.0.1", 0), Handler)
    server.set_app(application)
    # Standard output is a pipe: the load generator reads the port, before the first request.
    print(server.server_port, flush=True)
    wall, begin = time.perf_counter(), thread_time()
    serve(server, n_requests)
    timed(spent, "serve", begin)
    wall = time.perf_counter() - wall
    write({"root": "serve", "own": {}, "cumulative": spent, "lines": {"orders": lines}, "wall": wall})


if __name__ == "__main__":
    main(int(sys.argv[1]))
