"""Checks that programs behave with the shim as they do without it. Arguments: the shim directory.

Run by the unit test `programs_behave_as_without_the_shim` of launch/mod.rs on every Python it finds. Each case is a small
tree of files and a command line; it is run twice, and exit status, standard output and standard error must be the same.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

SHIM = sys.argv[1]
IDENTITY = "import builtins\nif not hasattr(builtins, 'profile'):\n    builtins.profile = lambda f: f\n"
SCRIPT = IDENTITY + "@profile\ndef f():\n    x = [1, 2]\n    return x\nprint(f(), f.__name__, __name__, sys.argv if 'sys' in globals() else '')\n"
SHOW = """
import sys
print(sys.path, [m for m in sys.modules if m not in ('sitecustomize',)], sys.flags, sys.argv[1:])
print(sorted(sys.path_importer_cache), sys.gettrace(), sys.getprofile(), len(sys.meta_path) - hasattr(__builtins__, 'profile'))
"""
# name: (files, arguments)
CASES = {
    "script called copy.py": ({"copy.py": SCRIPT}, ["copy.py"]),
    "shadows": ({"lib/%s.py" % name: "print('shadow', __name__)\n" for name in
                 ("types", "functools", "ctypes", "copy", "struct", "weakref", "contextlib", "typing", "operator", "marks")},
                ["-c", "print(1)"]),
    "script called types.py": ({"types.py": SCRIPT}, ["types.py"]),
    "script called functools.py": ({"functools.py": SCRIPT}, ["functools.py"]),
    "script called sitecustomize.py": ({"sitecustomize.py": SCRIPT}, ["sitecustomize.py"]),
    "script called marks.py": ({"marks.py": SCRIPT}, ["marks.py"]),
    "module": ({"pkg/__init__.py": "", "pkg/__main__.py": SCRIPT}, ["-m", "pkg", "a"]),
    "command": ({}, ["-c", SHOW, "a", "b"]),
    "isolated": ({}, ["-I", "-c", SHOW]),
    "no environment": ({}, ["-E", "-c", SHOW]),
    "no site": ({}, ["-S", "-c", SHOW]),
    "script": ({"a.py": SHOW}, ["a.py", "x"]),
    "error": ({"a.py": IDENTITY + "@profile\ndef f(x):\n    return 1 / x\nf(0)\n"}, ["a.py"]),
    "status": ({"a.py": IDENTITY + "@profile\ndef f(x):\n    raise SystemExit(7)\nf(0)\n"}, ["a.py"]),
    "no memory_profiler": ({}, ["-c", "try:\n    from memory_profiler import memory_usage\nexcept ImportError:\n    print('no')"]),
    "pickle": ({}, ["-c", "import pickle\ntry:\n    import memory_profiler\nexcept ImportError: pass\n"
                    "class A: pass\nprint(pickle.loads(pickle.dumps(len)) is len, len.__module__)"]),
    "a memory_profiler": ({"lib/memory_profiler.py": "print('real')\ndef memory_usage(): return 42\n__version__ = 'v'\nif __name__ == '__main__': print('main')\n",
                           "a.py": "import memory_profiler as m\nprint(m.memory_usage(), m.__version__, m.__file__)\n"
                                   "from memory_profiler import memory_usage\nimport sys\nprint(sys.modules['memory_profiler'].memory_usage is memory_usage)\n"},
                          ["a.py"]),
    "a memory_profiler by -m": ({"lib/memory_profiler.py": "print('real', __name__)\n"}, ["-m", "memory_profiler"]),
    "own sitecustomize": ({"lib/sitecustomize.py": "print('mine', __name__, __file__)\nvalue = 1\n",
                           "a.py": "import sitecustomize, sys\nprint(sitecustomize.value, sitecustomize.__spec__.name)\n"}, ["a.py"]),
    "broken sitecustomize": ({"lib/sitecustomize.py": "1 / 0\n"}, ["-c", "import sys; print('sitecustomize' in sys.modules)"]),
    "sitecustomize with a missing import": ({"lib/sitecustomize.py": "import not_there\n"}, ["-c", "print(1)"]),
    "sitecustomize that exits": ({"lib/sitecustomize.py": "raise SystemExit(3)\n"}, ["-c", "print(1)"]),
    "audit": ({"a.py": IDENTITY + "import sys\nsys.addaudithook(lambda n, a: n.startswith('sys.') and print(n, a))\n"
                       "@profile\ndef f():\n    return 1\nf()\n"}, ["a.py"]),
    "children": ({"a.py": IDENTITY + "import subprocess, sys, multiprocessing\n@profile\ndef f(x):\n    return x + 1\n"
                          "if __name__ == '__main__':\n    print(subprocess.check_output([sys.executable, '-c', 'print(5)']))\n"
                          "    for how in ('fork', 'spawn'):\n"
                          "        with multiprocessing.get_context(how).Pool(2) as pool: print(pool.map(f, range(4)))\n"}, ["a.py"]),
    "doctest and unittest": ({"test_a.py": IDENTITY + "import unittest\n@profile\ndef f():\n    '''\n    >>> f()\n    1\n    '''\n    return 1\n"
                              "class T(unittest.TestCase):\n    def test(self): self.assertEqual(f(), 1)\n"
                              "def load_tests(l, t, p):\n    import doctest; t.addTests(doctest.DocTestSuite()); return t\n"},
                             ["-c", "import unittest; r = unittest.main('test_a', exit=False).result; print(r.testsRun, r.wasSuccessful())"]),
    "introspection": ({"a.py": IDENTITY + "import inspect, sys, gc\n@profile\ndef f(a, b=1): return inspect.stack()[0].function\n"
                       "print(inspect.signature(f), inspect.getsource(f), f(1), f.__wrapped__ if hasattr(f, '__wrapped__') else None)\n"
                       "import traceback\n@profile\ndef g(): raise KeyError(1)\ntry: g()\nexcept KeyError: traceback.print_exc()\n"
                       "for m in list(sys.modules.values()): hasattr(m, '__file__'), hasattr(m, '__warningregistry__')\n"
                       "import importlib.util\nprint([s and s.name for s in [importlib.util.find_spec('json'), importlib.util.find_spec('no_such')]])\n"}, ["a.py"]),
}


def clean(text):
    """Without what may differ: how long unittest took, and what launch/mod.rs says a program can see of the shim."""
    text = text.decode()
    text = re.sub(r"Ran (.*) in .*", r"Ran \1", text)
    text = text.replace(repr(SHIM) + ", ", "")  # sys.path under -S
    text = re.sub(r'  File "%s/sitecustomize.py", .*\n.*\n( *\^+\n)?' % SHIM, "", text)  # in a traceback
    return re.sub(r"sys.monitoring.register_callback \(<built-in function on_(line|end)>,\)\n", "", text)  # audit, 3.12+


def run(folder, arguments, shim):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    lib = os.path.join(folder, "lib")
    environment["PYTHONPATH"] = shim + ":" + lib if shim else lib
    environment["PYTHONHASHSEED"] = "0"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run([sys.executable] + arguments, cwd=folder, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)
    return done.returncode, clean(done.stdout), clean(done.stderr)


def main():
    failures = 0
    for name, (files, arguments) in CASES.items():
        folder = os.path.realpath(tempfile.mkdtemp())
        try:
            os.mkdir(os.path.join(folder, "lib"))
            for path, text in files.items():
                path = os.path.join(folder, path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w") as file:
                    file.write(text)
            without, with_shim = run(folder, arguments, None), run(folder, arguments, SHIM)
        finally:
            shutil.rmtree(folder)
        if without != with_shim:
            failures += 1
            print("FAILED %s\n  without %r\n  with    %r" % (name, without, with_shim))
    print("%d.%d.%d: %d cases, %d failures" % (sys.version_info[:3] + (len(CASES), failures)))
    sys.exit(bool(failures))


main()
