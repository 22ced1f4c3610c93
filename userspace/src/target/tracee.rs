//! The ptrace calls the supervisor makes, and what `waitpid` answers. Raw, because real-time signals must pass unchanged and the
//! safe wrappers refuse them. Every request may fail with ESRCH: a tracee can be killed at any instant, even while it is stopped.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::unistd::Pid;

/// What is traced of every process and thread: its forks, its clones, its execs; system call stops marked apart from SIGTRAP.
/// Never `PTRACE_O_EXITKILL`: should we be killed, the program runs on.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACESYSGOOD;

/// Those, and one more stop before the end.
const OPTIONS_WITH_EXIT: libc::c_int = OPTIONS | libc::PTRACE_O_TRACEEXIT;

/// `PTRACE_EVENT_STOP` of linux/ptrace.h; not in the library for every C library.
const EVENT_STOP: i32 = 128;

/// How a stopped tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Until the next event.
    Run,
    /// Until the next event, or entry to or exit from a system call.
    ToSystemCall,
}

/// Why a tracee stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A signal is about to be delivered.
    Signal(i32),
    /// The whole process is stopped by SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
    Group,
    /// A new tracee's first stop, an interruption, or the end of a stop by a signal.
    Trap,
    /// Entry to or exit from a system call.
    SystemCall,
    /// It made a process or thread; `vfork` where it waits for it to exec or end.
    Made { vfork: bool },
    /// Its image was replaced.
    Executed,
    /// It is about to end, and its memory is still there ([`tell_of_end`]).
    Ending,
    /// Something not asked for.
    Other,
}

/// What `waitpid` answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A thread is gone; of a process's first thread: the whole process.
    Ended(Pid, ExitStatus),
    /// A thread is stopped.
    Stopped(Pid, Stop),
    /// Nothing yet: a timer's signal came.
    Interrupted,
    /// There is nothing left to wait for.
    NoTracees,
}

fn request(request: libc::c_uint, tid: Pid, address: usize, data: usize) -> Result<libc::c_long, Errno> {
    // SAFETY: callers pass either plain numbers, or in `data` the address of a buffer the request fills within its bounds.
    let answer = unsafe { libc::ptrace(request as _, tid.as_raw(), address, data) };
    Errno::result(answer)
}

/// Begins tracing, without stopping it.
pub(super) fn seize(tid: Pid) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE as _, tid, 0, OPTIONS as usize).map(drop)
}

/// Begins tracing of one thread alone, without stopping it: nothing that it makes is traced.
pub(super) fn seize_alone(tid: Pid) -> Result<(), Errno> {
    request(libc::PTRACE_SEIZE as _, tid, 0, 0).map(drop)
}

/// Has a stopped tracee, and what it makes from now on, stop once more before the end.
pub(super) fn tell_of_end(tid: Pid) {
    let _ = request(libc::PTRACE_SETOPTIONS as _, tid, 0, OPTIONS_WITH_EXIT as usize);
}

/// Lets a stopped tracee go on, with `signal` delivered (0: none). A tracee that is gone is no error: its end is reported.
pub(super) fn resume(tid: Pid, how: Resume, signal: i32) {
    let how = match how {
        Resume::Run => libc::PTRACE_CONT,
        Resume::ToSystemCall => libc::PTRACE_SYSCALL,
    };
    let _ = request(how as _, tid, 0, signal as usize);
}

/// Leaves a tracee stopped by a signal as it is, so that SIGCONT wakes it.
pub(super) fn listen(tid: Pid) {
    let _ = request(libc::PTRACE_LISTEN as _, tid, 0, 0);
}

/// Makes a running tracee stop soon.
pub(super) fn interrupt(tid: Pid) {
    let _ = request(libc::PTRACE_INTERRUPT as _, tid, 0, 0);
}

/// Ends tracing of a stopped tracee, with `signal` delivered (0: none).
pub(super) fn detach(tid: Pid, signal: i32) {
    let _ = request(libc::PTRACE_DETACH as _, tid, 0, signal as usize);
}

/// The number that came with an event: the new thread's, or the former one of the thread that called exec.
pub(super) fn event_thread(tid: Pid) -> Option<Pid> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG as _, tid, 0, &raw mut message as usize).ok()?;
    i32::try_from(message).ok().filter(|number| *number > 0).map(Pid::from_raw)
}

/// Where a stopped tracee stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// It is about to enter a system call.
    pub enters_system_call: bool,
    /// Instruction pointer.
    pub instruction: u64,
    /// Stack pointer.
    pub stack: u64,
    /// Where it is about to enter one: the call's number and its arguments.
    pub call: (u64, [u64; 6]),
}

/// Reads where a stopped tracee stands: `PTRACE_GET_SYSCALL_INFO` (Linux 5.3), the same on every architecture.
pub(super) fn position(tid: Pid) -> Option<Position> {
    const INFO_ENTRY: u8 = 1;
    // struct ptrace_syscall_info: op (u8), padding, arch (u32), instruction_pointer, stack_pointer, then a union.
    let mut info = [0u64; 16];
    let size = size_of_val(&info);
    // libc names the request on glibc only.
    const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
    let filled = request(GET_SYSCALL_INFO, tid, size, info.as_mut_ptr() as usize).ok()?;
    if filled < 24 {
        return None;
    }
    let operation = info[0].to_ne_bytes()[0];
    let mut arguments = [0; 6];
    arguments.copy_from_slice(&info[4..10]);
    Some(Position {
        enters_system_call: operation == INFO_ENTRY,
        instruction: info[1],
        stack: info[2],
        call: (info[3], arguments),
    })
}

