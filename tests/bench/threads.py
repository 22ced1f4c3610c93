# Four threads that make and drop blocks, half of the time without the interpreter's lock.
import threading
import time
import zlib

THREADS = 4
COUNT = 3_000
TEXT = bytes(range(256)) * 64


def work():
    for _ in range(COUNT):
        zlib.decompress(zlib.compress(TEXT, 1))
        [bytes(2_000) for _ in range(20)]


begin, used = time.perf_counter(), time.process_time()
threads = [threading.Thread(target=work) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(time.perf_counter() - begin, time.process_time() - used, THREADS * COUNT)
