//! Where the kernel has all memory mapped for itself: told by `/proc/kcore`, or looked for by the probes (`find_direct` in
//! probes/bpf/direct.bpf.h), and believed when words of ours, which nobody else's memory has, are found through it. Where it is not
//! found, the kernel's helper reads the program's memory, and each event takes longer.

use std::fs::{File, read_to_string};
use std::io::{self, Read};

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};
use rmprof_probes::abi;

use super::attach::{bytes_of, from_bytes};
use super::map::Map;

const PAGES: usize = abi::RM_DIRECT_KNOWN as usize;
const GIBIBYTE: u64 = 1 << 30;
/// The kernel's own text is mapped from here on (Documentation/arch/x86/x86_64/mm.rst), at a distance of its own.
const TEXT: u64 = 0xffff_ffff_8000_0000;
/// A program header for each piece of memory: some tens, on the largest machines some hundreds.
const MOST_HEADERS: u64 = 1 << 17;

/// What the probes look for, which must stand where it is until they have.
pub(super) struct Words(Box<[Page; PAGES]>);

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page {
    words: [u64; 2],
}

impl Words {
    /// Words by chance, in pages of their own.
    pub fn new() -> io::Result<Self> {
        let mut words = [0_u64; 2];
        // SAFETY: the room for what is asked for.
        let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), size_of_val(&words), 0) };
        if usize::try_from(got).is_ok_and(|got| got == size_of_val(&words)) {
            Ok(Self(Box::new([Page { words }; PAGES])))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Tells the probes of them, and where to look on a machine of so many pages of memory.
    pub fn tell(&self, map: &Map, pages: u64) -> io::Result<()> {
        let (from, gibibytes) = match File::open("/proc/kcore") {
            _ if !may_look() => (0, 0),
            Ok(file) => told_by(file).map_or((0, 0), |base| (base, 1)),
            // Twice what the machine has, and some: it has holes.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_encrypted() => {
                (0, u32::try_from((pages >> 18) * 2 + 64).unwrap_or(u32::MAX))
            }
            Err(_) => (0, 0),
        };
        let direct = abi::rm_direct {
            base: 0,
            from,
            words: self.0[0].words,
            known: std::array::from_fn(|page| std::ptr::from_ref(&self.0[page].words).addr() as u64),
            levels: 0,
            gibibytes,
        };
        map.update(&0_u32.to_ne_bytes(), bytes_of(&direct))
    }
}

/// Have they found it?
pub(super) fn is_found(map: &Map) -> bool {
    let found = map.lookup(&0_u32.to_ne_bytes()).ok().flatten();
    found.and_then(|bytes| from_bytes::<abi::rm_direct>(&bytes)).is_some_and(|direct| direct.base != 0)
}

/// The kernel's memory as a core file (fs/proc/kcore.c): its headers have for each piece of memory both its addresses.
fn told_by(core: impl Read) -> Option<u64> {
    let mut data = Vec::new();
    core.take(MOST_HEADERS).read_to_end(&mut data).ok()?;
    let header = FileHeader64::<Endianness>::parse(&*data).ok()?;
    let endian = header.endian().ok()?;
    let pieces = header.program_headers(endian, &*data).ok()?.iter();
    pieces
        .map(|piece| (piece.p_vaddr(endian), piece.p_paddr(endian)))
        .filter(|&(address, physical)| address < TEXT && physical < address)
        .map(|(address, physical)| address - physical)
        .find(|base| base % GIBIBYTE == 0)
}

/// A guest of Xen that knows it (PV) has numbers of the machine's own pages in its tables, which are not where the kernel has them.
fn may_look() -> bool {
    let kind = read_to_string("/sys/hypervisor/guest_type");
    cfg!(target_arch = "x86_64") && !kind.is_ok_and(|kind| kind.trim() == "PV")
}

/// The guest of a machine that encrypts it may have memory that it has not accepted yet, and ends when it looks there: it is not searched.
/// This is Intel TDX; of AMD's SEV-SNP the probes see it by the entries of their tables.
#[cfg(target_arch = "x86_64")]
fn is_encrypted() -> bool {
    const TDX: u32 = 0x21; // arch/x86/include/asm/shared/tdx.h, TDX_CPUID_LEAF_ID
    let most = std::arch::x86_64::__cpuid(0).eax;
    let said = (most >= TDX).then(|| std::arch::x86_64::__cpuid_count(TDX, 0));
    said.is_some_and(|said| [said.ebx, said.edx, said.ecx].map(u32::to_le_bytes).concat() == *b"IntelTDX    ")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_encrypted() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core file's headers, with these addresses and physical addresses.
    fn core(pieces: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        for half in [object::elf::ET_CORE, object::elf::EM_X86_64, 1, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for word in [0_u64, 64, 0] {
            bytes.extend(word.to_le_bytes());
        }
        for half in [0, 0, 64, 56, u16::try_from(pieces.len()).unwrap(), 0, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        for &(address, physical) in pieces {
            let kind = u64::from(object::elf::PT_LOAD) | 7 << 32;
            for word in [kind, 0, address, physical, 4096, 4096, 4096] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn a_core_file_tells_where_memory_is() {
        // What /proc/kcore of a Linux 6.12 has: text, vmalloc, memory below and above the hole of devices, the array of struct page.
        let pieces = [
            (0xffff_ffff_a120_0000, 0x2_1120_0000),
            (0xffff_b4a8_c000_0000, u64::MAX),
            (0xffff_9b35_0000_1000, 0x1000),
            (0xffff_9b36_0000_0000, 0x1_0000_0000),
            (0xffff_e5ff_8000_0000, u64::MAX),
        ];
        assert_eq!(told_by(&*core(&pieces)), Some(0xffff_9b35_0000_0000));
        assert_eq!(told_by(&*core(&pieces[..2])), None, "no memory in it");
        assert_eq!(told_by(&core(&pieces)[..100]), None, "cut");
        assert_eq!(told_by(io::empty()), None, "masked, as in containers");
    }
}
