# Calls and no allocation: what a program pays for being watched.
import time


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


begin, used = time.perf_counter(), time.process_time()
fib(32)
print(time.perf_counter() - begin, time.process_time() - used, 7_049_155)  # calls
