# One of pyperformance's own benchmarks, named by the first argument, as its authors wrote it: its loop once or some times.
import pathlib
import runpy
import sys
import time

import pyperformance

name, loops = sys.argv[1], sys.argv[2]
folder = pathlib.Path(pyperformance.__file__).parent / "data-files" / "benchmarks" / f"bm_{name}"
sys.path.insert(0, str(folder))
sys.argv = [str(folder / "run_benchmark.py"), "--worker", "--warmups=0", "--values=1", f"--loops={loops}"] + sys.argv[3:]
begin, used = time.perf_counter(), time.process_time()
runpy.run_path(sys.argv[0], run_name="__main__")
print(time.perf_counter() - begin, time.process_time() - used, 1)
