//! Where the kernel has all memory mapped for itself: the probes look for it (`find_direct` in probes/bpf/direct.bpf.h) with words of ours
//! that nobody else's memory has. Where it is not found, the kernel's helper reads the program's memory, and each event takes longer.

use std::io;

use rmprof_probes::abi;

use super::attach::{bytes_of, from_bytes};
use super::map::Map;

/// What the probes look for, which must stand where it is until they have.
pub(super) struct Words(Box<Aligned>);

/// Within one page.
#[repr(align(16))]
struct Aligned([u64; 2]);

impl Words {
    /// Words by chance.
    pub fn new() -> io::Result<Self> {
        let mut words = Box::new(Aligned([0; 2]));
        // SAFETY: the room for what is asked for.
        let got = unsafe { libc::getrandom(words.0.as_mut_ptr().cast(), size_of_val(&words.0), 0) };
        if usize::try_from(got).is_ok_and(|got| got == size_of_val(&words.0)) {
            Ok(Self(words))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Tells the probes of them.
    pub fn tell(&self, map: &Map, pages: u64) -> io::Result<()> {
        let known = if may_look() { std::ptr::from_ref(&self.0.0).addr() as u64 } else { 0 };
        // Twice what the machine has, and some: it has holes.
        let gibibytes = u32::try_from((pages >> 18) * 2 + 64).unwrap_or(u32::MAX);
        let direct = abi::rm_direct { base: 0, known, words: self.0.0, levels: 0, gibibytes };
        map.update(&0_u32.to_ne_bytes(), bytes_of(&direct))
    }
}

/// Have they found it?
pub(super) fn is_found(map: &Map) -> bool {
    let found = map.lookup(&0_u32.to_ne_bytes()).ok().flatten();
    found.and_then(|bytes| from_bytes::<abi::rm_direct>(&bytes)).is_some_and(|direct| direct.base != 0)
}

/// The guest of a machine that encrypts it (Intel TDX) may have memory that it has not accepted yet, and ends when it looks there.
#[cfg(target_arch = "x86_64")]
fn may_look() -> bool {
    const TDX: u32 = 0x21; // arch/x86/include/asm/shared/tdx.h, TDX_CPUID_LEAF_ID
    let most = std::arch::x86_64::__cpuid(0).eax;
    let said = if most < TDX { None } else { Some(std::arch::x86_64::__cpuid_count(TDX, 0)) };
    said.is_none_or(|said| [said.ebx, said.edx, said.ecx].map(u32::to_le_bytes).concat() != *b"IntelTDX    ")
}

#[cfg(not(target_arch = "x86_64"))]
fn may_look() -> bool {
    false
}
