//! Attaches and detaches user probes in a process of our own that is not killed with us.
//!
//! A process that has a fatal signal pending cannot write or restore a probed instruction: that takes a page of the program, which
//! the kernel refuses it (`faultin_page` in mm/gup.c), and the breakpoint stays in the program's memory ("failed to unregister,
//! leaking uprobe", kernel/events/uprobes.c). So these system calls are made by the keeper, and a link that we held when we were
//! killed is closed by it.

use std::ffi::CStr;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::bpf;
use crate::target::descriptor;

/// The most probes of one order.
pub(super) const MOST_PROBES: usize = 128;

/// The most files that are remembered.
const MOST_REMEMBERED: usize = 1024;

/// What the keeper is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Task {
    /// One link of `kind` (a `bpf_attach_type`) on all probes.
    Multi,
    /// A perf event of `kind` (the PMU's number) on the first probe, and a link on that.
    Single,
    /// Remember `file`: should we be killed, four bytes of zero are to be written to it at the first offset. Answers with the
    /// descriptor.
    Silence,
    /// Close `link`, and do not wait until the kernel is done with it. Forgets it, if it was remembered.
    Release,
    /// Wait until everything released is closed, and end.
    End,
}

/// An order. It goes through a socket as it is: no padding, and no pointer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Order {
    pub task: Task,
    pub kind: u32,
    /// Of the link, or `config` of the perf event.
    pub flags: u32,
    pub pid: u32,
    /// Descriptors are the same in both processes.
    pub program: RawFd,
    pub file: RawFd,
    pub link: RawFd,
    pub probes: u32,
    pub offsets: [u64; MOST_PROBES],
    pub cookies: [u64; MOST_PROBES],
}

impl Order {
    pub(super) fn new(task: Task) -> Self {
        let none = [0; MOST_PROBES];
        Order {
            task,
            kind: 0,
            flags: 0,
            pid: 0,
            program: -1,
            file: -1,
            link: -1,
            probes: 0,
            offsets: none,
            cookies: none,
        }
    }

    /// The descriptor of the link, or a negative error number. Neither allocates nor takes a lock: the keeper is a fork.
    fn perform(&self) -> i32 {
        match self.task {
            Task::Multi => self.multi(),
            Task::Single => self.single(),
            // SAFETY: the sender has given the descriptor up.
            Task::Release => unsafe { libc::close(self.link) },
            // Without a keeper nobody is left to do it.
            Task::Silence => self.file,
            Task::End => 0,
        }
    }

    /// A name under which the kernel opens exactly this file, whatever stands at its path by now.
    fn path(&self) -> [u8; 32] {
        let mut path = [0; 32];
        // At most 14 characters and 11 digits: there is room, and a NUL after them.
        let _ = write!(&mut path[..31], "/proc/self/fd/{}", self.file);
        path
    }

    fn multi(&self) -> i32 {
        let count = (self.probes as usize).min(MOST_PROBES);
        let (offsets, cookies) = (&self.offsets[..count], &self.cookies[..count]);
        let path = self.path();
        bpf::link_multi(self.program, (self.kind, self.flags), self.pid, in_path(&path), offsets, Some(cookies))
    }

    fn single(&self) -> i32 {
        let path = self.path();
        let kind = (self.kind, u64::from(self.flags));
        let event = bpf::uprobe_event(kind, self.pid, in_path(&path), self.offsets[0]);
        if event < 0 {
            return event;
        }
        let link = bpf::link_perf_event(self.program, event, self.cookies[0]);
        // SAFETY: ours alone; the link keeps a reference of the event.
        unsafe { libc::close(event) };
        link
    }
}

/// The path in a buffer of [`Order::path`], which has a NUL.
fn in_path(path: &[u8; 32]) -> &CStr {
    CStr::from_bytes_until_nul(path).unwrap_or_default()
}

/// The keeper as we see it: a small process (its name is `rmprof-keeper`) that has our table of descriptors in common with us
/// (`CLONE_FILES`), in a session of its own, deaf to all signals that can be ignored. It ends when we are gone, however that comes
/// about, and before that closes what we had open.
///
/// Dropping it is the normal end. Should somebody have killed the keeper, we do its work ourselves.
#[derive(Debug)]
pub(super) struct Keeper {
    ours: Mutex<UnixDatagram>,
    /// Not to be closed before its end: its descriptors are ours.
    _theirs: UnixDatagram,
    _us: OwnedFd,
    /// Readable when it has ended.
    ended: OwnedFd,
    process: Pid,
}

