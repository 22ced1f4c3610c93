use super::*;
use crate::target::maps::{find_file, mappings, open_executable, open_file};
use crate::target::sites::{Argument, Emulation, choose};
use nix::unistd::Pid;
use std::io::Write;

fn libc_of_this_process() -> (ElfFile, u64) {
    let me = Pid::this();
    let mappings = mappings(me).unwrap();
    let libc = find_file(&mappings, |name| name.to_string_lossy().starts_with("libc.so")).unwrap();
    let elf = ElfFile::parse(open_file(me, libc).unwrap()).unwrap();
    let bias = elf.load_bias(mappings.iter().filter(|mapping| mapping.same_file(libc))).unwrap();
    (elf, bias)
}

#[test]
fn finds_malloc_where_it_is() {
    let (elf, bias) = libc_of_this_process();
    let malloc = elf.symbol("malloc").unwrap();
    assert_eq!(bias.wrapping_add(malloc.address), libc::malloc as *const () as u64);
    assert!(malloc.size > 0 && !malloc.indirect);
    assert_eq!(elf.symbol("no_such_function"), None);
    assert_eq!(elf.soname().as_deref(), Some("libc.so.6"));
    assert!(elf.build_id().is_some_and(|id| id.len() == 20) && elf.exports_symbols());
    assert!(elf.needed().iter().any(|name| name.starts_with("ld-linux")));
    // The bytes of the file are the bytes of memory.
    let code = elf.bytes_at(malloc.address, 32).unwrap();
    let memory = crate::target::memory::read_bytes(Pid::this(), bias + malloc.address, 32).unwrap();
    assert_eq!(code, memory);
    let offset = elf.file_offset(malloc.address).unwrap();
    assert_eq!(elf.data().read_bytes_at(offset, 32).unwrap(), code);
    assert!(elf.symbol("memcpy").is_some_and(|symbol| symbol.indirect));
}

/// On this machine's libc every function but the known exceptions gets an emulated place.
#[test]
fn probe_sites_of_the_machines_libc() {
    let (elf, _) = libc_of_this_process();
    if elf.machine() != Machine::X86_64 {
        return;
    }
    use Argument::{First, Second, Third};
    let functions: [(&str, &[Argument]); 9] = [
        ("malloc", &[First]),
        ("free", &[First]),
        ("calloc", &[First, Second]),
        ("realloc", &[First, Second]),
        ("posix_memalign", &[First, Second, Third]),
        ("aligned_alloc", &[First, Second]),
        ("memalign", &[First, Second]),
        ("valloc", &[First]),
        ("reallocarray", &[First, Second, Third]),
    ];
    for (name, arguments) in functions {
        let symbol = elf.symbol(name).unwrap();
        let code = elf.bytes_at(symbol.address, symbol.size).unwrap();
        let site = choose(code, arguments, Emulation { x86_64: true, long_nops: false });
        println!("{name}+{} emulated={}", site.offset_in_function, site.emulated);
        assert!(site.offset_in_function < symbol.size);
        assert!(site.emulated || name == "reallocarray", "{name}");
    }
}

#[test]
fn own_program() {
    let elf = ElfFile::parse(open_executable(Pid::this()).unwrap()).unwrap();
    assert!(elf.interpreter().is_some_and(|path| path.contains("ld-")));
    let text = elf.section(".text").unwrap();
    assert!(text.size > 0 && elf.file_offset(text.address).is_some());
    assert_eq!(elf.section(".nothing"), None);
    assert_eq!(elf.file_offset(u64::MAX), None);
    assert!(elf.bytes_at(u64::MAX, u64::MAX).is_none());
}

fn try_everything(content: &[u8]) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    let Ok(elf) = ElfFile::parse(file) else { return };
    elf.symbols(&["malloc", "main"]);
    elf.section(".PyRuntime");
    elf.build_id();
    elf.needed();
    elf.interpreter();
    elf.exports_symbols();
    for segment in elf.segments.clone() {
        elf.bytes_at(segment.address, u64::MAX);
        elf.file_offset(segment.address);
    }
    let mapping = crate::target::maps::mappings(Pid::this()).unwrap();
    elf.load_bias(&mapping);
}

#[test]
fn hostile_files_do_no_harm() {
    try_everything(b"");
    try_everything(b"\x7fELF");
    let whole = std::fs::read("/proc/self/exe").unwrap();
    let whole = &whole[..whole.len().min(256 << 10)];
    // A fixed sequence (xorshift), so that a failure repeats.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..150 {
        let mut content = whole.to_vec();
        for _ in 0..=round % 7 {
            // Mostly the headers: that is where the offsets are.
            let place = (next() % 1200) as usize;
            content[place] = next() as u8;
        }
        if round % 5 == 0 {
            content.truncate((next() % content.len() as u64) as usize);
        }
        try_everything(&content);
    }
}
