"""How often each line of a marked function runs, as a person counts: the number after `#` of each line; `~3` is one that CPython up to
3.7 tells nothing of, or part of. Those of functions that are called several times are the sums. tests/live/occurrences.rs reads them."""
import types


class Block:
    def __init__(self, keeps=True):
        self.keeps = keeps

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        return self.keeps

    async def __aenter__(self):
        return self

    async def __aexit__(self, *raised):
        return self.keeps


def several():
    with Block() as a, \
         Block() as b:  # 1
        len('x')  # 1
    with Block(), \
            Block(), \
            Block():  # 1
        len('x')  # 1


def several_first():
    with Block() as a, Block() as b, \
         Block() as c, Block():  # 1
        pass  # 1


def several_loop():
    for value in range(4):
        with Block() as a, \
             Block() as b:  # 3
            if value == 1:  # 3
                continue  # 1
            if value == 2:  # 2
                break  # 1
            len('x')  # 1


def several_return():
    with Block() as a, \
         Block() as b:  # 1
        return len('x')  # 1


def several_raise():
    with Block() as a, \
         Block() as b:  # 1
        raise ValueError  # 1


def finally_ends():
    try:  # 1
        len('x')  # 1
    finally:
        len('a')  # 1
        len('b')  # 1
    return 1  # 1


def finally_return():
    try:  # 1
        return len('x')  # 1
    finally:
        len('a')  # 1
        len('b')  # 1


def finally_return_const():
    try:  # 1
        return 5  # 1
    finally:
        len('a')  # 1


def finally_raise():
    try:  # 1
        try:  # 1
            raise ValueError  # 1
        finally:
            len('a')  # 1
            len('b')  # 1
    except ValueError:  # 1
        pass  # 1


def finally_loop():
    for value in range(4):  # 4
        try:  # 4
            if value == 1:  # 4
                continue  # 1
            if value == 3:  # 3
                break  # 1
            len('x')  # 2
        finally:
            len('a')  # 4
            len('b')  # 4
    return value  # 1


def finally_while():
    value = 0  # 1
    while value < 4:  # 4
        try:  # 4
            value += 1  # 4
            if value == 1:  # 4
                continue  # 1
            if value == 4:  # 3
                break  # 1
            len('x')  # 2
        finally:
            len('a')  # 4
    return value  # 1


def whole(kind):
    try:  # 4
        if kind == 1:  # 4
            raise ValueError  # 1
        if kind == 2:  # 3
            return 2  # 1
        if kind == 3:  # 2
            raise KeyError  # 1
        len('x')  # 1
    except ValueError as error:  # 2
        len('e')  # 1
    except KeyError:  # 1
        return 4  # 1
    else:
        len('else')  # 1
    finally:
        len('finally')  # 4
    return 5  # 2


def as_name():
    try:  # 1
        raise ValueError  # 1
    except ValueError as error:  # 1
        len('e')  # 1
        len('f')  # 1
    return 1  # 1


def plain_while():
    value = 0  # 1
    while value < 3:  # 4
        value += 1  # 3
    return value  # 1


def while_else():
    value = 0  # 1
    while value < 3:  # 4
        value += 1  # 3
    else:
        len('else')  # 1
    return value  # 1


def while_true():
    value = 0  # 1
    while True:
        value += 1  # 3
        if value == 3:  # 3
            break  # 1
    return value  # 1


def while_and():
    value = 0  # 1
    while value < 3 and value != 7:  # 4
        value += 1  # 3
    return value  # 1


def while_continue():
    value = 0  # 1
    while value < 5:  # 6
        value += 1  # 5
        if value % 2:  # 5
            continue  # 3
        len('x')  # 2


def while_lines():
    value = 0  # 1
    while (value < 3 and  # 4
           value != 7):  # 3
        value += 1  # 3


def for_else():
    for value in range(3):  # 4
        len('x')  # 3
    else:
        len('else')  # 1
    for value in range(3):  # 1
        break  # 1
    else:
        len('else')  # 0
    return 1  # 1


def nested_for():
    for one in range(2):  # 3
        for two in range(3):  # 8
            len('x')  # 6


def nested_with():
    for value in range(2):  # 3
        with Block():  # 2
            for other in range(2):  # 6
                with Block():  # 4
                    len('x')  # 4


def with_in_try():
    try:  # 1
        with Block(False):  # 1
            raise ValueError  # 1
    except ValueError:  # 1
        len('x')  # 1
    finally:
        with Block():  # 1
            len('y')  # 1


