# As strings.py, made the cheapest way that Python has: the harshest ratio that malloc and free can give.
import time

COUNT = 2_000_000


def make():
    one = "x"
    for _ in range(COUNT):
        one * 600


begin, used = time.perf_counter(), time.process_time()
make()
print(time.perf_counter() - begin, time.process_time() - used, COUNT)
