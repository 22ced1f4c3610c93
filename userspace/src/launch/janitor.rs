//! Removes a directory of ours when we can no longer do it ourselves.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// A small process of our own (its name is `rmprof-janitor`) that waits until we are gone, however that comes about, and so
/// is the program, whose Python may be about to read the directory; then it removes the directory and ends. It learns of our
/// end by the end of a pipe whose only writer we are, so it needs no signal and no polling; it sits in a session of its own
/// and ignores all signals that can be ignored, so that the Ctrl-C or the `kill` that ends us does not end it.
///
/// Dropping it is the normal end: the pipe is closed, and the janitor waited for.
#[derive(Debug)]
pub(super) struct Janitor {
    writer: Option<OwnedFd>,
    process: Pid,
}

/// What the janitor needs, made before the fork: after it nothing is allocated.
struct Orders<'a> {
    reader: RawFd,
    /// Where the directory is, held open: its path may be seen by another process alone, and go with it.
    parent: RawFd,
    name: &'a CStr,
    names: &'a [&'a CStr],
}

impl Janitor {
    /// Forks the janitor of a directory `name` that will be made in `parent` and hold nothing but `names`: whenever we are killed, it is there.
    pub(super) fn start(parent: BorrowedFd<'_>, name: &CStr, names: &[&CStr]) -> Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let orders = Orders { reader: reader.as_raw_fd(), parent: parent.as_raw_fd(), name, names };
        // SAFETY: the child runs `Orders::carry_out` alone, which makes system calls on data that exists already and never
        // returns: it neither allocates nor takes a lock, so threads that were not copied do not matter.
        match unsafe { fork() }.context("cannot fork the process that removes our directory")? {
            ForkResult::Child => orders.carry_out(),
            ForkResult::Parent { child } => Ok(Janitor { writer: Some(writer), process: child }),
        }
    }

    /// A writer of the pipe: the program's process number (four bytes) is to be written into it.
    pub(super) fn notice(&self) -> Option<OwnedFd> {
        self.writer.as_ref()?.try_clone().ok()
    }

    /// Its process id.
    #[cfg(test)]
    pub(super) fn process(&self) -> Pid {
        self.process
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.writer.take());
        while waitpid(self.process, None) == Err(Errno::EINTR) {}
    }
}

impl Orders<'_> {
    /// Reads the program's process number, if it comes, and the end of the pipe; then waits for the program.
    fn wait_for_both(&self) {
        let mut program = -1;
        loop {
            let mut number = 0i32;
            // SAFETY: `number` has room for what is asked for, and a pipe gives so short a message whole.
            let got = unsafe { libc::read(self.reader, (&raw mut number).cast(), size_of::<i32>()) };
            match got {
                4 => {
                    // SAFETY: plain integers; the number is sent while its process waits for us.
                    program = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
                }
                -1 if Errno::last_raw() == libc::EINTR => {}
                _ => break,
            }
        }
        if let Ok(fd) = i32::try_from(program)
            && fd >= 0
        {
            let mut wanted = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd; a pidfd is readable when its process has ended.
            while unsafe { libc::poll(&mut wanted, 1, -1) } < 0 && Errno::last_raw() == libc::EINTR {}
        }
    }

    fn carry_out(&self) -> ! {
        // SAFETY: system calls on integers, and on NUL-terminated strings that live in `self`; `byte` outlives `read`.
        unsafe {
            libc::setsid();
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::prctl(libc::PR_SET_NAME, c"rmprof-janitor".as_ptr());
            libc::chdir(c"/".as_ptr());
            let (first, second) = (self.reader.min(self.parent), self.reader.max(self.parent));
            close_between(0, first);
            close_between(first + 1, second);
            close_between(second + 1, RawFd::MAX);
            self.wait_for_both();
            // Nobody else can make, replace or rename anything of that name there (`directory::refusal`).
            let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            let directory = libc::openat(self.parent, self.name.as_ptr(), flags);
            if directory >= 0 {
                for name in self.names {
                    libc::unlinkat(directory, name.as_ptr(), 0);
                }
                libc::unlinkat(self.parent, self.name.as_ptr(), libc::AT_REMOVEDIR);
            }
            libc::_exit(0)
        }
    }
}

/// Closes the descriptors from `first` up to but not including `end`: a janitor must not keep the terminal, the pipe to a
/// pager, or another janitor's pipe open.
fn close_between(first: RawFd, end: RawFd) {
    if first >= end {
        return;
    }
    // SAFETY: two system calls on integers; none of these descriptors is used in this process any more.
    unsafe {
        // Linux 5.9, commit 278a5fbaed89.
        if libc::syscall(libc::SYS_close_range, first, end - 1, 0) != 0 {
            for descriptor in first..end.min(65536) {
                libc::close(descriptor);
            }
        }
    }
}
