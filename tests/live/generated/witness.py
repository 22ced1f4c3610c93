"""Blocks that note where they are made and where they are released, on every line of the program that runs at that instant.

What the interpreter itself says, without any profiler: the rules by which the expected bytes are known are checked against it.
"""
import atexit
import json
import os
import sys

HEADS = json.loads(os.environ["WITNESS_HEADS"])  # kind: [bytes of an item, bytes beside, bytes when cleared]
PROGRAM = sys.argv[0]
lines = {}


def profile(function):
    return function


def charge(allocated, freed):
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    seen, own = set(), True
    while frame is not None:
        code = frame.f_code
        if code.co_filename == PROGRAM and code not in seen:
            seen.add(code)
            sums = lines.setdefault((code.co_name, frame.f_lineno), [0, 0, 0])
            sums[0] += allocated
            sums[1] += freed
            if own:
                sums[2] += allocated - freed
        own = False
        frame = frame.f_back


class Block:
    def __init__(self, kind, length):
        self.kind = kind
        self.length = length if isinstance(length, int) else length.length
        self.asked = self.bytes()
        charge(self.asked, 0)

    def bytes(self):
        item, beside, _ = HEADS[self.kind]
        return item * self.length + beside

    def resize(self, length):
        before, self.length = self.asked, length
        self.asked = self.bytes()
        charge(self.asked, before)

    def __del__(self):
        charge(0, self.asked)

    def __len__(self):
        return self.length

    def __add__(self, other):
        return Block(self.kind, self.length + other.length)

    def __iadd__(self, other):
        self.resize(self.length + other.length)
        return self

    def __getitem__(self, part):
        return Block(self.kind, self.length - part.start)

    def clear(self):
        before, self.length, self.asked = self.asked, 0, HEADS[self.kind][2]
        charge(self.asked, before)


def tell():
    # What is left is released by the end of the interpreter, on no line.
    print(json.dumps([[name, line, *sums] for (name, line), sums in lines.items()]))
    Block.__del__ = lambda block: None


atexit.register(tell)
