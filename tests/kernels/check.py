"""The checks that scripts/kernels has made in each kernel: `CHECK KERNEL NAME: ok`, or FAILED and why, a line each."""
import json
import os
import re
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
KERNEL = os.uname().release
MIB = 1 << 20
# Until 6.2 a thread counts its own pages, and tells its process's account of them now and then.
BATCHED = tuple(int(part) for part in re.findall(r"\d+", KERNEL)[:2]) < (6, 2)
# What the line of blocks.py had, however it was counted.
BLOCKS = []


class Wrong(Exception):
    pass


def expect(condition, *words):
    if not condition:
        raise Wrong(" ".join(str(word) for word in words))


def rmprof(*words):
    """What it says is in the log; a report in JSON is at the path that comes back."""
    path = "/tmp/report.json"
    if os.path.exists(path):
        os.unlink(path)
    command = ["rmprof-bpf", *words]
    if words[0] != "doctor":
        command[2:2] = ["--format", "json", "--output", path]
    print("$", *command, flush=True)
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=240)
    print(said.stdout, f"exit status {said.returncode}", sep="", flush=True)
    return said, path


def measure_all(*words):
    """The report of a run that ended well."""
    said, path = rmprof(*words)
    expect(said.returncode == 0, "exit status", said.returncode, "of", *words)
    with open(path) as file:
        return json.load(file)


def measure(*words):
    """The same of one process."""
    report = measure_all(*words)
    expect(len(report["processes"]) == 1, len(report["processes"]), "processes in the report")
    return report, report["processes"][0]


def line(process, program, name="here"):
    """What the line of the program that says `here` has itself, in however many functions (a comprehension was one of its own)."""
    with open(program) as file:
        here = next(number for number, text in enumerate(file, 1) if text.endswith(f"#: {name}\n"))
    found = [
        row
        for function in process["functions"]
        if function["filename"] == program
        for row in function["lines"]
        if row["line"] == here
    ]
    expect(found, "line", here, "of", program, "is not in the report")
    return sum(row["self_bytes"] for row in found)


def healthy(report):
    missing = {name: value for name, value in report["health"].items() if name != "events" and value not in (0, {})}
    expect(not missing, "health:", json.dumps(missing))


def doctor():
    said, _ = rmprof("doctor")
    modes = dict((mode, (can, how)) for can, mode, how in re.findall(r"^ *(\w+) +probes of (\w+) mode +(.*)", said.stdout, re.MULTILINE))
    expect(list(modes) == ["pages", "heap"], "it speaks of these modes:", *modes)
    bad = [f"{mode} mode: {how}" for mode, (can, how) in modes.items() if can != "ok"]
    expect(not bad, "; ".join(bad))
    return modes["heap"][1]


def pages():
    program = f"{HERE}/pages.py"
    report, process = measure("run", "--mode", "pages", "/usr/bin/python3", program)
    healthy(report)
    change = process["rss_end_bytes"] - process["rss_start_bytes"]
    off = process["net_bytes"] - change
    expect(abs(off) <= (MIB if BATCHED else 0), "net_bytes", process["net_bytes"], "but the change of RSS is", change)
    itself = line(process, program)
    expect(200 * MIB <= itself <= 201 * MIB, "the line has", itself)
    return f"{itself} bytes, net is {off} bytes off"


def heap(*options):
    program = f"{HERE}/blocks.py"
    report, process = measure("run", "--mode", "heap", *options, "/usr/bin/python3", program)
    healthy(report)
    itself = line(process, program)
    # A block of bytes(600) is 633 bytes, and the list has a pointer for each and some to spare.
    expect(2000 * 641 <= itself <= 2000 * 650, "the line has", itself)
    BLOCKS.append(itself)
    expect(itself == BLOCKS[0], "the line has", itself, "but", BLOCKS[0], "with the preloaded library")
    return f"{itself} bytes"


def crowd(mode):
    program = f"{HERE}/crowd.py"
    report = measure_all("run", "--mode", mode, "/usr/bin/python3", program)
    healthy(report)
    workers = [process for process in report["processes"] if process["pid"] != report["processes"][0]["pid"]]
    expect(len(workers) == 5, len(workers), "workers in the report")
    blocks = [line(worker, program) for worker in workers]
    if mode == "heap":
        maps = {line(worker, program, "maps") for worker in workers}
        # Of a mapping alone there are 96 MiB; its objects come to a few dozen kilobytes.
        expect(len(maps) == 1 and 0 <= min(maps) - (1500 << 16) <= MIB // 4, "the lines that map have", sorted(maps))
        expect(len(set(blocks)) == 1, "the lines have", blocks)
    slack = MIB // 2 if mode == "heap" else MIB
    expect(all(abs(bytes - 24 * MIB) <= slack for bytes in blocks), "the lines have", blocks)
    return f"{blocks[0]} bytes"


def attach(mode):
    program = f"{HERE}/grows.py"
    with subprocess.Popen(["/usr/bin/python3", program], stdout=subprocess.PIPE, text=True) as running:
        try:
            running.stdout.readline()
            report, process = measure("attach", "--mode", mode, "--duration", "1", str(running.pid))
        finally:
            running.kill()
    healthy(report)
    itself = line(process, program)
    expect(itself >= MIB, "the line has", itself)
    return f"{itself} bytes"


def dmesg():
    said = subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, errors="replace", check=True).stdout
    bad = re.compile(r"\bBUG\b|\bWARNING\b|\bOops\b|Call Trace|general protection fault|Bad page|Bad rss|unable to handle")
    found = [text for text in said.splitlines() if bad.search(text)]
    if found:
        print(said, flush=True)
    expect(not found, *found[:1])
    # A page, an oops, a warning, a lockup: the bits 5, 7, 9 and 14 (Documentation/admin-guide/tainted-kernels.rst).
    with open("/proc/sys/kernel/tainted") as file:
        tainted = int(file.read())
    expect(tainted & (1 << 5 | 1 << 7 | 1 << 9 | 1 << 14) == 0, "the kernel is tainted:", tainted)


CHECKS = {
    "doctor": doctor,
    "pages": pages,
    "heap": heap,
    "heap, no preload": lambda: heap("--no-preload"),
    "crowd, pages": lambda: crowd("pages"),
    "crowd, heap": lambda: crowd("heap"),
    "attach, pages": lambda: attach("pages"),
    "attach, heap": lambda: attach("heap"),
    "dmesg": dmesg,
}

for name, check in CHECKS.items():
    try:
        told = check()
        outcome = f"ok ({told})" if told else "ok"
    except (Wrong, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        outcome = f"FAILED: {error}"
    print(f"CHECK {KERNEL} {name}: {outcome}".replace("\n", " "), flush=True)
print(f"CHECK {KERNEL} end", flush=True)
