# What pdb needs in both of its places here: in a program that we have started (at_limit.py), and in a process that runs already
# (from_outside.py), one of which stands below this file. CPython 3.6 to 3.15. Executed in a namespace of its own, with the file name
# "<rmprof-bpf debugger>": what is allocated below a frame of that name is the debugger's, not the line's.
import sys

_posix = sys.modules["posix"]
_io = sys.modules["_io"]


def _standard_folder():
    # site and os have been imported before any file of the program could be; with -S neither has been.
    for name in ("os", "site"):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            return file.rpartition("/")[0]
    return getattr(sys, "_stdlib_dir", None) or "\0"


_STDLIB = _standard_folder()
_PATH = [entry for entry in sys.path if isinstance(entry, str) and (entry == _STDLIB or entry.endswith((".zip", "lib-dynload")))]
_MANUALLY = ("site-packages", "dist-packages")


def _own(filename):
    # As report/own_file.rs: what is typed in or given with -c is the user's own, other code without a file is not.
    if filename[:1] == "<" and filename[-1:] == ">":
        return filename == "<stdin>" or (filename == "<string>" and sys.argv[:1] == ["-c"])
    if filename.startswith((_STDLIB + "/", _help)):
        return False
    parent = ""
    for part in filename.split("/"):
        version = part[7:-4] if part.endswith(".zip") else part[7:].rstrip("td")
        if parent in ("lib", "lib64") and part[:7] == "python3" and not version.strip(".0123456789"):
            return False
        if part in _MANUALLY:
            return False
        parent = part or parent
    return bool(filename)


class _Library:
    """While it is entered, imports come from the standard library: the program may have a pdb.py, cmd.py or copy.py of its own. A module
    imported meanwhile that the program would have found elsewhere is not there for it afterwards."""

    def __init__(self):
        self.kept = {}  # those modules, by name
        self.depth = 0

    def _is_standard(self, module):
        file = vars(module).get("__file__") if isinstance(module, type(sys)) else None
        if isinstance(file, str):
            return file.startswith(_STDLIB + "/") and not any("/%s/" % word in file for word in _MANUALLY) or "lib-dynload/" in file
        return vars(module).get("__spec__") is not None if isinstance(module, type(sys)) else False

    def _hides_one(self, name):
        top = _STDLIB + "/" + name.partition(".")[0]
        for place in (top + ".py", top + "/__init__.py"):
            try:
                _posix.stat(place)
                return True
            except OSError:
                pass
        return False

    def _names_elsewhere(self):
        names = set()
        for entry in self.path:
            if entry not in _PATH:
                try:
                    names.update(name.partition(".")[0] for name in _posix.listdir(entry or "."))
                except (OSError, TypeError):
                    pass  # a zip archive: its modules are not told apart
        return names

    def __enter__(self):
        self.depth += 1
        if self.depth > 1:
            return
        self.hidden = {}
        for name, module in sys.modules.copy().items():
            if not self._is_standard(module) and self._hides_one(name) and sys.modules.pop(name, self) is not self:
                self.hidden[name] = module
        self.there = set(sys.modules)
        sys.modules.update(self.kept)
        self.path = sys.path[:]
        sys.path[:] = _PATH + [entry for entry in self.path if entry not in _PATH]

    def __exit__(self, *_):
        self.depth -= 1
        if self.depth:
            return
        sys.path[:] = self.path
        try:
            others = self._names_elsewhere()
            for name, module in sys.modules.copy().items():
                if name not in self.there and name.partition(".")[0] in others and self._is_standard(module):
                    self.kept[name] = sys.modules.pop(name)
        finally:
            sys.modules.update(self.hidden)


def _make_base(pdb):
    class Base(pdb.Pdb):
        def get_stack(self, frame, traceback):
            # From the outermost frame of the user's own on: what started it is of no interest.
            stack, index = pdb.Pdb.get_stack(self, frame, traceback)
            own = [place for place, (each, _) in enumerate(stack) if _own(each.f_code.co_filename)]
            first = min(own[0] if own else 0, index)
            return stack[first:], index - first

        def do_run(self, _):
            """run, restart
            Not possible here: pdb has not started the program."""
            # pdb would raise its Restart into the program, which nobody there takes.
            self.error("run and restart are not possible: pdb has not started the program, and cannot start it again")

        do_restart = do_run

    return Base
