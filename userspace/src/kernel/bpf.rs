//! The system calls on BPF objects that are ours to make, whichever library loaded them: links, runs and perf events. The structs are
//! those of include/uapi/linux/bpf.h (`union bpf_attr`) and perf_event.h, each as long as we use it: the kernel takes the rest for zero.
//!
//! None of these allocates or takes a lock: the keeper, a fork, makes them.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    ObjectInfo = 15,
    RawTracepointOpen = 17,
    MapLookupBatch = 24,
    LinkCreate = 28,
}

/// `enum bpf_attach_type`.
const PERF_EVENT: u32 = 41;
const TRACE_KPROBE_SESSION: u32 = 56;
pub(super) const TRACE_UPROBE_MULTI: u32 = 48;
pub(super) const TRACE_UPROBE_SESSION: u32 = 57;

/// The flag of a multi-probe that it is one of returns.
pub(super) const UPROBE_MULTI_RETURN: u32 = 1;

/// The call itself: what the kernel says, or a negative error number.
///
/// # Safety
/// `attributes` is a struct that the kernel expects of this command, and every address in it has what the command reads or writes there.
pub(super) unsafe fn call<T>(command: Command, attributes: &mut T) -> i32 {
    // SAFETY: the struct is as long as is said; the rest is the caller's word.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0).unwrap_or_else(|| -Errno::last_raw())
}

/// The result of a [`call`] as others want it.
pub(super) fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

#[derive(Default)]
#[repr(C)]
struct PerfEventLink {
    program: u32,
    event: u32,
    kind: u32,
    flags: u32,
    cookie: u64,
}

/// A link of a program on a perf event: its descriptor, or a negative error number.
pub(super) fn link_perf_event(program: RawFd, event: RawFd, cookie: u64) -> i32 {
    let (program, event) = (program.cast_unsigned(), event.cast_unsigned());
    let mut attributes = PerfEventLink { program, event, kind: PERF_EVENT, flags: 0, cookie };
    // SAFETY: what the command expects, without addresses.
    unsafe { call(Command::LinkCreate, &mut attributes) }
}

#[repr(C)]
struct MultiLink {
    program: u32,
    target: u32,
    kind: u32,
    link_flags: u32,
    path: u64,
    offsets: u64,
    counters: u64,
    cookies: u64,
    count: u32,
    flags: u32,
    pid: u32,
    end: u32,
}

/// A link of a program on many places of one file: its descriptor, or a negative error number. As many places as there are offsets,
/// a cookie for each or none at all.
pub(super) fn link_multi(
    program: RawFd,
    (kind, flags): (u32, u32),
    pid: u32,
    path: &CStr,
    offsets: &[u64],
    cookies: Option<&[u64]>,
) -> i32 {
    if cookies.is_some_and(|cookies| cookies.len() != offsets.len()) {
        return -libc::EINVAL;
    }
    let Ok(count) = u32::try_from(offsets.len()) else { return -libc::E2BIG };
    let mut attributes = MultiLink {
        program: program.cast_unsigned(),
        target: 0,
        kind,
        link_flags: 0,
        path: path.as_ptr().addr() as u64,
        offsets: offsets.as_ptr().addr() as u64,
        counters: 0,
        cookies: cookies.map_or(0, |cookies| cookies.as_ptr().addr() as u64),
        count,
        flags,
        pid,
        end: 0,
    };
    // SAFETY: what the command expects: both arrays have `count` elements, the path its NUL, and all outlive the call.
    unsafe { call(Command::LinkCreate, &mut attributes) }
}

#[repr(C)]
struct FunctionLink {
    program: u32,
    target: u32,
    kind: u32,
    link_flags: u32,
    flags: u32,
    count: u32,
    names: u64,
    addresses: u64,
    cookies: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    first: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// A program for functions of the kernel's that does nothing: its descriptor, or a negative error number.
pub(super) fn load_idle() -> i32 {
    const KPROBE: u32 = 2;
    /// `r0 = 0` and `exit` (include/uapi/linux/bpf_common.h, `struct bpf_insn`).
    const IDLE: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut attributes = ProgramLoad {
        kind: KPROBE,
        instructions: IDLE.len() as u32,
        first: IDLE.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"rmprof_idle\0\0\0\0\0",
        interface: 0,
        attach: TRACE_KPROBE_SESSION,
    };
    // SAFETY: what the command expects: as many instructions as are said, a license with its NUL, and no log.
    unsafe { call(Command::ProgramLoad, &mut attributes) }
}

/// A link of a program on functions of the kernel's, where each begins and, if it wants, ends: its descriptor, or a negative error number.
/// The names are addresses of strings that end with a NUL; there is a cookie for each.
pub(super) fn link_functions(program: RawFd, names: &[u64], cookies: &[u64]) -> i32 {
    if cookies.len() != names.len() {
        return -libc::EINVAL;
    }
    let Ok(count) = u32::try_from(names.len()) else { return -libc::E2BIG };
    let mut attributes = FunctionLink {
        program: program.cast_unsigned(),
        target: 0,
        kind: TRACE_KPROBE_SESSION,
        link_flags: 0,
        flags: 0,
        count,
        names: names.as_ptr().addr() as u64,
        addresses: 0,
        cookies: cookies.as_ptr().addr() as u64,
    };
    // SAFETY: what the command expects: both arrays have `count` elements and outlive the call. Whatever is no name the kernel refuses.
    unsafe { call(Command::LinkCreate, &mut attributes) }
}

#[derive(Default)]
#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: u32,
    pad: u32,
    cookie: u64,
}

