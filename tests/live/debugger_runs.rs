//! A program that passes the limit at places chosen by chance does what it does bare, each time. `RMPROF_PDB_RUNS` says how often with
//! each Python; `RMPROF_SEED` begins elsewhere.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use crate::common::{Python, Ran, Run, Script, Target, finish, root, script, supported_pythons};

const RUNS: u64 = 3;

const PROGRAM: &str = r#"
import hashlib, json, random, sys, threading, zlib

if sys.argv[3:] == ["waits"]:
    print("ready", flush=True)
    sys.stdin.readline()
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
if sys.argv[3:] == ["tell"]:
    print(*sizes)
sys.exit(int(digest.hexdigest(), 16) % 100)
"#;

/// So many with each Python, from this seed on.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (runs, first) = (number("RMPROF_PDB_RUNS").unwrap_or(RUNS), number("RMPROF_SEED").unwrap_or(0));
    first..first + runs
}

/// The program with one seed, bare, and the limit that it is given under us.
struct Chance<'p> {
    program: &'p Script,
    seed: String,
    limit: String,
    bare: Ran,
    who: String,
}

impl<'p> Chance<'p> {
    fn of(python: &Python, program: &'p Script, seed: u64) -> Self {
        let seed_text = seed.to_string();
        let mut command = Command::new(&python.path);
        let out = program.directory().join("bare");
        let bare = finish(command.args([program.path.as_os_str(), seed_text.as_ref(), out.as_ref(), "tell".as_ref()]));
        let peak = bare.stdout_text().trim().parse::<u64>().unwrap() >> 10;
        // Somewhere between what the interpreter takes and the most.
        let limit = 9 + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % peak.saturating_sub(9).max(1);
        let who = format!("{} RMPROF_SEED={seed} --pdb-mmem {limit}", python.path.display());
        Self { program, seed: seed_text, limit: limit.to_string(), bare, who }
    }

    /// Where the program writes what it came to under us.
    fn ours(&self) -> PathBuf {
        self.program.directory().join("ours")
    }

    /// It came to the same.
    fn check(self, status: ExitStatus, shown: &str) {
        let text = |name: &str| std::fs::read_to_string(self.program.directory().join(name));
        let (who, ours) = (self.who, text("ours").unwrap_or_default());
        assert_eq!(status.code(), self.bare.status.code(), "{who}\n{shown}");
        assert_eq!(ours, text("bare").unwrap(), "{who}\n{shown}");
        std::fs::remove_file(self.program.directory().join("ours")).unwrap();
    }
}

#[test]
fn root_the_program_does_what_it_does_bare() {
    if !root() {
        return;
    }
    let program = script("chance.py", PROGRAM);
    let mut stops = 0;
    for python in supported_pythons() {
        for seed in seeds() {
            let chance = Chance::of(&python, &program, seed);
            let run = Run::new(["--pdb-mmem", &chance.limit, "-o", "/dev/null"]).word(&python.path);
            let mut terminal = run.word(&program.path).word(&chance.seed).word(chance.ours()).in_terminal();
            while terminal.expect_or_end("(Pdb) ") {
                stops += 1;
                terminal.send("c");
            }
            let (status, shown) = terminal.end();
            chance.check(status, &shown);
        }
    }
    assert!(stops > 0, "the debugger never opened");
    println!("{stops} stops");
}

/// The same of one that runs already, where that can be (3.14): once or over and over, with some lines step by step.
#[test]
fn root_attached_it_does_what_it_does_bare() {
    if !root() {
        return;
    }
    let program = script("chance.py", PROGRAM);
    let mut pythons = supported_pythons();
    pythons.retain(|python| python.version.0 >= 14);
    if pythons.is_empty() {
        println!("NOT RUN: there is no CPython 3.14 or later");
        return;
    }
    let mut stops = 0;
    for python in pythons {
        for seed in seeds() {
            let chance = Chance::of(&python, &program, seed);
            let mut command = Command::new(&python.path);
            command.arg(&program.path).arg(&chance.seed).arg(chance.ours()).arg("waits");
            let mut target = Target::of(&mut command);
            let again = if seed % 2 == 1 { &["--pdb-mmem-step", "4"][..] } else { &[] };
            let run = Run::new(["attach", "-o", "/dev/null", "--pdb-mmem", &chance.limit]).words(again);
            let mut terminal = run.word(target.pid()).in_terminal();
            terminal.expect("Ctrl-C writes the report");
            target.send("go");
            let mut by_step = ["n", "s", "n", "c"].into_iter().cycle();
            while terminal.expect_or_end("(Pdb) ") {
                stops += 1;
                terminal.send(if seed % 3 == 0 { "c" } else { by_step.next().unwrap() });
            }
            let status = target.status();
            let (ours, shown) = terminal.end();
            assert_eq!(ours.code(), Some(0), "{shown}");
            chance.check(status, &shown);
        }
    }
    assert!(stops > 0, "the debugger never opened");
    println!("{stops} stops");
}
