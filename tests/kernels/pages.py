"""Keeps 200 MiB, which one line takes."""


def take():
    kept = []
    for _ in range(200):
        kept.append(bytearray(1 << 20))  #: here
    return kept


kept = take()
