"""Shapes of code whose bytes are known: `#: N` is the increment of its line in units of 100,000 bytes.

Each size stands on its line once, so that a byte on a wrong line is seen. Temporaries that are gone when their line ends count
nothing. What the interpreter itself takes beside (a list's table, a frame, an arena's page) is far below half a unit.
"""
import asyncio
import contextlib
import sys
import threading

if sys.argv[1:] == ["unmarked"]:
    profile = lambda function: function

UNIT = 100_000


def block(units):
    return bytearray(units * UNIT)  #: library


@profile
def straight():
    a = bytearray(3 * UNIT)  #: 3
    b = bytes(5 * UNIT)  #: 5
    c = a + b  #: 8
    del a  #: -3
    b = None  #: -5
    return len(c)  #: 0


@profile
def loops():
    kept = []  #: 0
    for size in range(1, 5):  #: 0
        kept.append(bytearray(size * UNIT))  #: 10
        temporary = bytearray(7 * UNIT)  #: 7
    while len(kept) > 2:  #: 0
        kept.pop()  #: -7
    del temporary  #: -7
    kept.clear()  #: -3


@contextlib.contextmanager
def holding(units):
    yield bytearray(units * UNIT)


@profile
def with_statement():
    with holding(11) as held:  #: 11
        extra = bytearray(2 * UNIT)  #: 2
        held.extend(extra)  #: 2
        del extra  #: -2
    held.clear()  #: -13


@profile
def try_finally():
    try:  #: 0
        kept = bytearray(4 * UNIT)  #: 4
        raise ValueError("expected")  #: 0
    except ValueError:  #: 0
        more = bytearray(6 * UNIT)  #: 6
    finally:
        del kept  #: -4
    del more  #: -6


@profile
def recursion(depth):
    if depth == 0:  #: 0
        return []  #: 0
    mine = bytearray(2 * UNIT)  #: 8
    below = recursion(depth - 1)  #: 0
    below.append(mine)  #: 0
    return below  #: 0


@profile
def comprehensions():
    squares = [bytearray(n * UNIT) for n in range(1, 4)]  #: 6
    table = {n: bytes(n * UNIT) for n in (4, 5)}  #: 9
    total = sum(len(bytearray(3 * UNIT)) for _ in range(5))  #: 0
    squares = None  #: -6
    table = None  #: -9
    return total  #: 0


@profile
def generator():
    first = bytearray(5 * UNIT)  #: 5
    yield len(first)  #: 0
    second = bytearray(9 * UNIT)  #: 9
    yield len(second)  #: 0
    del first, second  #: -14


@profile
def consumer():
    produced = generator()  #: 0
    next(produced)  #: 5
    next(produced)  #: 9
    for _ in produced:  #: -14
        pass


@profile
async def coroutine():
    before = bytearray(3 * UNIT)  #: 3
    await asyncio.sleep(0)  #: 0
    after = bytearray(8 * UNIT)  #: 8
    await asyncio.sleep(0.001)  #: 0
    del before, after  #: -11


@profile
def in_thread(results):
    part = bytearray(6 * UNIT)  #: 12
    results.append(part)  #: 0


@profile
def threads():
    results = []  #: 0
    workers = [threading.Thread(target=in_thread, args=(results,)) for _ in range(2)]  #: 0
    for worker in workers:  #: 0
        worker.start()  #: 0
    for worker in workers:  #: 0
        worker.join()  #: 0
    results.clear()  #: -12


def passing(function):
    def wrapper(*arguments):
        return function(*arguments)
    return wrapper


@passing
@profile
def decorated(units):
    kept = block(units)  #: 13
    kept = None  #: -13
    return kept  #: 0


@profile
def nested():
    def inner(units):
        held = bytearray(units * UNIT)
        return held
    one = inner(4)  #: 4
    two = inner(7)  #: 7
    del one, two  #: -11


class Account:
    @profile
    def grow(self, units):
        self.memory = bytearray(units * UNIT)  #: 15
        self.memory = bytearray((units + 1) * UNIT)  #: 1
        self.memory = None  #: -16


@profile
def reallocating():
    buffer = bytearray()  #: 0
    for _ in range(10):  #: 0
        buffer.extend(bytes(UNIT))  #: 10
    del buffer  #: -10


@profile
def raising():
    kept = bytearray(5 * UNIT)  #: 5
    raise KeyError(len(kept))  #: 0


@profile
def catching():
    try:  #: 0
        raising()  #: 5
    except KeyError:  #: 0
        pass  #: -5


def main():
    straight()
    loops()
    with_statement()
    try_finally()
    recursion(4)
    comprehensions()
    consumer()
    asyncio.new_event_loop().run_until_complete(coroutine())
    threads()
    decorated(13)
    nested()
    Account().grow(15)
    reallocating()
    catching()


main()
