# What a Python started by rmprof-bpf runs first: site imports this file, because its directory stands first in PYTHONPATH.
# It takes its directory away, runs rmprof-marks.py (marks.py in the repository) where that can work, and gives way to the sitecustomize that would have been
# found without it. Valid in every Python from 2.7 on, and imports nothing that is not there already: the program may have
# a types.py or a copy.py of its own. rmprof-marks.py is read here rather than imported (it has no name to import it by)
# so that its frames carry the file name "<rmprof-bpf>", which the report leaves out.
import sys


def _rmprof_bpf(path, cached):
    directory = path.rpartition("/")[0]
    while directory in sys.path:
        sys.path.remove(directory)
    sys.path_importer_cache.pop(directory, None)
    try:
        name = "builtins" if sys.version_info[0] >= 3 else "__builtin__"
        builtins = sys.modules[name]

        def profile(func=None, *_, **__):
            return profile if func is None else func

        builtins.profile = profile
        if (3, 6) <= sys.version_info[:2] <= (3, 15) and sys.implementation.name == "cpython":
            with sys.modules["_io"].FileIO(directory + "/rmprof-marks.py") as file:
                text = file.readall()
            space = {"__name__": "<rmprof-bpf>", "__builtins__": builtins}
            # Piece by piece: what compiling takes stays with the allocators, and each piece uses that of the one before.
            for piece in text.split(b"\n\n\n"):
                exec(compile(piece, "<rmprof-bpf>", "exec"), space)
            builtins.profile = space["start"](directory)
        if getattr(sys, "pycache_prefix", None) and cached:
            # The import system has just kept a compiled copy under the user's PYTHONPYCACHEPREFIX.
            posix = sys.modules["posix"]
            posix.unlink(cached)
            cached = cached.rpartition("/")[0]
            while len(cached) > len(sys.pycache_prefix):
                posix.rmdir(cached)  # ends at the first that is not empty
                cached = cached.rpartition("/")[0]
    except Exception:
        pass  # without marks, but the program runs


_rmprof_bpf(__file__, globals().get("__cached__"))
_rmprof_bpf = sys.modules.pop("sitecustomize")
# An error here, ImportError of a missing one included, reaches site as it would have without us.
import sitecustomize  # noqa: E402
