# Temporaries of 8 MiB: each is an mmap and an munmap of the C library, or once it has learnt, a block of its heap.
import time

COUNT = 300
DATA = bytes(8 << 20)


def copy():
    for _ in range(COUNT):
        bytearray(DATA)


begin, used = time.perf_counter(), time.process_time()
copy()
print(time.perf_counter() - begin, time.process_time() - used, COUNT)
