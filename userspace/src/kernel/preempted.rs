//! Kernels that preempt the programs of tracepoints, and what is done about it.
//!
//! From Linux 7.0 on they do (a46023d5616e, "tracing: Guard `__DECLARE_TRACE()` use of `__DO_TRACE_CALL()` with SRCU-fast"), where
//! preemption was disabled before: on 7.2 the count of what disables it is 0 in all but that of `rss_stat`. As long as one waits for its
//! processor, the kernel runs the same program for nobody else there, and what that would have seen is lost: five processes on two
//! processors that do nothing but map lost 13 to 47 % of their bytes on 7.2, in an emulator.
//!
//! So what heap mode has at system calls is at the functions of those it wants, where the kernel can probe functions: such a program is not
//! preempted. That of `rss_stat` is one of its own there, and runs while the lock of a page table is held, which forbids preemption too.
//! Page faults are told before interrupts are let in again.
//!
//! A program at a function is not run while a map of anybody's is read or written by a system call on that processor
//! (`bpf_disable_instrumentation`), which may be preempted: by ours it is not ([`Ahead`]).

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::bpf;

/// The first release that preempts them.
const FIRST: u32 = 7;

/// Functions of system calls, and the calls' numbers, which a program gets for a cookie.
const CALLS: &[(&CStr, i64)] = if cfg!(target_arch = "x86_64") {
    &[
        (c"__x64_sys_mmap", libc::SYS_mmap),
        (c"__x64_sys_munmap", libc::SYS_munmap),
        (c"__x64_sys_mremap", libc::SYS_mremap),
        (c"__x64_sys_brk", libc::SYS_brk),
        (c"__x64_sys_madvise", libc::SYS_madvise),
    ]
} else {
    &[
        (c"__arm64_sys_mmap", libc::SYS_mmap),
        (c"__arm64_sys_munmap", libc::SYS_munmap),
        (c"__arm64_sys_mremap", libc::SYS_mremap),
        (c"__arm64_sys_brk", libc::SYS_brk),
        (c"__arm64_sys_madvise", libc::SYS_madvise),
    ]
};

/// Does this kernel preempt them? Neither its types nor its functions tell, so it is asked for its release.
pub(super) fn are_preempted() -> bool {
    nix::sys::utsname::uname().is_ok_and(|names| preempts(&names.release().to_string_lossy()))
}

fn preempts(release: &str) -> bool {
    let major = release.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|number| number.parse().ok());
    major.is_some_and(|major: u32| major >= FIRST)
}

/// Can functions of the kernel's be probed? Asked by one that there is not, which is what a kernel that can finds wrong about it.
pub(super) fn functions_can_be_probed() -> bool {
    let program = bpf::load_idle();
    if program < 0 {
        return false;
    }
    // SAFETY: a new descriptor that nobody else has.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let nothing = c"rmprof_bpf_asks_for_no_function";
    let link = bpf::link_functions(program.as_raw_fd(), &[nothing.as_ptr().addr() as u64], &[0]);
    [-libc::ENOENT, -libc::ESRCH].contains(&link)
}

/// Has a program see the system calls that change what is mapped, where they begin and where they end.
///
/// # Errors
/// What the kernel says.
pub(super) fn link_calls(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let names: Vec<u64> = CALLS.iter().map(|(name, _)| name.as_ptr().addr() as u64).collect();
    let cookies: Vec<u64> = CALLS.iter().map(|(_, number)| number.cast_unsigned()).collect();
    let link = bpf::checked(bpf::link_functions(program.as_raw_fd(), &names, &cookies))?;
    FUNCTIONS.store(true, Ordering::Relaxed);
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Functions of the kernel's are probed.
static FUNCTIONS: AtomicBool = AtomicBool::new(false);

/// As long as this is, the running thread goes before all that are scheduled as most are, where functions of the kernel's are probed.
/// Without the right to that (`CAP_SYS_NICE`) it does not.
pub(super) struct Ahead {
    policy: libc::c_int,
    parameters: libc::sched_param,
    of_this_thread: PhantomData<*const ()>,
}

impl Ahead {
    pub(super) fn begin() -> Option<Self> {
        if FUNCTIONS.load(Ordering::Relaxed) { Self::go() } else { None }
    }

    fn go() -> Option<Self> {
        // SAFETY: plain system calls about the running thread; the struct is written to by the one, and read by the other.
        unsafe {
            let mut parameters: libc::sched_param = std::mem::zeroed();
            let policy = libc::sched_getscheduler(0);
            let mut first: libc::sched_param = std::mem::zeroed(); // which has more fields by musl
            first.sched_priority = 1;
            let is_ahead = policy >= 0
                && libc::sched_getparam(0, &raw mut parameters) == 0
                && libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const first) == 0;
            is_ahead.then_some(Self { policy, parameters, of_this_thread: PhantomData })
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::sched_setscheduler(0, self.policy, &raw const self.parameters) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_went_ahead_is_scheduled_as_before() {
        // SAFETY: a plain system call about the running thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        if let Some(ahead) = Ahead::go() {
            assert_eq!(policy(), libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK);
            drop(ahead);
        }
        assert_eq!(policy(), before);
    }

    #[test]
    fn releases_that_preempt_are_told() {
        for (release, expected) in [
            ("6.18.5", false),
            ("6.12.117+deb13-cloud-amd64", false),
            ("5.14.0-611.el9.x86_64", false),
            ("7.0.0-14-generic", true),
            ("7.2.13+deb14-cloud-amd64", true),
            ("10.1", true),
            ("", false),
            ("next", false),
        ] {
            assert_eq!(preempts(release), expected, "{release}");
        }
    }
}
