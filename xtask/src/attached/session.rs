//! Our program beside one that runs already: begun, waited for until it counts, and ended.

use std::mem::offset_of;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rmprof_probes::abi;

use crate::waiting::ids_of;

/// How long we may take before we are given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of our sessions, which counts.
pub struct Session {
    child: Child,
    /// From its start until all that it was to watch was watched.
    pub begun_in: Duration,
}

impl Session {
    /// Begins it, and waits until these processes count.
    ///
    /// # Errors
    /// It ended, or took too long.
    pub fn begin(binary: &Path, words: &[&str], targets: &[u32]) -> Result<Self> {
        let started = Instant::now();
        let mut child = Command::new(binary)
            .args(words)
            .args(["--format", "json", "--output", "/dev/null"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut map = None;
        let mut waiting = targets.iter().peekable();
        while let Some(target) = waiting.peek() {
            ensure!(child.try_wait()?.is_none(), "rmprof-bpf {} has ended\nhint: run as root", words.join(" "));
            ensure!(started.elapsed() < PATIENCE, "process {target} is not watched after {PATIENCE:?}");
            map = map.or_else(|| processes_of(child.id()));
            if map.as_ref().is_some_and(|map| counts(map, **target)) {
                waiting.next();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(Self { child, begun_in: started.elapsed() })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ctrl-C: how long it takes from there to its end, the report written and the probes gone.
    ///
    /// # Errors
    /// It did not end well.
    pub fn end(mut self) -> Result<Duration> {
        let asked = Instant::now();
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: a call without addresses, on a child that was not waited for.
        ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0, "rmprof-bpf has ended early");
        ensure!(self.child.wait()?.success(), "rmprof-bpf failed");
        Ok(asked.elapsed())
    }
}

/// The table of watched processes of one of our sessions.
fn processes_of(pid: u32) -> Option<MapHandle> {
    let ids = ids_of(pid, "map_id");
    let table = MapInfoIter::default().find(|map| ids.contains(&map.id) && map.name == "processes")?;
    MapHandle::from_map_id(table.id).ok()
}

/// Is something of this process counted? It may be there only to be looked at.
fn counts(processes: &MapHandle, pid: u32) -> bool {
    let process = processes.lookup(&pid.to_ne_bytes(), MapFlags::ANY).ok().flatten().unwrap_or_default();
    let flags = process.get(offset_of!(abi::rm_process, flags)..).and_then(|rest| rest.first_chunk());
    flags.is_some_and(|flags| u32::from_ne_bytes(*flags) & (abi::RM_HEAP | abi::RM_PAGES) != 0)
}
