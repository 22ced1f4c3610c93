//! Reading another process's memory: bounded, and never a partial answer taken for a whole one.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;

/// The most bytes one call reads: a length found in the target is never believed beyond this.
pub const LARGEST_READ: usize = 64 << 20;

/// A read of another process's memory that did not give every byte asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("process {pid}: cannot read {bytes} bytes at {address:#x}: {reason}")]
pub struct ReadError {
    /// Whose memory.
    pub pid: Pid,
    /// First byte asked for.
    pub address: u64,
    /// How many were asked for.
    pub bytes: usize,
    /// Why: `ESRCH` the process is gone, `EFAULT` nothing is mapped there, `EPERM` not allowed, `E2BIG` over the limit.
    pub reason: Errno,
}

impl ReadError {
    /// Whether the process has ended, rather than the address being wrong.
    pub fn process_gone(&self) -> bool {
        self.reason == Errno::ESRCH
    }

    /// What the person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        (self.reason == Errno::EPERM)
            .then_some("reading another process needs CAP_SYS_PTRACE: run as root, or see `rmprof-bpf doctor`")
    }
}

/// Fills `buffer` from `address` of process `pid`.
///
/// By `/proc/PID/mem`, not by `process_vm_readv(2)`: that one pins the pages it reads, and for a pin the kernel gives a process
/// a copy of its own of each page that it shares with another since a fork (`gup_must_unshare`, mm/internal.h, since Linux 5.19).
/// While the copy is put in, the page is in no page table, so a probe that runs in the child at that instant cannot read its
/// own thread state; and the child's resident memory should not change because it was looked at.
///
/// # Errors
/// [`ReadError`] where not every byte could be read; the buffer then holds no meaning.
pub fn read_exact_at(pid: Pid, address: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
    let bytes = buffer.len();
    let error = |reason| ReadError { pid, address, bytes, reason };
    if bytes > LARGEST_READ {
        return Err(error(Errno::E2BIG));
    }
    address.checked_add(bytes as u64).ok_or(error(Errno::EFAULT))?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(|reason| match reason.raw_os_error() {
        // There is no such directory any more.
        Some(libc::ENOENT) => error(Errno::ESRCH),
        Some(libc::EACCES) => error(Errno::EPERM),
        reason => error(reason.map_or(Errno::EIO, Errno::from_raw)),
    })?;
    let mut done = 0;
    while done < bytes {
        match memory.read_at(&mut buffer[done..], address + done as u64) {
            // The process has given its memory back: it ends.
            Ok(0) => return Err(error(Errno::ESRCH)),
            Ok(read) => done += read,
            Err(reason) => match reason.raw_os_error() {
                Some(libc::EINTR) => {}
                // So this file says that nothing is mapped there.
                Some(libc::EIO) => return Err(error(Errno::EFAULT)),
                reason => return Err(error(reason.map_or(Errno::EIO, Errno::from_raw))),
            },
        }
    }
    Ok(())
}

