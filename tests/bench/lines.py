# A marked function: 1,000,000 executions of a line, none of which allocates.
import time

COUNT = 250_000

try:
    profile
except NameError:

    def profile(function):
        return function


@profile
def run():
    a = b = 1
    for _ in range(COUNT):
        a = b
        b = a
        a = b


begin, used = time.perf_counter(), time.process_time()
run()
print(time.perf_counter() - begin, time.process_time() - used, 4 * COUNT + 2)
