//! We are killed: the program runs on, and nothing of ours stays.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::common::{Run, Script, Target, any_python, eventually, root, script, watches};

/// How many times we are killed, at moments of chance, in each test: as many as `RMPROF_KILLS` says.
fn times(usual: u32) -> u32 {
    std::env::var("RMPROF_KILLS").map_or(usual, |number| number.parse().unwrap())
}

/// The longest a start takes here before the program is well under way.
const START: Duration = Duration::from_millis(250);

/// Works in steps, says each, starts processes and threads on the way, and at the end what came out; that end it does not reach
/// before we are gone.
const WORKER: &str = "
import os, subprocess, sys, threading

@profile
def work(number):
    kept = [bytearray(5_000) for _ in range(200)]
    thread = threading.Thread(target=lambda: kept.append(bytearray(100_000)))
    thread.start(); thread.join()
    if number % 4 == 0:
        child = os.fork()
        if child == 0:
            os._exit(len([bytearray(10_000) for _ in range(50)]) % 256)
        status = os.waitpid(child, 0)[1]
        assert status == 50 << 8, status
        assert subprocess.run([sys.executable, '-S', '-c', 'print(6 * 7)'], stdout=subprocess.PIPE).stdout == b'42\\n'
    return sum(len(block) for block in kept)

total = 0
for number in range(12):
    total += work(number)
    print(number, flush=True)
while 'TracerPid:\\t0\\n' not in open('/proc/self/status').read():
    pass
total += work(number)
print('total', total, flush=True)
";

const TOTAL: &str = "total 14300000";

/// Links of ours on this process. The kernel tells it for multi-probes (since 6.8, commit e56fdbfb06e2).
fn links_on(pid: i64) -> usize {
    let pid = u32::try_from(pid).unwrap();
    LinkInfoIter::default()
        .filter(|link| matches!(&link.info, LinkTypeInfo::UprobeMulti(about) if about.pid == pid))
        .count()
}

