//! Descriptors for other processes, and theirs.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// A descriptor that stands for process `pid`, readable when it has ended (pidfd_open, Linux 5.3).
///
/// # Errors
/// When there is none, or too few descriptors.
pub fn of_process(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    open(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })
}

/// A copy of what process `pid` has open as `number` (pidfd_getfd, Linux 5.6).
///
/// # Errors
/// When it has nothing there, has ended, or may not be looked into.
pub fn copy_of(pid: Pid, number: i32) -> io::Result<File> {
    let process = of_process(pid)?;
    // SAFETY: plain integers.
    let copy = open(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
    Ok(copy.into())
}

/// What such a system call returned.
fn open(answer: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(Errno::result(answer)?).map_err(io::Error::other)?;
    // SAFETY: just opened, and nobody else's. (The kernel sets close-on-exec on both kinds.)
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_copy_is_of_the_same_file() {
        let (mut reader, writer) = io::pipe().unwrap();
        let copy = copy_of(Pid::this(), writer.as_raw_fd()).unwrap();
        drop(writer);
        io::Write::write_all(&mut &copy, b"x").unwrap();
        drop(copy);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert_eq!(copy_of(Pid::this(), 0x7000_0000).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