def call(*given):
    return given


def lines_of_a_call():
    call(  # 1
        1,
        len('x'),  # 1
        len('y'))  # 1
    value = call(  # 1
        len('x'),  # 1
        len('y'))  # 1
    value = [  # ~1
        len('x'),  # 1
        len('y')]  # 1
    return value  # 1


def chain():
    value = (len('a')  # ~1
             + len('b')  # ~1
             + len('c'))  # 1
    return value  # 1


def returns_lines():
    try:  # 1
        return call(  # 1
            len('x'),  # 1
            len('y'))  # 1
    finally:
        len('z')  # 1


def generator():
    with Block():  # 1
        for value in range(3):  # 4
            yield value  # 3
    with Block() as a, \
            Block() as b:  # 1
        yield 4  # 1
    try:  # 1
        yield 5  # 1
    finally:
        len('f')  # 1


async def coroutine():
    async with Block():  # 1
        len('x')  # 1
    async with Block() as a, \
            Block() as b:  # 1
        len('x')  # 1
    for value in range(3):  # 4
        async with Block():  # 3
            if value == 1:  # 3
                continue  # 1
            len('x')  # 2
    async with Block():  # 1
        raise ValueError  # 1
    async with Block():  # 1
        return 1  # 1


class Numbers:
    def __init__(self):
        self.last = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.last += 1
        if self.last > 3:
            raise StopAsyncIteration
        return self.last


@types.coroutine
def pause():
    yield


class Slow(Block):
    async def __aenter__(self):
        await pause()
        return self
    async def __aexit__(self, *raised):
        await pause()
        return True


async def slow():
    async with Slow():  # 1
        await pause()  # 1
        len('x')  # 1
    for value in range(3):  # 4
        async with Slow() as a, Slow() as b:  # 3
            if value == 1:  # 3
                continue  # 1
            await pause()  # 2
    try:  # 1
        await pause()  # 1
        return call(  # 1
            len('a'),  # 1
            await pause())  # 1
    finally:
        await pause()  # 1


async def async_for():
    async for value in Numbers():  # 4
        len('x')  # 3
    else:
        len('else')  # 1
    return 1  # 1


def jumps():
    for value in range(6):  # 7
        if value == 1:  # 6
            continue  # 1
        if value == 2:  # 5
            len('x')  # 1
        elif value == 3:  # 4
            with Block():  # 1
                continue  # 1
        else:
            try:  # 3
                continue  # 3
            finally:
                len('y')  # 3


def recursive(n):
    with Block() as a, \
            Block() as b:  # 3
        if n:  # 3
            recursive(n - 1)  # 2
        return n  # 3


def conditional():
    for value in range(4):  # 5
        other = (len('a') if value % 2  # 4
                 else len('b'))  # 2


def try_loop():
    for value in range(3):  # 4
        try:  # 3
            if value == 1:  # 3
                raise ValueError  # 1
            len('x')  # 2
        except ValueError as error:  # 1
            continue  # 1
        else:
            len('else')  # 2


def nested_finally():
    try:  # 1
        try:  # 1
            return len('x')  # 1
        finally:
            len('a')  # 1
    finally:
        len('b')  # 1


def finally_with_return():
    for value in range(2):  # 1
        with Block():  # 1
            try:  # 1
                return len('x')  # 1
            finally:
                len('a')  # 1


def if_finally():
    try:  # 1
        len('x')  # 1
    finally:
        if len('a'):  # 1
            len('b')  # 1
        else:
            len('c')  # 0
        for value in range(2):  # 3
            len('d')  # 2


def drive(coroutine):
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        pass


once = [several, several_first, several_loop, several_return, several_raise, finally_ends, finally_return, finally_return_const,
        finally_raise, finally_loop, finally_while, as_name, plain_while, while_else, while_true, while_and, while_continue, while_lines,
        for_else, nested_for, nested_with, with_in_try, lines_of_a_call, chain, returns_lines, try_loop, jumps, conditional,
        nested_finally, finally_with_return, if_finally]
for function in once + [whole, generator, coroutine, slow, async_for, recursive]:
    profile(function)
for function in once:
    function()
for kind in range(4):
    try:
        whole(kind)
    except KeyError:
        pass
recursive(2)
for value in generator():
    pass
for function in (coroutine, slow, async_for):
    drive(function())
