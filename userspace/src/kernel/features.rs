//! Questions to the kernel, each answered by asking it, not by its version.

use std::path::Path;

use libbpf_rs::btf::Btf;

use super::load::{Kernel, Mode, Wanted};

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
    let btf = Btf::from_vmlinux();
    let traced = |name: &str| -> Result<String, String> {
        match &btf {
            Ok(btf) if btf.type_by_name::<libbpf_rs::btf::BtfType<'_>>(&format!("btf_trace_{name}")).is_some() => {
                Ok("yes".into())
            }
            Ok(_) => Err("not in this kernel".into()),
            Err(_) => Err("unknown without BTF".into()),
        }
    };
    let function = |name: &str| match &btf {
        Ok(btf) if btf.type_by_name::<libbpf_rs::btf::BtfType<'_>>(name).is_some() => Ok("yes".into()),
        _ => Err("not in this kernel".into()),
    };
    vec![
        Answer {
            name: "BTF",
            found: exists("/sys/kernel/btf/vmlinux"),
            cost: "nothing works: take a kernel built with CONFIG_DEBUG_INFO_BTF=y (every large distribution's is)",
        },
        Answer {
            name: "ring buffer",
            found: map_type(libbpf_sys::BPF_MAP_TYPE_RINGBUF),
            cost: "nothing works: Linux 5.8 or later has it",
        },
        Answer {
            name: "thread storage",
            found: map_type(libbpf_sys::BPF_MAP_TYPE_TASK_STORAGE),
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
            found: function("bpf_session_is_return"),
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
        loads("probes of pages mode", Mode::Pages),
        loads("probes of heap mode", Mode::Heap),
    ]
}

fn exists(path: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok("yes".into()) } else { Err(format!("{path} is not there")) }
}

fn map_type(kind: u32) -> Result<String, String> {
    // SAFETY: a plain number in, a plain number out; libbpf tries to make such a map.
    match unsafe { libbpf_sys::libbpf_probe_bpf_map_type(kind, std::ptr::null()) } {
        1 => Ok("yes".into()),
        0 => Err("not in this kernel, or not allowed".into()),
        code => Err(std::io::Error::from_raw_os_error(-code).to_string()),
    }
}

fn loads(name: &'static str, mode: Mode) -> Answer {
    let found = match Kernel::load(Wanted { mode, follow: false }, None) {
        Ok((kernel, _, _)) => Ok(format!("loaded and attached ({:?} probes)", kernel.rung).to_lowercase()),
        Err(error) => Err(error.to_string()),
    };
    Answer { name, found, cost: "that mode does not work: the kernel's own words are above" }
}
