//! The program that tells its own frames (target.py), and its threads, stopped one at a time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use rmprof_bpf::python::discover::{Interpreter, Module, find};
use rmprof_bpf::target::elf::ElfFile;
use rmprof_bpf::target::{Pid, ProcessMemory, maps};
use serde::Deserialize;

/// Name, qualified name, file, line.
pub type Frame = (String, String, String, u32);

/// What the program tells.
#[derive(Debug, Deserialize)]
pub struct Truth {
    /// Its Python threads.
    pub threads: Vec<Thread>,
    /// Whether it has made one thread more that Python does not know.
    pub native: bool,
}

/// One thread.
#[derive(Debug, Deserialize)]
pub struct Thread {
    /// `pthread_self()`.
    pub pthread: u64,
    /// The kernel's number.
    pub number: i32,
    /// What it waits in.
    pub place: String,
    /// Innermost first.
    pub frames: Vec<Frame>,
}

/// How long the program has to get where it said it would stop.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under way. It ends when this is dropped.
pub struct Target {
    child: Child,
    _input: Option<ChildStdin>,
}

impl Target {
    /// Has a Python execute a script of this folder.
    pub fn start(python: &Path, script: &str) -> Target {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/walker").join(script);
        let mut command = Command::new(python);
        command.args(["-X", "utf8"]).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Target { _input: child.stdin.take(), child }
    }

    /// What it tells, once its threads have stopped.
    pub fn truth(&mut self) -> Truth {
        let line = self.line().expect("the program ended early");
        let truth: Truth = serde_json::from_str(&line).unwrap();
        for thread in &truth.threads {
            self.wait_for(thread);
        }
        truth
    }

    /// The one line that it says; `None`: it ended without.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let output = self.child.stdout.take().unwrap();
        (BufReader::new(output).read_line(&mut line).unwrap() > 0).then_some(line)
    }

    /// The kernel's number of its first thread.
    pub fn first_thread(&self) -> i32 {
        self.pid().as_raw()
    }

    /// Asks the kernel again and again until the thread is in the system call that it waits in.
    fn wait_for(&mut self, thread: &Thread) {
        let calls: &[libc::c_long] = match thread.place.as_str() {
            "read" => &[libc::SYS_read],
            "lock" => &[libc::SYS_futex],
            "sleep" => &[libc::SYS_clock_nanosleep, libc::SYS_pselect6, libc::SYS_select],
            other => panic!("{other} is no place to stop in"),
        };
        let path = format!("/proc/{}/task/{}/syscall", self.child.id(), thread.number);
        let begin = Instant::now();
        loop {
            let text = fs::read_to_string(&path).unwrap();
            let call = text.split(' ').next().and_then(|number| number.trim().parse().ok());
            if call.is_some_and(|call| calls.contains(&call)) {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "the program ended early");
            assert!(begin.elapsed() < PATIENCE, "thread {} is not in {}: {text}", thread.number, thread.place);
            std::thread::yield_now();
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn memory(&self) -> ProcessMemory {
        ProcessMemory(self.pid())
    }

    /// The kernel's numbers of all its threads.
    pub fn threads(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().file_name().to_string_lossy().parse().unwrap()).collect()
    }

    /// Its Python, found in the files it maps.
    pub fn interpreter(&self) -> Interpreter {
        let mappings = maps::mappings(self.pid()).unwrap();
        let code = mappings.iter().filter(|mapping| mapping.is_file() && mapping.permissions.execute);
        let files: Vec<_> = code
            .filter_map(|mapping| {
                let file = ElfFile::parse(maps::open_file(self.pid(), mapping).ok()?).ok()?;
                let bias = file.load_bias(mappings.iter().filter(|other| other.same_file(mapping)))?;
                Some((mapping.path.clone(), bias, file))
            })
            .collect();
        let modules: Vec<Module<'_>> =
            files.iter().map(|(path, load_bias, file)| Module { path, load_bias: *load_bias, file }).collect();
        find(&modules, Some(&self.memory())).unwrap().unwrap()
    }

    /// Stops one thread until the answer is dropped.
    pub fn stop(&self, number: i32) -> Stopped {
        let thread = Pid::from_raw(number);
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Stopped(thread)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread that is stopped.
pub struct Stopped(Pid);

impl Stopped {
    /// What the walker gets from the kernel: the thread pointer.
    pub fn thread_pointer(&self) -> u64 {
        ptrace::getregs(self.0).unwrap().fs_base
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}
