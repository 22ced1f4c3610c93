//! A program that passes the limit at places chosen by chance does what it does bare, each time. `RMPROF_PDB_RUNS` says how often with
//! each Python; `RMPROF_SEED` begins elsewhere.

use std::process::Command;

use crate::common::{Run, finish, root, script, supported_pythons};

const RUNS: u64 = 3;

const PROGRAM: &str = r#"
import hashlib, json, random, sys, threading, zlib

chance = random.Random(int(sys.argv[1]))
digest = hashlib.sha256()
kept = []

def note(value):
    digest.update(repr(value).encode())

def text(size):
    return "".join(chr(97 + (n * 7) % 26) for n in range(size % 100)) * (size // 100 + 1)

def counted(limit):
    total = 0
    while total < limit:
        total += yield total

def objects(count):
    return {n: [str(n), (n, n + 1), {n}] for n in range(count)}

def deep(depth, size):
    try:
        if depth:
            return deep(depth - 1, size) + 1
        kept.append(bytearray(size))
        raise KeyError(size)
    except KeyError as error:
        kept.append(repr(error) * 10)
        return len(kept[-1])
    finally:
        note(depth)

def reading(size):
    with open("/dev/zero", "rb") as source:
        block = source.read(size)
    kept.append(block)
    return len(block)

def generated(count):
    generator = counted(count * 3)
    next(generator)
    found = []
    try:
        for n in range(count):
            found.append(generator.send(2))
    except StopIteration:
        found.append("stopped")
    kept.append(found)
    return len(found)

def packed(size):
    data = text(size).encode()
    kept.append(zlib.compress(data, 1) + data)
    return zlib.crc32(data)

def in_threads(count, size):
    results = [None] * count

    def work(index):
        block = [bytes([index]) * 100 for _ in range(size // 100)]
        kept.append(block)
        results[index] = sum(map(len, block))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

def written(count):
    kept.append(json.dumps(objects(count), default=sorted))
    return len(kept[-1])

steps = [
    lambda: len(text(chance.randrange(1 << 20))),
    lambda: deep(chance.randrange(30), chance.randrange(1 << 20)),
    lambda: reading(chance.randrange(1 << 21)),
    lambda: generated(chance.randrange(20000)),
    lambda: packed(chance.randrange(1 << 20)),
    lambda: in_threads(3, chance.randrange(1 << 18)),
    lambda: written(chance.randrange(3000)),
    lambda: len([kept.append(list(range(n))) for n in range(chance.randrange(200))]),
]
for _ in range(60):
    note(chance.choice(steps)())
    note(len(kept))
with open(sys.argv[2], "w") as out:
    out.write(digest.hexdigest())
with open("/proc/self/status") as status:
    sizes = [line.split()[1] for line in status if line.startswith("VmHWM")]
if sys.argv[3:]:
    print(*sizes)
sys.exit(int(digest.hexdigest(), 16) % 100)
"#;

#[test]
fn root_the_program_does_what_it_does_bare() {
    if !root() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (runs, first) = (number("RMPROF_PDB_RUNS").unwrap_or(RUNS), number("RMPROF_SEED").unwrap_or(0));
    let program = script("chance.py", PROGRAM);
    let file = |name: &str| program.directory().join(name);
    let mut stops = 0;
    for python in supported_pythons() {
        for seed in first..first + runs {
            let seed_text = seed.to_string();
            let bare =
                finish(Command::new(&python.path).arg(&program.path).arg(&seed_text).arg(file("bare")).arg("tell"));
            let peak = bare.stdout_text().trim().parse::<u64>().unwrap() >> 10;
            // Somewhere between what the interpreter takes and the most.
            let limit = 9 + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % peak.saturating_sub(9).max(1);
            let run = Run::new(["--pdb-mmem", &limit.to_string(), "-o", "/dev/null"]).word(&python.path);
            let mut terminal = run.word(&program.path).word(&seed_text).word(file("ours")).in_terminal();
            while terminal.expect_or_end("(Pdb) ") {
                stops += 1;
                terminal.send("c");
            }
            let (status, shown) = terminal.end();
            let who = format!("{} RMPROF_SEED={seed} --pdb-mmem {limit}\n{shown}", python.path.display());
            assert_eq!(status.code(), bare.status.code(), "{who}");
            let text = |name: &str| std::fs::read_to_string(file(name)).unwrap();
            assert_eq!(text("ours"), text("bare"), "{who}");
            std::fs::remove_file(file("ours")).unwrap();
        }
    }
    assert!(stops > 0, "the debugger never opened");
    println!("{stops} stops");
}
