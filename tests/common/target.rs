//! Programs that run already, bare, and what a session of ours has of them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::{Python, Run, Script, Started, eventually};

/// A program under way: it says `ready`, and then does a step for each line it is sent.
pub struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
    pid: String,
}

impl Target {
    /// Starts it, and waits until it is ready.
    pub fn start(python: &Python, program: &Script) -> Self {
        Self::of(Command::new(&python.path).arg(&program.path))
    }

    /// The same of any command.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let pid = child.id().to_string();
        let mut target = Self { child, output, pid };
        assert_eq!(target.line(), "ready");
        target
    }

    /// The same of a command that starts the program as its only child's only child (and so on).
    pub fn below(command: &mut Command) -> Self {
        let mut target = Self::of(command);
        let children =
            |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        while let Some(child) = children(&target.pid).split_whitespace().next() {
            target.pid = child.to_owned();
        }
        target
    }

    /// Its number.
    pub fn pid(&self) -> String {
        self.pid.clone()
    }

    /// Has it do a step, which may be held up: what it answers is [`line`](Self::line).
    pub fn send(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    /// What it says next.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Has it do a step, and waits until it has.
    pub fn step(&mut self, what: impl AsRef<OsStr>) -> String {
        self.send(what.as_ref().to_str().unwrap());
        self.line()
    }

    /// Has it do a step that is its last, and returns all that it says until it has ended.
    pub fn rest(mut self, what: &str) -> String {
        self.send(what);
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }

    /// Its standard input ends, and so does it.
    pub fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }

    /// Waits until it has ended by itself.
    pub fn status(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }

    /// Its standard input ends, and so does it: what it said on standard error, where that was asked for.
    pub fn errors(mut self) -> String {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        said
    }

    /// Waits until it has been killed.
    pub fn killed(mut self) {
        assert!(!self.child.wait().unwrap().success());
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A map of the kernel's, by its number.
#[derive(Clone, Copy, Debug)]
pub struct KernelMap(u32);

impl KernelMap {
    /// Is it there? It is as long as anybody has it, or a probe that uses it is attached.
    pub fn is_there(self) -> bool {
        MapHandle::from_map_id(self.0).is_ok()
    }

    /// As many as it has entries.
    pub fn count(self) -> usize {
        MapHandle::from_map_id(self.0).map_or(0, |map| map.keys().count())
    }

    /// Of how many processes the sites are that it has.
    pub fn processes_of_sites(self) -> usize {
        let process = |key: Vec<u8>| {
            let at = std::mem::offset_of!(rmprof_probes::abi::rm_site_key, process);
            u32::from_ne_bytes(key[at..at + 4].try_into().unwrap())
        };
        MapHandle::from_map_id(self.0).map_or(0, |map| map.keys().map(process).collect::<HashSet<_>>().len())
    }
}

impl Started {
    /// Maps of the session, by the kernel's numbers.
    pub fn maps(&self) -> Vec<KernelMap> {
        let directory = format!("/proc/{}/fdinfo", self.pid());
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts
            .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()))
            .map(KernelMap)
            .collect()
    }

    /// The kernel's memory of its maps, bytes.
    pub fn map_memory(&self) -> i64 {
        let files = std::fs::read_dir(format!("/proc/{}/fdinfo", self.pid())).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        let maps = texts.filter(|text| text.lines().any(|line| line.starts_with("map_id:")));
        let bytes = maps
            .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<i64>().ok()));
        bytes.sum()
    }

    /// How many links the session has.
    pub fn links(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fdinfo", self.pid())).into_iter().flatten().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.filter(|text| text.lines().any(|line| line.starts_with("link_id:"))).count()
    }

    /// How many descriptors it has.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Its resident bytes.
    pub fn resident(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix(" kB")).unwrap();
        line.trim().parse::<i64>().unwrap() << 10
    }

    /// The map of this name.
    pub fn map(&self, name: &str) -> Option<KernelMap> {
        let is_it = |map: &KernelMap| MapHandle::from_map_id(map.0).is_ok_and(|map| map.name() == name);
        self.maps().into_iter().find(is_it)
    }
}

impl Run {
    /// Starts it, and waits until it measures the target.
    pub fn start_on(self, target: &Target) -> Started {
        let started = self.start();
        eventually("the target is measured", || watches(&started, target));
        started
    }
}

/// Is the target measured in this session? Nothing of the target tells, so the kernel is asked: a process's entry in our map.
pub fn watches(session: &Started, target: &Target) -> bool {
    is_watched(session, target.pid().parse().unwrap())
}

/// The same of any process.
pub fn is_watched(session: &Started, pid: u32) -> bool {
    /// Of rm_process.flags: blocks or pages are counted.
    const COUNTED: u8 = 3;
    let entry = session
        .map("processes")
        .and_then(|map| MapHandle::from_map_id(map.0).ok()?.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok().flatten());
    entry.is_some_and(|process| process[4] & COUNTED != 0)
}