/// Gives a stopped tracee another stack pointer. False: it has the one it had.
#[cfg(target_arch = "x86_64")]
pub(super) fn move_stack(tid: Pid, to: u64) -> bool {
    // SAFETY: plain integers, for which all zero is a valid value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    if request(libc::PTRACE_GETREGS as _, tid, 0, &raw mut registers as usize).is_err() {
        return false;
    }
    registers.rsp = to;
    request(libc::PTRACE_SETREGS as _, tid, 0, &raw const registers as usize).is_ok()
}

/// Not done on this machine.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn move_stack(_tid: Pid, _to: u64) -> bool {
    false
}

fn signal_information(tid: Pid) -> Option<libc::siginfo_t> {
    // SAFETY: all zero is a valid `siginfo_t`.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETSIGINFO as _, tid, 0, &raw mut info as usize).ok()?;
    Some(info)
}

/// Is the SIGCHLD about to be delivered one that our probe sent? Those of children's ends say what became of them (CLD_EXITED and the
/// like), those of kill(2) are of user space: none has this code (kernel/signal.c, do_notify_parent; kernel/trace/bpf_trace.c,
/// bpf_send_signal_common).
pub(super) fn is_from_probe(tid: Pid) -> bool {
    const SI_KERNEL: i32 = 0x80;
    signal_information(tid).is_some_and(|info| info.si_code == SI_KERNEL)
}

/// Who sent the signal about to be delivered; `None` where the kernel did, or it cannot be told.
pub(super) fn signal_sender(tid: Pid) -> Option<Pid> {
    let info = signal_information(tid)?;
    // SAFETY: the fields of `kill` are there for every code at or below 0.
    (info.si_code <= 0).then(|| Pid::from_raw(unsafe { info.si_pid() }))
}

/// Whether a thread is a tracee or child of the calling thread, alive or not yet waited for.
pub(super) fn is_tracee(tid: Pid) -> bool {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: all zero is a valid `siginfo_t`, and it is valid for writing for the length of the call.
    let answer = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_PID, tid.as_raw() as libc::id_t, &mut info, flags)
    };
    answer == 0
}

/// Whether a thread belongs to a process: the kernel's own check, without a file.
pub(super) fn is_thread_of(process: Pid, tid: Pid) -> bool {
    // SAFETY: numbers only; signal 0 is not delivered.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, process.as_raw(), tid.as_raw(), 0) };
    // Permission is looked at after the thread has been found in the process (do_send_specific).
    answer == 0 || Errno::last() == Errno::EPERM
}

/// Whether two processes share their memory; `None` where the kernel cannot say (no `kcmp`, or one is gone).
pub(super) fn share_memory(one: Pid, other: Pid) -> Option<bool> {
    const KCMP_VM: libc::c_int = 1;
    // SAFETY: numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, one.as_raw(), other.as_raw(), KCMP_VM, 0, 0) } {
        0 => Some(true),
        -1 => None,
        _ => Some(false),
    }
}

/// Waits for the next event of the calling thread's children and tracees, and of no other thread's.
pub(super) fn wait() -> Event {
    let mut status = 0;
    // SAFETY: `status` is valid for writing for the length of the call.
    let answer = Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) });
    let tid = match answer {
        Ok(tid) => Pid::from_raw(tid),
        Err(Errno::EINTR) => return Event::Interrupted,
        Err(_) => return Event::NoTracees,
    };
    if libc::WIFSTOPPED(status) {
        Event::Stopped(tid, stop(status))
    } else {
        Event::Ended(tid, ExitStatus::from_raw(status))
    }
}

/// The same of one tracee, without waiting: `None` where nothing is to be told of it yet.
pub(super) fn look(tid: Pid) -> Option<Event> {
    let mut status = 0;
    // SAFETY: `status` is valid for writing for the length of the call.
    match Errno::result(unsafe { libc::waitpid(tid.as_raw(), &mut status, libc::__WALL | libc::WNOHANG) }) {
        Ok(0) | Err(Errno::EINTR) => None,
        Ok(_) if libc::WIFSTOPPED(status) => Some(Event::Stopped(tid, stop(status))),
        Ok(_) => Some(Event::Ended(tid, ExitStatus::from_raw(status))),
        Err(_) => Some(Event::NoTracees),
    }
}

fn stop(status: i32) -> Stop {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        0 => Stop::Signal(signal),
        EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        EVENT_STOP => Stop::Group,
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_CLONE => Stop::Made { vfork: false },
        libc::PTRACE_EVENT_VFORK => Stop::Made { vfork: true },
        libc::PTRACE_EVENT_EXEC => Stop::Executed,
        libc::PTRACE_EVENT_EXIT => Stop::Ending,
        _ => Stop::Other,
    }
}
