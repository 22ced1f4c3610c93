"""Grows by a quarter of a MiB at a time, on one line, until it is killed."""
import time


def grow():
    kept = []
    while True:
        kept.append(bytearray(1 << 18))  #: here
        time.sleep(0.02)


print("it runs", flush=True)
grow()
