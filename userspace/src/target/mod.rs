//! Programs and processes from outside: starting, holding and following them, their files and their memory. The only room
//! that names `/proc` and ptrace.

mod archive;
pub mod credentials;
pub mod descriptor;
pub mod elf;
pub mod ending;
pub mod halt;
pub mod identity;
pub mod limits;
mod loading;
pub mod maps;
pub mod memory;
pub mod orphans;
pub mod pods;
pub mod preload;
pub mod signals;
pub mod sites;
pub mod source;
pub mod spawn;
pub mod status;
pub mod supervise;
pub mod thread_local;
mod ticker;
mod tracee;

pub use nix::unistd::Pid;

/// The memory of a process, read (and where it is halted, written) through the kernel. Reads fail once it has ended.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory(pub Pid);

impl crate::python::code::Memory for ProcessMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        memory::read_exact_at(self.0, address, buffer).map_err(std::io::Error::other)
    }
}

impl crate::python::remote::MemoryMut for ProcessMemory {
    fn write(&self, address: u64, bytes: &[u8]) -> std::io::Result<()> {
        memory::write_exact_at(self.0, address, bytes).map_err(std::io::Error::from)
    }
}

/// Bytes of a page of memory.
pub fn page_bytes() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}
