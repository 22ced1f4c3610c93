//! What rmprof-bpf itself takes while it gathers: read from /proc while it runs.

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// How often it is looked at: what it takes in the last such time of its life is not counted.
const EVERY: Duration = Duration::from_millis(20);

/// Its own process alone: neither the program nor the keeper.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Collector {
    /// Processor time, start and end included.
    pub seconds: f64,
    /// The most it had resident.
    pub resident_bytes: u64,
}

/// A process under observation.
pub struct Watch {
    over: Sender<()>,
    seen: JoinHandle<Collector>,
}

impl Watch {
    /// From now on.
    ///
    /// # Errors
    /// The clock of the kernel's times is unknown.
    pub fn start(pid: u32) -> Result<Watch> {
        let ticks = ticks_per_second()?;
        let (over, heard) = channel();
        Ok(Watch { over, seen: std::thread::spawn(move || look(pid, ticks, &heard)) })
    }

    /// What was seen last.
    ///
    /// # Errors
    /// Never, but for a defect of this bench.
    pub fn end(self) -> Result<Collector> {
        drop(self.over);
        self.seen.join().map_err(|_| anyhow::anyhow!("the observer ended early"))
    }
}

fn look(pid: u32, ticks: f64, over: &Receiver<()>) -> Collector {
    let mut seen = Collector::default();
    loop {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        seen.seconds = seen.seconds.max(processor_ticks(&read("stat")).unwrap_or(0.0) / ticks);
        seen.resident_bytes = seen.resident_bytes.max(kibibytes(&read("status"), "VmHWM:").unwrap_or(0));
        if over.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
            return seen;
        }
    }
}

fn ticks_per_second() -> Result<f64> {
    // SAFETY: asks for a number of the system.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(u32::try_from(ticks).ok().filter(|ticks| *ticks > 0).context("sysconf(_SC_CLK_TCK)")?.into())
}

/// Processor time that a process has taken so far, seconds, and what it has resident, bytes.
///
/// # Errors
/// It has ended.
pub fn taken(pid: u32) -> Result<(f64, u64)> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let seconds = processor_ticks(&read("stat")?).context("its times")? / ticks_per_second()?;
    Ok((seconds, kibibytes(&read("status")?, "VmRSS:").context("VmRSS")?))
}

/// User and system time in ticks of the kernel's clock: fields 14 and 15 of `/proc/PID/stat`; the second field may hold blanks and
/// parentheses.
fn processor_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut field = || fields.next()?.parse::<f64>().ok();
    Some(field()? + field()?)
}

/// A line of `/proc/PID/status`, in bytes.
fn kibibytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_read() {
        let stat = "12 (a) b) S 1 1 1 0 -1 4194560 0 0 0 0 150 50 7 7 20 0";
        assert_eq!(processor_ticks(stat), Some(200.0));
        assert_eq!(kibibytes("Name:\tx\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 << 20));
        assert!(processor_ticks("").is_none() && kibibytes("Name:\tx\n", "VmHWM:").is_none());
        let watch = Watch::start(std::process::id()).unwrap();
        assert!(watch.end().unwrap().resident_bytes > 0);
    }
}
