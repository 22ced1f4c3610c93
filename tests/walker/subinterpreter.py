# Enters a sub-interpreter, the way its Python has one, whose code says that it is there and then goes on without end, with the GIL.
import sys

CODE = """import os

def innermost():
    os.write(1, b'inside\\n')
    while True:
        pass

def outer():
    innermost()

outer()
"""


def enter():
    try:
        import _interpreters as module
    except ImportError:
        try:
            import _xxsubinterpreters as module
        except ImportError:
            import _testcapi

            _testcapi.run_in_subinterp(CODE)
            return
    module.run_string(module.create(), CODE)


enter()