/// Attaches a program to the tracepoint `name` with a cookie (Linux 6.10; 0: none), or one that is typed by the kernel's BTF to the
/// tracepoint it was loaded for.
pub(super) fn link_tracepoint(program: BorrowedFd<'_>, to: Option<(&CStr, u64)>) -> io::Result<OwnedFd> {
    let (name, cookie) = to.map_or((0, 0), |(name, cookie)| (name.as_ptr().addr() as u64, cookie));
    let program = program.as_raw_fd().cast_unsigned();
    let mut attributes = RawTracepoint { name, program, cookie, ..Default::default() };
    // SAFETY: what the command expects; the name ends with a NUL and outlives the call.
    let link = checked(unsafe { call(Command::RawTracepointOpen, &mut attributes) })?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

#[repr(C)]
struct InfoCall {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// Asks what the kernel knows of a map or a program: the head of its struct, as far as this kernel has it. Returns how many bytes that is.
///
/// # Safety
/// `info` is the head of the kernel's struct for this kind of object, any bytes are a value of it, and it has no address that is not that
/// of room for what the kernel writes there; one that is 0, or whose length beside it is, is not written to.
pub(super) unsafe fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<usize> {
    let mut attributes = InfoCall {
        descriptor: object.as_raw_fd().cast_unsigned(),
        length: size_of::<T>() as u32,
        info: std::ptr::from_mut(info).addr() as u64,
    };
    // SAFETY: what the command expects; the kernel writes as many bytes as are said to the struct.
    checked(unsafe { call(Command::ObjectInfo, &mut attributes) })?;
    Ok(attributes.length as usize)
}

/// `struct bpf_prog_info` up to what is read of it.
#[repr(C)]
struct ProgramInfo {
    unread: [u64; 26],
    recursion_misses: u64,
}

/// How often a program was not run, since it ran on that processor already: an event that it did not see (kernel/trace/bpf_trace.c,
/// `__bpf_trace_run`). Nothing where the kernel does not count that (before 5.12).
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    let mut found = ProgramInfo { unread: [0; 26], recursion_misses: 0 };
    // SAFETY: the struct's head is all numbers, and zero: no address.
    let length = unsafe { info(program, &mut found) }?;
    Ok(if length >= size_of::<ProgramInfo>() { found.recursion_misses } else { 0 })
}

#[derive(Default)]
#[repr(C)]
struct TestRun {
    program: u32,
    result: u32,
    data_sizes: [u32; 2],
    data: [u64; 2],
    repeat: u32,
    duration: u32,
    context_sizes: [u32; 2],
    context: [u64; 2],
}

/// Runs a program once, with these arguments, and returns what it returns.
pub(super) fn run(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<u32> {
    let mut attributes = TestRun { program: program.as_raw_fd().cast_unsigned(), ..Default::default() };
    if !arguments.is_empty() {
        attributes.context_sizes[0] = size_of_val(arguments) as u32;
        attributes.context[0] = arguments.as_ptr().addr() as u64;
    }
    // SAFETY: what the command expects; the only address is of arguments, with their size.
    checked(unsafe { call(Command::ProgramTestRun, &mut attributes) })?;
    Ok(attributes.result)
}

/// `struct perf_event_attr` up to where a user probe is named (PERF_ATTR_SIZE_VER1).
#[derive(Default)]
#[repr(C)]
struct PerfEvent {
    kind: u32,
    size: u32,
    config: u64,
    unused: [u64; 4],
    wakeup: u32,
    breakpoint: u32,
    path: u64,
    offset: u64,
}

/// A perf event of a user probe: its descriptor, or a negative error number. `kind` and `config` are as the kernel's PMU of such
/// probes has them.
pub(super) fn uprobe_event((kind, config): (u32, u64), pid: u32, path: &CStr, offset: u64) -> i32 {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let path = path.as_ptr().addr() as u64;
    let attributes =
        PerfEvent { kind, size: size_of::<PerfEvent>() as u32, config, path, offset, ..Default::default() };
    let (any_cpu, no_group): (libc::c_int, libc::c_int) = (-1, -1);
    // SAFETY: the attributes carry their own size, and the path its NUL.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, any_cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    i32::try_from(event).ok().filter(|event| *event >= 0).unwrap_or_else(|| -Errno::last_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_as_long_as_the_kernels() {
        // include/uapi/linux/bpf.h: the offset of the first member after those that are used; perf_event.h: PERF_ATTR_SIZE_VER1.
        assert_eq!(size_of::<PerfEventLink>(), 24);
        assert_eq!(std::mem::offset_of!(MultiLink, pid), 56);
        assert_eq!(std::mem::offset_of!(RawTracepoint, cookie), 16);
        assert_eq!(std::mem::offset_of!(TestRun, context), 48);
        assert_eq!(size_of::<PerfEvent>(), 72);
        assert_eq!(std::mem::offset_of!(ProgramInfo, recursion_misses), 208);
        #[cfg(feature = "libbpf")]
        assert_eq!(std::mem::offset_of!(libbpf_rs::libbpf_sys::bpf_prog_info, recursion_misses), 208);
    }
}
