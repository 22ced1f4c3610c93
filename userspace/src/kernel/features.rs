//! Questions to the kernel, each answered by asking it, not by its version.

use std::collections::HashSet;
use std::path::Path;

use super::backend::{Loader, MapKind};
use super::load::{Follow, How, Kernel, Mode, Wanted};
use super::preempted;
use crate::alarm::Alarms;

/// A feature, whether it is there, and what to do when it is not.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was asked.
    pub name: &'static str,
    /// There or not, with detail where there is some.
    pub found: Result<String, String>,
    /// What its absence costs, and how to mend it.
    pub cost: &'static str,
}

/// Asks everything. Loading the probes, the last questions, needs the capabilities.
pub fn ask() -> Vec<Answer> {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux").ok();
    let known = btf.as_deref().and_then(names);
    let traced = |name: &str| -> Result<String, String> {
        match &known {
            Some(known) if known.contains(format!("btf_trace_{name}").as_bytes()) => Ok("yes".into()),
            Some(_) => Err("not in this kernel".into()),
            None => Err("unknown without BTF".into()),
        }
    };
    let function = |name: &str| match &known {
        Some(known) if known.contains(name.as_bytes()) => Ok("yes".into()),
        _ => Err("not in this kernel".into()),
    };
    let mut answers = vec![
        Answer {
            name: "BTF",
            found: exists("/sys/kernel/btf/vmlinux"),
            cost: "nothing works: take a kernel built with CONFIG_DEBUG_INFO_BTF=y (every large distribution's is)",
        },
        Answer {
            name: "ring buffer",
            found: can_make(MapKind::RingBuffer),
            cost: "nothing works: Linux 5.8 or later has it",
        },
        Answer {
            name: "thread storage",
            found: can_make(MapKind::ThreadStorage),
            cost: "nothing works: Linux 5.11 or later has it",
        },
        Answer {
            name: "user probes",
            found: exists("/sys/bus/event_source/devices/uprobe"),
            cost: "no heap mode and no marks: take a kernel built with CONFIG_UPROBE_EVENTS=y; --mode pages works",
        },
        Answer {
            name: "multi-probes",
            found: function("bpf_uprobe_multi_link"),
            cost: "attaching still works, but letting go takes seconds: Linux 6.6 or later has them",
        },
        Answer {
            name: "session probes",
            found: function("BPF_TRACE_UPROBE_SESSION"),
            cost: "a little more time to attach: Linux 6.13 or later has them",
        },
        Answer {
            name: "probe cookies",
            found: function("bpf_get_attach_cookie_trace"),
            cost: "no heap mode and no marks: Linux 5.15 or later has them",
        },
        Answer {
            name: "tracepoint rss_stat",
            found: traced("rss_stat"),
            cost: "no pages mode and no Mem usage: Linux 5.5 or later has it",
        },
        Answer {
            name: "tracepoint page_fault_user",
            found: traced("page_fault_user"),
            cost: "Python's arenas are not counted in heap mode (x86-64 alone has it)",
        },
        Answer {
            name: "tracepoint sys_enter",
            found: traced("sys_enter"),
            cost: "mappings of the program's own are not counted: CONFIG_FTRACE_SYSCALLS=y",
        },
    ];
    if preempted::are_preempted() {
        answers.push(Answer {
            name: "function probes",
            found: match preempted::functions_can_be_probed() {
                true => Ok("yes".into()),
                false => Err("not in this kernel, or not allowed".into()),
            },
            cost: "mappings that a busy machine has the probes miss, and counts (Health): take a kernel built with CONFIG_FPROBE=y",
        });
    }
    answers.extend([loads("probes of pages mode", Mode::Pages), loads("probes of heap mode", Mode::Heap)]);
    answers
}

fn exists(path: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok("yes".into()) } else { Err(format!("{path} is not there")) }
}

fn can_make(kind: MapKind) -> Result<String, String> {
    match Loader::default().can_make(kind) {
        Ok(true) => Ok("yes".into()),
        Ok(false) => Err("not in this kernel, or not allowed".into()),
        Err(error) => Err(error),
    }
}

/// All names in the kernel's BTF, which has a table of them (include/uapi/linux/btf.h, `struct btf_header`).
fn names(btf: &[u8]) -> Option<HashSet<&[u8]>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = btf.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    };
    let (header, table, length) = (number(4)?, number(16)?, number(20)?);
    let start = header.checked_add(table)?;
    let table = btf.get(start..start.checked_add(length)?)?;
    Some(table.split(|byte| *byte == 0).collect())
}

fn loads(name: &'static str, mode: Mode) -> Answer {
    let wanted = Wanted { mode, native: true, follow: Follow::Nobody, limit: false, alarms: Alarms::default() };
    let found = match Kernel::load(wanted, How::default()) {
        Ok((kernel, _, _)) => {
            let by = Loader::default().name();
            let reads = if kernel.direct { "memory read directly" } else { "memory read by calls" };
            Ok(format!("loaded by {by} and attached ({:?} probes, {reads})", kernel.rung).to_lowercase())
        }
        Err(error) => Err(error.to_string()),
    };
    Answer { name, found, cost: "that mode does not work: the kernel's own words are above" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_nothing_is_read_beyond_the_table() {
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for number in [24u32, 0, 0, 0, 9] {
            btf.extend(number.to_ne_bytes());
        }
        btf.extend(b"\0one\0two\0");
        let found = names(&btf).map(|names| (names.contains(b"one".as_slice()), names.contains(b"tw".as_slice())));
        assert_eq!(found, Some((true, false)));
        for length in 0..btf.len() {
            assert!(names(&btf[..length]).is_none(), "{length}");
        }
    }
}
