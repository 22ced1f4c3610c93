//! Processes that count their blocks themselves: the library we preload in a program that we start (probes/preload/tally.c), and the
//! memory that it shares with us. A trap for every block costs a microsecond or two; this some tens of nanoseconds.
//!
//! The library is given to an image at its exec ([`target::preload`](crate::target::preload)) and says when its memory is there
//! ([`ANNOUNCER`]); [`Segments`] are that memory, one for the image and more for its forks. What is found in it is the target's word:
//! every number is read once and checked, and the memory is sealed, so that it cannot be made smaller under us.

mod history;
mod segments;

use std::num::{NonZeroU32, NonZeroU64};

use anyhow::{Context, Result};
use rmprof_probes::{TALLY_LIBRARY, abi};

use crate::launch;
use crate::target::supervise::Announcer;

pub use history::History;
pub use segments::{Segment, Segments, Sums};

/// Variances are whole numbers: so many are the square of the mean distance of two bytes that are sampled.
pub const VARIANCE_UNIT: f64 = (1u64 << abi::RM_TALLY_VARIANCE_SHIFT) as f64;

/// Where blocks are sampled, one of so many pages of Python's arenas is counted, for all; `None`: each is.
pub fn pages_each(sample: NonZeroU64) -> Option<NonZeroU32> {
    let pages = sample.get().saturating_add(u64::from(abi::RM_PAGE) / 2) / u64::from(abi::RM_PAGE);
    u32::try_from(pages).ok().filter(|pages| *pages > 1).and_then(NonZeroU32::new)
}

/// The name of the library's file.
pub const FILE: &str = match abi::RM_TALLY_FILE.to_str() {
    Ok(name) => name,
    Err(_) => panic!("the name of the library's file is ASCII"),
};

/// How the library says that it is there.
pub const ANNOUNCER: Announcer = Announcer { file: FILE, descriptor: abi::RM_TALLY_ANNOUNCE as u64 };

/// The library's functions that probes are attached to, and what a call of each means (`enum rm_launch_role`).
const SITES: [(&str, u32); 2] =
    [("rmprof_site_stack", abi::RM_LAUNCH_STACK), ("rmprof_site_tally", abi::RM_LAUNCH_TALLY)];

/// Where the probes go: role, and offset in the library's file.
///
/// # Errors
/// When the library built into this program is damaged.
pub fn sites() -> Result<Vec<(u32, u64)>> {
    SITES
        .iter()
        .map(|(symbol, role)| Ok((*role, launch::offset_of(TALLY_LIBRARY, symbol).context("the preloaded library")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSymbol};

    use super::*;
    use crate::kernel::allocators::FAMILY;

    #[test]
    fn the_library_stands_before_the_whole_family() {
        let elf = object::File::parse(TALLY_LIBRARY).unwrap();
        let exported: Vec<&str> =
            elf.exports().unwrap().iter().map(|export| std::str::from_utf8(export.name()).unwrap()).collect();
        for function in FAMILY {
            // glibc has had no cfree since 2.26, which is older than what the library is for.
            assert!(exported.contains(&function.symbol) || function.symbol == "cfree", "{}", function.symbol);
        }
        assert_eq!(sites().unwrap().len(), SITES.len());
    }

    /// A program must not fail to start for want of a symbol.
    #[test]
    fn the_library_needs_nothing() {
        let elf = object::File::parse(TALLY_LIBRARY).unwrap();
        for symbol in elf.dynamic_symbols().filter(|symbol| symbol.is_undefined()) {
            assert!(symbol.is_weak() || symbol.name() == Ok(""), "{:?}", symbol.name());
        }
    }
}