/// Temporary directories of the runs with these process numbers.
fn directories(runs: &[Pid]) -> Vec<PathBuf> {
    let parents = ["/run".into(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into(), std::env::temp_dir()];
    let entries = parents.iter().filter_map(|parent: &PathBuf| std::fs::read_dir(parent).ok()).flatten().flatten();
    let names: Vec<String> = runs.iter().map(|run| format!("rmprof-bpf-{run}-")).collect();
    let of_run = |name: &str| names.iter().any(|start| name.starts_with(start));
    entries.filter(|entry| of_run(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

fn nothing_is_left(runs: &[Pid]) {
    eventually("temporary directories are gone", || directories(runs).is_empty());
}

/// A generator of chance: xorshift64*, its seed on standard output so that a failure can be repeated.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() & 0xffff_ffff_ffff)
            .unwrap()
            | 1;
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

fn worker() -> Script {
    script("worker.py", WORKER)
}

#[test]
fn root_killed_at_work_the_program_ends_as_it_should() {
    if !root() {
        return;
    }
    let (program, mut chance, mut runs) = (worker(), Chance::new(), Vec::new());
    for _ in 0..times(20) {
        let mut started = Run::new([&any_python().path, &program.path]).env("PYTHONWARNINGS", "ignore").start();
        runs.push(started.pid());
        let steps = chance.below(11);
        for expected in 0..=steps {
            assert_eq!(started.number(), i64::try_from(expected).unwrap());
        }
        spin(Duration::from_micros(chance.below(15_000)));
        started.signal(Signal::SIGKILL);
        let ran = started.end();
        assert!(ran.stdout_text().ends_with(&format!("11\n{TOTAL}\n")), "{ran}");
        assert_eq!(ran.stderr_text(), "", "after {steps} steps");
        assert_eq!(ran.status.code(), None, "killed before its end: {ran}");
    }
    nothing_is_left(&runs);
}

/// Killed while it starts, the program has either not begun or does all of its work.
#[test]
fn root_killed_at_the_start_the_program_does_all_or_nothing() {
    if !root() {
        return;
    }
    let (program, mut chance, mut runs) = (worker(), Chance::new(), Vec::new());
    let limit = u64::try_from(START.as_micros()).unwrap();
    let mut begun = 0;
    for _ in 0..times(20) {
        let started = Run::new([&any_python().path, &program.path]).env("PYTHONWARNINGS", "ignore").start();
        runs.push(started.pid());
        spin(Duration::from_micros(chance.below(limit)));
        started.signal(Signal::SIGKILL);
        let ran = started.end();
        let text = ran.stdout_text();
        let whole = text.starts_with("0\n1\n") && text.ends_with(&format!("11\n{TOTAL}\n"));
        assert!(text.is_empty() || whole, "{ran}");
        assert_eq!(ran.stderr_text(), "", "{ran}");
        begun += u32::from(!text.is_empty());
    }
    println!("{begun} of {} programs had begun", times(20));
    nothing_is_left(&runs);
}

/// Allocates at each step, with threads and forks, and says what came out.
const SERVER: &str = "
import os, sys, threading
kept = []

def step(number):
    blocks = [bytearray(5_000) for _ in range(200)]
    thread = threading.Thread(target=lambda: blocks.append(bytearray(100_000)))
    thread.start(); thread.join()
    child = os.fork()
    if child == 0:
        os._exit(len([bytearray(10_000) for _ in range(50)]))
    status = os.waitpid(child, 0)[1]
    kept.append(bytearray(10_000))
    return sum(len(block) for block in blocks) + (status >> 8) + len(kept) - number

print('ready', flush=True)
for number, line in enumerate(sys.stdin):
    print(step(number), flush=True)
";

/// What each step of it says, whoever watches.
const STEP: &str = "1100051";

/// Killed at any moment while it attaches, measures or writes: the target is right, and no probe is on it.
#[test]
fn root_killed_while_attached_the_target_is_as_before() {
    if !root() {
        return;
    }
    let (program, mut chance) = (script("served.py", SERVER), Chance::new());
    let mut target = Target::start(&any_python(), &program);
    let pid: i64 = target.pid().parse().unwrap();
    for what in ["attach --mode pages", "attach --mode heap", "system --mode pages", "system --mode heap"] {
        let mut watched = 0;
        for _ in 0..times(5) {
            let run = Run::new(what.split(' '));
            let glob = format!("*{}*", program.name());
            let run = if what.starts_with("attach") { run.word(target.pid()) } else { run.words(["--command", &glob]) };
            let started = run.start();
            let begun = Instant::now();
            let moment = Duration::from_micros(chance.below(600_000));
            while begun.elapsed() < moment {
                assert_eq!(target.step("step"), STEP, "{what}");
            }
            watched += u32::from(watches(&started, &target));
            let maps = started.maps();
            started.signal(Signal::SIGKILL);
            assert_eq!(target.step("step"), STEP, "{what}");
            eventually("no probe is on the target", || links_on(pid) == 0);
            eventually("its code is as in the files", || differing_code(pid).is_empty());
            eventually("nothing of ours is in the kernel", || !maps.iter().any(|map| map.is_there()));
            assert_eq!(started.end().stdout_text(), "", "{what}");
        }
        println!("{what}: killed {} times, {watched} of them while it measured", times(5));
    }
    assert_eq!(target.step("step"), STEP);
    target.end();
}

/// Time that passes without a wait: a moment of chance is wanted, not an order of events.
fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

const WAITER: &str = "
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
kept = [bytearray(5_000) for _ in range(1000)]
print(os.environ['PYTHONPATH'].split(':')[0])
print(os.getpid(), flush=True)
signal.sigwait([signal.SIGUSR1])
kept += [bytearray(5_000) for _ in range(1000)]
print(len(kept))
";

#[test]
fn root_killed_no_probe_and_no_directory_stays() {
    if !root() {
        return;
    }
    let program = script("waiter.py", WAITER);
    for mode in ["heap", "pages"] {
        let mut started = Run::new(["--mode", mode]).words([&any_python().path, &program.path]).start();
        let directory = PathBuf::from(started.line());
        let pid = started.number();
        assert!(directory.join("sitecustomize.py").exists(), "{directory:?}");
        let links = links_on(pid);
        assert_eq!(
            differing_code(pid).is_empty(),
            mode == "pages" && !multi_probes(),
            "the probes are in the program's code"
        );
        println!("{mode}: {links} links on the program");
        if multi_probes() {
            assert!(links > 0, "the kernel has multi-probes and none is on the program");
        }
        started.signal(Signal::SIGKILL);
        eventually("no probe is on the program", || links_on(pid) == 0);
        let number = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        eventually("its code is as in the files", || differing_code(pid).is_empty());
        let tracer = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("\nTracerPid:\t0\n");
        eventually("nobody traces the program", tracer);
        nix::sys::signal::kill(number, Signal::SIGUSR1).unwrap();
        let ran = started.end();
        assert_eq!((ran.stdout_text().as_str(), ran.stderr_text().as_str()), ("2000\n", ""), "{mode}");
        eventually("its directory is gone", || !directory.exists());
    }
}

/// Where the code in a process's memory is not that of the file it was mapped from: a breakpoint is there.
fn differing_code(pid: i64) -> Vec<String> {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let hexadecimal = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (start, end, offset) = (hexadecimal(start), hexadecimal(end), hexadecimal(words[2]));
        // Our own extension, whose sites are probed too, may be gone from its directory already.
        let file = std::fs::File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")).unwrap();
        let (mut mapped, mut stored) = (vec![0; usize::try_from(end - start).unwrap()], Vec::new());
        stored.resize(mapped.len(), 0);
        let length = file.read_at(&mut stored, offset).unwrap();
        memory.read_exact_at(&mut mapped[..length], start).unwrap();
        let differing = (0..length).filter(|at| mapped[*at] != stored[*at]);
        found.extend(differing.map(|at| format!("{}+{:#x}", words[5], offset + at as u64)));
    }
    found
}

/// Does this kernel tell whom a multi-probe is for? As `uname -r` says: from 6.8 on.
fn multi_probes() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 8)
}

#[test]
fn root_an_ordinary_end_leaves_nothing() {
    if !root() {
        return;
    }
    let text = "import os; print(os.environ['PYTHONPATH'].split(':')[0]); print(os.getpid())";
    let ran = Run::json().word(any_python().path).words(["-c", text]).run().expect(0).quiet();
    let output = ran.stdout_text();
    let directory = PathBuf::from(output.lines().next().unwrap());
    assert!(!directory.exists(), "{directory:?} is there when the run has ended");
    // A start that fails leaves nothing either.
    let started = Run::new(["/no/such/program"]).start();
    let run = started.pid();
    started.end().expect(127);
    nothing_is_left(&[run]);
}

/// The directory is root's, for others to read alone, and its name cannot be guessed.
#[test]
fn root_what_is_temporary_is_closed_to_others() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !root() {
        return;
    }
    let program = script("waiter.py", WAITER);
    let mut started = Run::json().words([&any_python().path, &program.path]).start();
    let directory = PathBuf::from(started.line());
    let pid = started.number();
    let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    for path in std::iter::once(directory.clone()).chain(files) {
        let about = path.symlink_metadata().unwrap();
        assert_eq!((about.uid(), about.permissions().mode() & 0o022), (0, 0), "{path:?}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGUSR1).unwrap();
    started.end().expect(0).quiet();
}
