"""Ordinary code: what programs are made of, much of it in the standard library's own Python."""

import argparse
import ast
import collections
import configparser
import contextlib
import copy
import csv
import difflib
import enum
import fractions
import functools
import heapq
import html.parser
import inspect
import io
import json
import logging
import operator
import os
import pickle
import pprint
import random
import re
import shlex
import statistics
import string
import textwrap
import tokenize
import types
import typing
import unittest
import urllib.parse
import xml.etree.ElementTree

try:
    import dataclasses
except ImportError:  # 3.6
    dataclasses = None

SOURCE = inspect.getsource(textwrap.TextWrapper._split) + "\n"
WORDS = ("the quick brown fox jumps over the lazy dog " * 6).split()


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Place:
    def __post_init__(self):
        self.tags.append(self.describe())

    def describe(self):
        return f"{self.x!r}, {self.distance(self):.1f}"

    def distance(self, other): return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5


if dataclasses:
    @dataclasses.dataclass(order=True)
    class Point(Place):
        x: int
        y: int = 0
        tags: list = dataclasses.field(default_factory=list, compare=False)
else:
    @functools.total_ordering
    class Point(Place):
        def __init__(self, x, y=0):
            self.x, self.y, self.tags = x, y, []
            self.__post_init__()

        def __lt__(self, other):
            return (self.x, self.y) < (other.x, other.y)


class Resource:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self.check()

    def __exit__(self, kind, error, traceback):
        self.check()
        return kind is ValueError

    def check(self):
        return len(self.name)


@contextlib.contextmanager
def managed(name):
    resource = Resource(name)
    try:
        yield resource
    finally:
        resource.check()


def fail(kind):
    raise kind("failed")


def context_managers():
    with Resource("first") as first, managed(
        "second"
    ) as second:
        second.check()
        first + 1
    with Resource("third"):
        fail(ValueError)
    with contextlib.suppress(KeyError), contextlib.ExitStack() as stack:
        stack.enter_context(managed("fourth"))
        stack.callback(Resource("fifth").check)
        fail(KeyError)


def exceptions():
    for kind in (ValueError, KeyError, OSError):
        try:
            try:
                fail(kind)
            except ValueError as error:
                raise KeyError(repr(error)) from error
            else:
                Resource("never").check()
            finally:
                Resource("always").check()
        except KeyError:
            Resource("caught").check()
        except OSError:
            pass


def data_classes():
    points = [
        Point(3),
        Point(
            1,
            y=random.Random(3).randint(1, 3),
        ),
        Point(*(2, 3)),
    ]
    copy.deepcopy(sorted(points))
    largest = max(points, key=operator.attrgetter("y"))
    if dataclasses:
        dataclasses.asdict(largest)
        dataclasses.replace(points[0], x=5) == points[1]
    Color(2), Color["RED"], list(Color)


@functools.lru_cache(maxsize=None)
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)


@functools.singledispatch
def kind_of(value):
    return "other"


@kind_of.register(int)
def _(value):
    return "int"


def functional():
    fibonacci.cache_clear()
    fibonacci(40)
    kind_of(3), kind_of("three")
    functools.reduce(lambda left, right: left + len(right), WORDS, 0)
    heapq.merge([1, 3], [2], key=lambda number: -number)
    list(heapq.merge(WORDS, sorted(WORDS, key=lambda word: word[::-1])))
    collections.Counter(WORDS).most_common(3)
    collections.ChainMap({"a": 1}, {"b": 2})["b"]
    collections.OrderedDict(zip(WORDS, WORDS)).popitem()


def regular_expressions():
    re.purge()
    pattern = re.compile(r"(?P<word>[a-z]+)(?:\s+(?=(lazy|quick)))?|[^\d\W]{2,5}?")
    pattern.sub(lambda match: match.group("word").upper(), " ".join(WORDS))


def encoders():
    value = {"words": WORDS, "nested": [{"point": [1, 2.5, None, True]}] * 5}
    text = json.dumps(value, indent=2, sort_keys=True)
    json.loads(text, object_hook=lambda item: dict(item))
    pickle._dumps(value)
    pprint.pformat(value)
    writer = csv.DictWriter(io.StringIO(), ["a", "b"])
    writer.writerow({"a": 1, "b": "two, three"})


def texts():
    textwrap.fill(" ".join(WORDS), 40)
    string.Template("$first ${second}").substitute(first=1, second=2)
    shlex.split("one 'two three' \"four\" five\\ six")
    list(difflib.unified_diff(WORDS[:20], WORDS[3:20]))
    urllib.parse.urlencode({"a": "b c", "d": "é"}), urllib.parse.urlparse("http://x/y;z?a=b#c")
    html.parser.HTMLParser().feed("<p class='a'>text<br/></p><!-- no -->" * 5)
    xml.etree.ElementTree.fromstring("<a><b c='d'/>e</a>").find("b")


def code():
    tree = ast.parse(SOURCE.strip() if not SOURCE[0].isspace() else textwrap.dedent(SOURCE))
    ast.dump(tree)
    for node in ast.walk(tree):
        ast.NodeVisitor().generic_visit(node)
    list(tokenize.generate_tokens(io.StringIO(textwrap.dedent(SOURCE)).readline))
    inspect.signature(argparse.ArgumentParser.add_argument)


def programs():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("words", nargs="*")
    parser.parse_args(["--number", "5", "a", "b"])
    config = configparser.ConfigParser()
    config.read_string("[a]\nb = %(c)s\nc = d\n")
    config.get("a", "b")
    logger = logging.getLogger("ordinary")
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(io.StringIO())]
    logger.warning("%s", Point(1))


def numbers():
    fractions.Fraction(3, 7) + fractions.Fraction(2, 5) ** 3
    statistics.mean([fractions.Fraction(number, 3) for number in range(20)])
    statistics.stdev(range(20))
    random.Random(5).shuffle(list(range(50)))


class Case(unittest.TestCase):
    def test_equal(self):
        self.assertEqual({"a": [1, 2]}, {"a": [1, 2]})
        with self.assertRaises(ValueError):
            fail(ValueError)

    def runTest(self):
        for number in range(5):
            with self.subTest(number=number):
                self.assertTrue(
                    number
                    < 10
                )


def unit_tests():
    result = unittest.TestResult()
    Case().run(result)
    Case("test_equal").run(result)


def typed():
    typing.NamedTuple("Named", [("x", int)])(3)
    collections.namedtuple("Pair", "left right")(1, 2)._replace(left=3)
    types.SimpleNamespace(a=1)
    os.path.join(os.path.dirname("/a/b"), os.path.basename("c/d")), os.path.normpath("a/../b")


PARTS = (
    context_managers, exceptions, data_classes, functional, regular_expressions, encoders, texts, code, programs,
    numbers, unit_tests, typed,
)  # fmt: skip


def body():
    for part in PARTS:
        part()
