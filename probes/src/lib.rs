//! The probes as bytes, and the types they share with user space.

/// The ABI of `bpf/rmprof.h`, generated: structs, limits and enumerators keep their C names.
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, clippy::all)]
pub mod abi {
    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}

impl abi::rm_constants {
    /// As they stand in the object.
    pub fn bytes(&self) -> &[u8] {
        // Without a byte of padding.
        const { assert!(size_of::<Self>() == 4 * size_of::<u32>() + (1 + abi::RM_ALARMS as usize) * size_of::<u64>()) };
        // SAFETY: each of its bytes belongs to a number.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// The compiled object with all programs and maps (see `bpf/rmprof.bpf.c`).
#[cfg(feature = "libbpf")]
pub const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rmprof.bpf.o"));

/// The same without session and multi-probes, for loaders that do not know them.
#[cfg(feature = "single")]
pub const SINGLE_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/single.bpf.o"));

/// The same with the pieces of an event besides, each to be measured by itself (see `bpf/pieces.bpf.h`).
#[cfg(feature = "pieces")]
pub const PIECES_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pieces.bpf.o"));

/// The compiled library that a started program gets (see `preload/tally.c`).
pub const TALLY_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tally.so"));
