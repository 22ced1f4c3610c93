# Temporaries of numpy, 80,000 bytes each.
import time

import numpy

COUNT = 100_000


def make():
    array = numpy.ones(10_000)
    for _ in range(COUNT):
        array + 1


begin, used = time.perf_counter(), time.process_time()
make()
print(time.perf_counter() - begin, time.process_time() - used, COUNT)
