//! Our program beside one that runs already: begun, waited for until it counts, and ended.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libbpf_rs::query::MapInfoIter;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

/// How long we may take before we are given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of our sessions, which counts.
pub struct Session {
    child: Child,
    /// From its start until all that it was to watch was watched.
    pub begun_in: Duration,
}

impl Session {
    /// Begins it, and waits until it watches these processes.
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
            let watched =
                |map: &MapHandle| map.lookup(&target.to_ne_bytes(), MapFlags::ANY).is_ok_and(|of| of.is_some());
            if map.as_ref().is_some_and(watched) {
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
    let folder = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let texts = fs::read_dir(folder).ok()?.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let number = |text: &str| text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
    let ids: Vec<u32> = texts.filter_map(|text| number(&text)).collect();
    let table = MapInfoIter::default().find(|map| ids.contains(&map.id) && map.name == "processes")?;
    MapHandle::from_map_id(table.id).ok()
}

/// Processor time that a process has taken so far, seconds, and what it has resident, bytes.
///
/// # Errors
/// It has ended.
pub fn taken(pid: u32) -> Result<(f64, u64)> {
    // SAFETY: asks for a number of the system.
    let ticks = u32::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let status = read("status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let resident: u64 = resident.context("VmRSS")?.parse()?;
    let used = crate::bench::watch::processor_ticks(&read("stat")?).context("its times")?;
    Ok((used / f64::from(ticks), resident << 10))
}