impl Keeper {
    /// Its name in the process table.
    pub(super) const NAME: &CStr = c"rmprof-keeper";

    /// Forks it.
    ///
    /// # Errors
    /// Too few processes or descriptors.
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = UnixDatagram::pair()?;
        let us = descriptor::of_process(Pid::this())?;
        let (socket, parent) = (theirs.as_raw_fd(), us.as_raw_fd());
        // SAFETY: the child runs `serve` alone, which makes system calls on its own stack and never returns: it neither allocates nor
        // takes a lock, so threads that were not copied do not matter.
        let process = match unsafe { fork_with_our_descriptors(libc::SIGCHLD) } {
            0 => serve(socket, parent),
            process => Pid::from_raw(Errno::result(process)?),
        };
        Ok(Keeper {
            ours: Mutex::new(ours),
            _theirs: theirs,
            _us: us,
            ended: descriptor::of_process(process)?,
            process,
        })
    }

    /// Has an order carried out, and returns the descriptor of the link.
    ///
    /// # Errors
    /// What the kernel says to the probes.
    pub(super) fn carry_out(&self, order: &Order) -> io::Result<RawFd> {
        let ours = self.ours.lock().unwrap_or_else(PoisonError::into_inner);
        let result = ask(ours.as_raw_fd(), self.ended.as_raw_fd(), order).unwrap_or_else(|| order.perform());
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.carry_out(&Order::new(Task::End)); // cannot fail
        while waitpid(self.process, None) == Err(Errno::EINTR) {}
    }
}

/// Sends an order and waits for the answer. `None`: the keeper is gone.
fn ask(socket: RawFd, ended: RawFd, order: &Order) -> Option<i32> {
    let mut answer = 0i32;
    // SAFETY: an Order is as many bytes as are named here, all of them initialised; `answer` has room for what is asked for.
    unsafe {
        if libc::send(socket, (&raw const *order).cast(), size_of::<Order>(), libc::MSG_NOSIGNAL) < 0 {
            return None;
        }
        if wait_for(socket, ended)
            && libc::recv(socket, (&raw mut answer).cast(), size_of::<i32>(), libc::MSG_DONTWAIT) == 4
        {
            return Some(answer);
        }
    }
    None
}

/// Waits until `first` or `other` is readable. Is it `first`?
fn wait_for(first: RawFd, other: RawFd) -> bool {
    let wanted = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut both = [wanted(first), wanted(other)];
    // SAFETY: two pollfds.
    while unsafe { libc::poll(both.as_mut_ptr(), 2, -1) } < 0 {
        if Errno::last_raw() != libc::EINTR {
            return false;
        }
    }
    both[0].revents != 0
}

/// What the keeper does.
fn serve(socket: RawFd, parent: RawFd) -> ! {
    // SAFETY: system calls on integers and on a string of the program's own. Ignored, SIGCHLD also says that nobody waits for the
    // processes that close.
    unsafe {
        libc::setsid();
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, Keeper::NAME.as_ptr());
        libc::chdir(c"/".as_ptr());
    }
    // The links it makes are descriptors of ours, by its own limit.
    crate::target::limits::raise_open_files();
    let mut remembered: [Option<(RawFd, i64)>; MOST_REMEMBERED] = [None; MOST_REMEMBERED];
    // A pidfd is readable when its process has ended, all its threads.
    while wait_for(socket, parent) {
        let mut order = MaybeUninit::<Order>::uninit();
        // SAFETY: there is room for an Order. Nobody but us has the other end, and what was sent is one, whole.
        let order = unsafe {
            if libc::recv(socket, order.as_mut_ptr().cast(), size_of::<Order>(), 0) != size_of::<Order>() as isize {
                continue;
            }
            order.assume_init_ref()
        };
        let result: i32 = match order.task {
            Task::Release => {
                answer(socket, 0); // whoever asked need not wait even for the fork
                release(order, &mut remembered);
                continue;
            }
            // Where there is no room for more, that one goes on counting for nobody.
            Task::Silence => {
                if let Some(place) = remembered.iter_mut().find(|place| place.is_none()) {
                    *place = Some((order.file, order.offsets[0].cast_signed()));
                }
                order.file
            }
            Task::End => {
                wait_for_children();
                0
            }
            Task::Multi | Task::Single => order.perform(),
        };
        answer(socket, result);
        if order.task == Task::End {
            // SAFETY: ends this process; the table of descriptors is its parent's.
            unsafe { libc::_exit(0) }
        }
    }
    for (file, offset) in remembered.into_iter().flatten() {
        const ZERO: [u8; 4] = [0; 4];
        // SAFETY: four bytes from a constant, to a descriptor that is open until it is forgotten.
        unsafe { libc::pwrite(file, ZERO.as_ptr().cast(), ZERO.len(), offset) };
    }
    // We are the last who have the table. SAFETY: system calls on integers.
    unsafe {
        // Linux 5.9, commit 278a5fbaed89: before, the end of the process closes them. The standard streams by themselves: what a call has
        // closed is let go of at its end, the last first (task_work_run), and whoever reads them need not wait for the links.
        libc::syscall(libc::SYS_close_range, 0, libc::STDERR_FILENO, 0);
        libc::syscall(libc::SYS_close_range, libc::STDERR_FILENO + 1, RawFd::MAX, 0);
        wait_for_children();
        libc::_exit(0)
    }
}

