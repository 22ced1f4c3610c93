//! What rmprof-bpf itself must be allowed to do, by capability (capabilities(7)).

use caps::{CapSet, Capability};

/// A capability we use, and for what.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Which.
    pub capability: Capability,
    /// What does not work without it.
    pub purpose: &'static str,
}

/// All that `run` needs; root has them.
pub const NEEDS: &[Need] = &[
    Need { capability: Capability::CAP_BPF, purpose: "loading the probes" },
    Need { capability: Capability::CAP_PERFMON, purpose: "attaching them and reading the program's memory from them" },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        purpose: "holding processes of the program while they are attached to",
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        purpose: "opening libraries and sources as the program sees them",
    },
];

/// Those of [`NEEDS`] we do not have now.
pub fn missing() -> Vec<Need> {
    NEEDS
        .iter()
        .filter(|need| !caps::has_cap(None, CapSet::Effective, need.capability).unwrap_or(false))
        .copied()
        .collect()
}
