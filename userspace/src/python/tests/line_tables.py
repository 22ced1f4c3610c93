# Prints, for every code object of many files of the standard library (argument: how many, evenly spread): first line, table, and the
# interpreter's own answer for every instruction (PyCode_Addr2Line; -1: no line), as runs "offset:line" and the length; then the lines
# that dis knows.
import ctypes
import dis
import os
import sys
import sysconfig
import types

FILES = int(sys.argv[1])
addr2line = ctypes.pythonapi.PyCode_Addr2Line
addr2line.argtypes = [ctypes.py_object, ctypes.c_int]
addr2line.restype = ctypes.c_int


def files():
    found = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(f for f in folders if f not in ("site-packages", "dist-packages", "__pycache__"))
        for name in sorted(names):
            path = os.path.join(folder, name)
            # Debian's sitecustomize.py is a link, which may lead nowhere.
            if name.endswith(".py") and os.path.isfile(path):
                found.append(path)
    step = max(1.0, len(found) / FILES)
    return [found[int(at * step)] for at in range(min(FILES, len(found)))]


def codes(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for inner in codes(constant):
                yield inner


def show(code):
    table = code.co_linetable if sys.version_info >= (3, 10) else code.co_lnotab
    runs = []
    last = None
    length = len(code.co_code)
    for offset in range(0, length, 2):
        line = addr2line(code, offset)
        if line != last:
            runs.append("%d:%d" % (offset, line))
            last = line
    if hasattr(code, "co_lines"):
        lines = {line for start, end, line in code.co_lines() if end > start}
    else:
        # Up to 3.7 with what the compiler has left out at the end.
        lines = {line for offset, line in dis.findlinestarts(code) if offset < length}
    ends = [-1]
    if hasattr(code, "co_positions"):
        ends += [place[1] for place in code.co_positions() if place[0] and place[1]]
    lines = sorted(line for line in lines if line)
    print(code.co_firstlineno, table.hex() or "-", ",".join(runs), length, ",".join(map(str, lines)) or "-", max(ends))


count = 0
for path in files():
    try:
        with open(path, "rb") as source:
            module = compile(source.read(), path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        continue
    count += 1
    for code in codes(module):
        show(code)
print("files", count)