fn answer(socket: RawFd, answer: i32) {
    // SAFETY: four bytes.
    unsafe { libc::send(socket, (&raw const answer).cast(), size_of::<i32>(), libc::MSG_NOSIGNAL) };
}

/// Closes a link, or a file that was remembered. The kernel waits for grace periods, which run side by side for links closed side by side.
fn release(order: &Order, remembered: &mut [Option<(RawFd, i64)>]) {
    for place in remembered.iter_mut().filter(|place| place.is_some_and(|(file, _)| file == order.link)) {
        *place = None;
    }
    // SAFETY: the child makes two system calls.
    match unsafe { fork_with_our_descriptors(libc::SIGCHLD) } {
        0 => {
            order.perform();
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) }
        }
        -1 => {
            order.perform();
        }
        _ => {}
    }
}

/// Until there is none any more. They are collected by that.
fn wait_for_children() {
    // SAFETY: nothing is to be written anywhere.
    while unsafe { libc::wait4(-1, std::ptr::null_mut(), libc::__WALL, std::ptr::null_mut()) } != -1
        || Errno::last_raw() == libc::EINTR
    {}
}

/// `fork`, but for the table of descriptors, which both have in common. -1: see `errno`.
///
/// # Safety
/// As `fork`; and the child must not use what the C library keeps of its process and thread.
unsafe fn fork_with_our_descriptors(signal: i32) -> libc::pid_t {
    let flags = libc::c_long::from(libc::CLONE_FILES | signal);
    // SAFETY: no stack, no thread-local storage and no place for a number is given: a fork.
    let process = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    libc::pid_t::try_from(process).unwrap_or(-1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    use nix::sys::signal::{Signal, kill};

    use super::*;

    /// Releases one end of a pipe and reads the other to its end.
    fn releases(keeper: &Keeper) {
        let (mut reader, writer) = io::pipe().unwrap();
        let order = Order { link: OwnedFd::from(writer).into_raw_fd(), ..Order::new(Task::Release) };
        keeper.carry_out(&order).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn closes_what_it_is_given_and_ends() {
        let keeper = Keeper::start().unwrap();
        let comm = format!("/proc/{}/comm", keeper.process);
        releases(&keeper);
        assert_eq!(std::fs::read_to_string(&comm).unwrap(), "rmprof-keeper\n");
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            kill(keeper.process, signal).unwrap();
        }
        releases(&keeper);
        drop(keeper);
        assert!(std::fs::read(comm).is_err());
    }

    #[test]
    fn killed_it_is_done_without() {
        let keeper = Keeper::start().unwrap();
        kill(keeper.process, Signal::SIGKILL).unwrap();
        releases(&keeper);
        releases(&keeper);
    }

    #[test]
    fn says_what_the_kernel_says() {
        let keeper = Keeper::start().unwrap();
        let order = Order { probes: 1, kind: bpf::TRACE_UPROBE_MULTI, ..Order::new(Task::Multi) };
        // No such program, or no right to name one.
        let error = keeper.carry_out(&order).unwrap_err().raw_os_error();
        assert!([Some(libc::EBADF), Some(libc::EPERM)].contains(&error), "{error:?}");
    }
}
