"""A WSGI application."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import work


def application(environ, start_response):
    work.spin(0.05)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
