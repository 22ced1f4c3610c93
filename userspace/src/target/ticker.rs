//! A timer that breaks a blocking wait of the calling thread now and then.

use std::io;
use std::time::Duration;

use nix::sys::signal::SigmaskHow;

/// The signal the timer sends to this thread: one of those no program uses by convention (glibc keeps the first two).
fn timer_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Breaks the wait of a thread that has a [`Ticker`] now. Where that wait has not quite begun, the next tick does.
pub(super) fn interrupt(thread: nix::unistd::Pid) {
    // SAFETY: plain integers; the signal does nothing in whichever thread of ours gets it. One that has ended gets none.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.as_raw(), timer_signal()) };
}

extern "C" fn nothing(_: libc::c_int) {}

/// A timer of the calling thread, whose signal is let through only within [`Ticker::interruptible`]: elsewhere it would make
/// system calls fail, and loading a BPF program start over.
#[derive(Debug)]
pub(super) struct Ticker {
    timer: libc::timer_t,
    mask: libc::sigset_t,
    /// A timer and a mask are of one thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Ticker {
    /// Begins to tick.
    pub(super) fn start(interval: Duration) -> io::Result<Self> {
        let nanoseconds = interval.subsec_nanos();
        // SAFETY: every structure is plain data for which all zero is valid, every pointer is of a local that lives for
        // the call; the handler does nothing, so it is safe at any instant.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            // Without SA_RESTART: the wait is to end.
            if libc::sigaction(timer_signal(), &action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut mask);
            libc::sigaddset(&mut mask, timer_signal());
            libc::pthread_sigmask(SigmaskHow::SIG_BLOCK as libc::c_int, &mask, std::ptr::null_mut());
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = timer_signal();
            event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
            let mut timer: libc::timer_t = std::mem::zeroed();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
                return Err(io::Error::last_os_error());
            }
            let ticker = Self { timer, mask, _not_send: std::marker::PhantomData };
            let time = libc::timespec {
                tv_sec: interval.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: nanoseconds.into(),
            };
            let time = libc::itimerspec { it_interval: time, it_value: time };
            if libc::timer_settime(timer, 0, &time, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(ticker)
        }
    }

    /// Runs `wait`, which the timer interrupts. A tick that falls just before the wait begins is lost: the next one ends it.
    pub(super) fn interruptible<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.set_mask(SigmaskHow::SIG_UNBLOCK);
        let answer = wait();
        self.set_mask(SigmaskHow::SIG_BLOCK);
        answer
    }

    fn set_mask(&self, how: SigmaskHow) {
        // SAFETY: the mask is a value of ours.
        unsafe { libc::pthread_sigmask(how as libc::c_int, &self.mask, std::ptr::null_mut()) };
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the timer is ours and is deleted once; the pointers are of live values. Its signal may still be pending:
        // it is taken before it can reach anything, and the mask is then as it was.
        unsafe {
            libc::timer_delete(self.timer);
            while libc::sigtimedwait(&self.mask, std::ptr::null_mut(), &no_time) > 0 {}
        }
        self.set_mask(SigmaskHow::SIG_UNBLOCK);
    }
}
