//! Takes our probes away and removes the shim directory when we can no longer do it ourselves.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};

/// A small process of our own (its name is `rmprof-janitor`) that waits until we are gone, however that comes about. Then it
/// closes what we had open, waits for the program, whose Python may be about to read the directory, removes the directory and
/// ends. It sits in a session of its own and ignores all signals that can be ignored, so that the Ctrl-C or the `kill` that
/// ends us does not end it.
///
/// It shares our table of descriptors (`CLONE_FILES`), so that every link on a probe outlives us until the janitor closes it: a
/// process that was killed cannot close them well. Restoring a probed instruction takes a page of the program, which the kernel
/// refuses to who has a fatal signal pending (`faultin_page` in mm/gup.c), and the breakpoint would stay in the program's memory
/// ("failed to unregister, leaking uprobe", kernel/events/uprobes.c).
///
/// Dropping it is the normal end: the pipe is closed, and the janitor waited for.
#[derive(Debug)]
pub(super) struct Janitor {
    writer: Option<OwnedFd>,
    /// What it waits for. Its descriptors are ours: not to be closed before its end.
    _ours: [OwnedFd; 2],
    process: Pid,
}

/// What the janitor needs, made before the fork: after it nothing is allocated.
struct Orders<'a> {
    reader: RawFd,
    /// Readable when we are gone.
    us: RawFd,
    directory: RawFd,
    path: CString,
    names: &'a [&'a CStr],
}

impl Janitor {
    /// Forks the janitor of the opened `directory`, which is at `path` and holds nothing but `names`.
    pub(super) fn start(directory: &OwnedFd, path: &Path, names: &[&CStr]) -> Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).context("a path with a NUL byte")?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let us = own_pidfd().context("cannot open a descriptor of our own process")?;
        let orders =
            Orders { reader: reader.as_raw_fd(), us: us.as_raw_fd(), directory: directory.as_raw_fd(), path, names };
        // SAFETY: the child runs `Orders::carry_out` alone, which makes system calls on data that exists already and never
        // returns: it neither allocates nor takes a lock, so threads that were not copied do not matter.
        match unsafe { fork_with_our_descriptors() } {
            -1 => Err(Errno::last()).context("cannot fork the process that cleans up after us"),
            0 => orders.carry_out(),
            process => Ok(Janitor { writer: Some(writer), _ours: [reader, us], process: Pid::from_raw(process) }),
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
    /// Waits for our end, ordinary (the pipe is closed) or not, and returns a descriptor of the program if it was told of.
    fn wait_for_us(&self) -> Option<RawFd> {
        let mut program = None;
        loop {
            let mut number = 0i32;
            let pipe = libc::pollfd { fd: self.reader, events: libc::POLLIN, revents: 0 };
            let mut wanted = [pipe, libc::pollfd { fd: self.us, ..pipe }];
            // A pidfd is readable when its process has ended, all its threads.
            wait_for_any(&mut wanted);
            if wanted[0].revents == 0 {
                return program;
            }
            // SAFETY: `number` has room for what is asked for, and a pipe gives so short a message whole.
            if unsafe { libc::read(self.reader, (&raw mut number).cast(), size_of::<i32>()) } != 4 {
                return program;
            }
            // SAFETY: plain integers; the number is sent while its process waits for us.
            let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
            program = RawFd::try_from(opened).ok().filter(|fd| *fd >= 0);
        }
    }

    fn carry_out(&self) -> ! {
        // SAFETY: system calls on integers, and on NUL-terminated strings that live in `self`.
        unsafe {
            libc::setsid();
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::prctl(libc::PR_SET_NAME, c"rmprof-janitor".as_ptr());
            libc::chdir(c"/".as_ptr());
            let program = self.wait_for_us();
            // What is still shared belongs to us, who may be at our ordinary end, or to another janitor.
            libc::syscall(libc::SYS_unshare, libc::CLONE_FILES);
            close_all_but(self.directory, program.unwrap_or(self.directory));
            if let Some(fd) = program {
                wait_for_any(&mut [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }]);
            }
            for name in self.names {
                libc::unlinkat(self.directory, name.as_ptr(), 0);
            }
            libc::rmdir(self.path.as_ptr());
            libc::_exit(0)
        }
    }
}

/// Waits until one of `wanted` is readable, or can never be waited for: better to go on than to spin.
fn wait_for_any(wanted: &mut [libc::pollfd]) {
    let Ok(count) = libc::nfds_t::try_from(wanted.len()) else { return };
    // SAFETY: `count` pollfds.
    while unsafe { libc::poll(wanted.as_mut_ptr(), count, -1) } < 0 && Errno::last_raw() == libc::EINTR {}
}

fn own_pidfd() -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    // SAFETY: just opened, and nobody else's. (The kernel sets close-on-exec on it.)
    RawFd::try_from(Errno::result(opened)?).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).map_err(|_| Errno::EBADF)
}

/// `fork`, but for the table of descriptors, which both have in common.
///
/// # Safety
/// As `fork`; and the child must not use what the C library keeps of its process and thread.
unsafe fn fork_with_our_descriptors() -> libc::pid_t {
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: no stack, no thread-local storage and no place for a number is given: a fork.
    let process = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    libc::pid_t::try_from(process).unwrap_or(-1)
}

/// A janitor must not keep the terminal or the pipe to a pager open, and links on probes even less.
fn close_all_but(one: RawFd, other: RawFd) {
    let (low, high) = (one.min(other), one.max(other));
    close_between(0, low);
    close_between(low + 1, high);
    close_between(high + 1, RawFd::MAX);
}

/// Closes the descriptors from `first` up to but not including `end`.
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