/// Writes `bytes` at `address` of a process that is held.
///
/// # Errors
/// What the kernel says; `EFAULT` where not every byte could be written: some then may be.
pub fn write_exact_at(pid: Pid, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let base = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let remote = [RemoteIoVec { base, len: bytes.len() }];
    match process_vm_writev(pid, &[IoSlice::new(bytes)], &remote)? {
        written if written == bytes.len() => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Reads `bytes` bytes into a new vector.
///
/// # Errors
/// As [`read_exact_at`]; a length over [`LARGEST_READ`] is refused before anything is allocated.
pub fn read_bytes(pid: Pid, address: u64, bytes: usize) -> Result<Vec<u8>, ReadError> {
    if bytes > LARGEST_READ {
        return Err(ReadError { pid, address, bytes, reason: Errno::E2BIG });
    }
    let mut buffer = vec![0; bytes];
    read_exact_at(pid, address, &mut buffer)?;
    Ok(buffer)
}

/// Reads one little-endian 64-bit word.
///
/// # Errors
/// As [`read_exact_at`].
pub fn read_u64(pid: Pid, address: u64) -> Result<u64, ReadError> {
    let mut word = [0; 8];
    read_exact_at(pid, address, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// Reads one little-endian 32-bit word.
///
/// # Errors
/// As [`read_exact_at`].
pub fn read_u32(pid: Pid, address: u64) -> Result<u32, ReadError> {
    let mut word = [0; 4];
    read_exact_at(pid, address, &mut word)?;
    Ok(u32::from_le_bytes(word))
}

/// Reads a NUL-terminated string, without its NUL, of at most `limit` bytes; a longer one is cut there.
///
/// # Errors
/// As [`read_exact_at`], where memory ends before a NUL is found.
pub fn read_c_string(pid: Pid, address: u64, limit: usize) -> Result<Vec<u8>, ReadError> {
    const STEP: u64 = 256;
    let mut text = Vec::new();
    while text.len() < limit {
        let from = address.saturating_add(text.len() as u64);
        // Never across a multiple of STEP, hence never across a page the string does not reach.
        let room = (STEP - from % STEP) as usize;
        let piece = read_bytes(pid, from, room.min(limit - text.len()))?;
        if let Some(end) = piece.iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Ok(text);
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_of<T: ?Sized>(value: &T) -> u64 {
        std::ptr::from_ref(value).cast::<u8>() as u64
    }

    #[test]
    fn reads_what_is_there() {
        let words = [0x1122_3344_5566_7788u64, 42];
        let me = Pid::this();
        assert_eq!(read_u64(me, address_of(&words)), Ok(words[0]));
        assert_eq!(read_u64(me, address_of(&words) + 8), Ok(42));
        assert_eq!(read_u32(me, address_of(&words)), Ok(0x5566_7788));
        let text = std::ffi::CString::new("x".repeat(5000)).unwrap();
        assert_eq!(read_c_string(me, text.as_ptr() as u64, 1 << 16).unwrap().len(), 5000);
        assert_eq!(read_c_string(me, text.as_ptr() as u64, 100).unwrap().len(), 100);
    }

    #[test]
    fn refuses_what_is_not() {
        let me = Pid::this();
        assert_eq!(read_u64(me, 8).unwrap_err().reason, Errno::EFAULT);
        assert_eq!(read_u64(me, u64::MAX - 3).unwrap_err().reason, Errno::EFAULT);
        assert_eq!(read_bytes(me, 0, usize::MAX).unwrap_err().reason, Errno::E2BIG);
        assert!(read_u64(Pid::from_raw(0x3fff_fff0), 8).unwrap_err().process_gone());
    }

    /// Is the page at `address` of `pid` in no page table but that process's? Bit 56 (Documentation/admin-guide/mm/pagemap.rst).
    fn is_exclusive(pid: Pid, address: u64) -> bool {
        let mut entry = [0; 8];
        File::open(format!("/proc/{pid}/pagemap")).unwrap().read_exact_at(&mut entry, address / 4096 * 8).unwrap();
        let entry = u64::from_le_bytes(entry);
        assert_ne!(entry >> 63, 0, "the page is not there");
        entry >> 56 & 1 == 1
    }

    #[test]
    fn a_page_that_a_child_shares_stays_shared_when_it_is_read() {
        // SAFETY: a fresh anonymous mapping of a page, written to before anybody shares it.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            start.cast::<u64>().write(42);
            start as u64
        };
        // SAFETY: the child calls nothing but pause.
        let child = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => loop {
                nix::unistd::pause();
            },
        };
        let read = read_u64(child, start);
        let before_end = [is_exclusive(Pid::this(), start), is_exclusive(child, start)];
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        assert_eq!(read, Ok(42));
        assert_eq!(before_end, [false, false]);
    }

    #[test]
    fn a_partial_read_is_an_error() {
        // SAFETY: a fresh anonymous mapping of two pages, of which the second is given back.
        let start = unsafe {
            let start =
                libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            libc::munmap(start.byte_add(4096), 4096);
            start as u64
        };
        assert!(read_bytes(Pid::this(), start, 4096).is_ok());
        assert!(read_bytes(Pid::this(), start + 4000, 97).is_err());
    }
}
