//! What libbpf does one after the other, on two threads: a start is as long as the probes take to load. While libbpf relocates the
//! programs, the large maps are made; programs that need no more of it are verified on both threads.
//!
//! What libbpf makes of a map or a program before it hands them to the kernel it makes here too; only the hand-over is ours.

use std::cmp::Reverse;
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use libbpf_rs::libbpf_sys::{
    bpf_func_info, bpf_insn, bpf_line_info, bpf_map__fd, bpf_map_create_opts, bpf_object__btf_fd, bpf_object__prepare,
    bpf_prog_load, bpf_prog_load_opts, bpf_program__expected_attach_type, bpf_program__func_info,
    bpf_program__func_info_cnt, bpf_program__line_info, bpf_program__line_info_cnt,
};
use libbpf_rs::{AsRawLibbpf, MapHandle, MapType, Object, OpenMap, OpenObject, OpenProgram, PrintLevel, ProgramType};

use super::super::First;
use super::keep_message;
use crate::kernel::bpf::checked;
use crate::target::page_bytes;

/// Maps of as many entries (of ring buffers: bytes) take the kernel long enough to be made beside: it clears a list head for each entry,
/// or the pages of a ring.
const LARGE: u32 = 1 << 16;

/// The license of the probes, which is in the object for libbpf.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 24;

/// Loads what is to be loaded of an object: the object, which has those programs that libbpf loaded, and the others by name.
pub(super) fn load(mut open: OpenObject, first: &First<'_>) -> libbpf_rs::Result<(Object, Vec<(String, OwnedFd)>)> {
    let large = put_off(&mut open)?;
    thread::scope(|scope| {
        let making = scope.spawn(|| large.iter().map(Large::make).collect::<libbpf_rs::Result<Vec<_>>>());
        // SAFETY: the object is open, and nobody else uses it meanwhile.
        checked(unsafe { bpf_object__prepare(open.as_libbpf_object().as_ptr()) })?;
        let made = making.join().map_err(|_| io::Error::other("the thread that makes maps has panicked"))??;
        put_in_place(&open, &large, &made)
    })?;
    let queue = Queue::new(take_out(&mut open), first);
    let object = thread::scope(|scope| {
        let beside = scope.spawn(|| queue.work());
        // An object that is refused takes its maps with it, which the others then lack: what it says comes first.
        let object = open.load();
        let ours = if object.is_ok() { queue.work() } else { Ok(()) };
        let theirs = beside.join().map_err(|_| io::Error::other("the thread that loads programs has panicked"));
        object.and_then(|object| {
            ours?;
            theirs??;
            Ok(object)
        })
    })?;
    Ok((object, queue.into_loaded()))
}

/// Programs to be loaded, by each thread that takes part: one after the other, those that are wanted first before the longest.
struct Queue<'f> {
    programs: Vec<Program>,
    next: AtomicUsize,
    loaded: Mutex<Vec<(String, OwnedFd)>>,
    first: &'f First<'f>,
    /// How many of the programs are wanted first.
    firsts: usize,
}

impl<'f> Queue<'f> {
    fn new(mut programs: Vec<Program>, first: &'f First<'f>) -> Self {
        programs.sort_by_key(|program| (!first.names(&program.name), Reverse(program.instructions.len())));
        let firsts = programs.iter().filter(|program| first.names(&program.name)).count();
        Self { programs, next: AtomicUsize::new(0), loaded: Mutex::default(), first, firsts }
    }

    fn work(&self) -> io::Result<()> {
        while let Some(program) = self.programs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let loaded = program.load()?;
            let mut all = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(loaded);
            if self.first.names(&program.name)
                && all.iter().filter(|(name, _)| self.first.names(name)).count() == self.firsts
            {
                (self.first.loaded)(&all);
            }
        }
        Ok(())
    }

    fn into_loaded(self) -> Vec<(String, OwnedFd)> {
        self.loaded.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A map that is made beside.
struct Large {
    name: OsString,
    kind: MapType,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

impl Large {
    fn of(map: &OpenMap<'_>) -> Self {
        Self {
            name: map.name().to_owned(),
            kind: map.map_type(),
            key_bytes: map.key_size(),
            value_bytes: map.value_size(),
            entries: map.max_entries(),
            flags: map.map_flags(),
        }
    }

    fn make(&self) -> libbpf_rs::Result<MapHandle> {
        let options = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as u64,
            map_flags: self.flags,
            ..Default::default()
        };
        MapHandle::create(self.kind, Some(&self.name), self.key_bytes, self.value_bytes, self.entries, &options)
    }
}

/// The large maps. What libbpf itself makes of them is as small as there can be one, until [`put_in_place`].
fn put_off(open: &mut OpenObject) -> libbpf_rs::Result<Vec<Large>> {
    let mut large = Vec::new();
    for mut map in open.maps_mut().filter(|map| map.max_entries() >= LARGE) {
        large.push(Large::of(&map));
        let least = if map.map_type() == MapType::RingBuf { page_bytes() } else { 1 };
        map.set_max_entries(u32::try_from(least).unwrap_or(LARGE))?;
    }
    Ok(large)
}

/// Puts the large maps in the place of the small ones, under their descriptors: these are in the programs' instructions.
fn put_in_place(open: &OpenObject, large: &[Large], made: &[MapHandle]) -> libbpf_rs::Result<()> {
    for (large, made) in large.iter().zip(made) {
        let small =
            open.maps().find(|map| map.name() == large.name).ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        // SAFETY: the map is the object's, which is prepared.
        let place = checked(unsafe { bpf_map__fd(small.as_libbpf_object().as_ptr()) })?;
        // SAFETY: both descriptors are open; that of the place stays the object's own.
        if unsafe { libc::dup3(made.as_fd().as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(())
}

/// A program that is loaded beside: what libbpf made of it.
struct Program {
    name: String,
    kind: u32,
    attach: u32,
    btf: RawFd,
    instructions: Vec<bpf_insn>,
    functions: Vec<bpf_func_info>,
    lines: Vec<bpf_line_info>,
}

/// Takes those programs out of what libbpf loads that need no more of it: all but those that are typed by the kernel's BTF.
fn take_out(open: &mut OpenObject) -> Vec<Program> {
    // SAFETY: the object is open, and prepared.
    let btf = unsafe { bpf_object__btf_fd(open.as_libbpf_object().as_ptr()) };
    let mut programs = Vec::new();
    for mut program in open.progs_mut() {
        if program.autoload() && program.prog_type() != ProgramType::Tracing {
            programs.push(Program::of(&program, btf));
            program.set_autoload(false);
        }
    }
    programs
}

impl Program {
    fn of(program: &OpenProgram<'_>, btf: RawFd) -> Self {
        let raw = program.as_libbpf_object().as_ptr();
        // SAFETY: the program is of a prepared object; what is told of it stays where it is as long as the object, and is copied.
        let (attach, functions, lines) = unsafe {
            (
                bpf_program__expected_attach_type(raw),
                copy(bpf_program__func_info(raw), bpf_program__func_info_cnt(raw)),
                copy(bpf_program__line_info(raw), bpf_program__line_info_cnt(raw)),
            )
        };
        Self {
            name: program.name().to_string_lossy().into_owned(),
            kind: program.prog_type() as u32,
            attach,
            btf,
            instructions: program.insns().to_vec(),
            functions,
            lines,
        }
    }

    fn load(&self) -> io::Result<(String, OwnedFd)> {
        match self.hand_over(&mut []) {
            Ok(descriptor) => Ok((self.name.clone(), descriptor)),
            Err(error) => {
                // Once more, to be told why.
                let mut log = vec![0; LOG_BYTES];
                let again = self.hand_over(&mut log);
                let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
                keep_message(
                    PrintLevel::Warn,
                    format!("prog '{}': {error}\n{}", self.name, String::from_utf8_lossy(said)),
                );
                again.map(|descriptor| (self.name.clone(), descriptor)).map_err(|_| error)
            }
        }
    }

    fn hand_over(&self, log: &mut [u8]) -> io::Result<OwnedFd> {
        let name = CString::new(self.name.as_bytes())?;
        let mut options = bpf_prog_load_opts {
            sz: size_of::<bpf_prog_load_opts>() as u64,
            expected_attach_type: self.attach,
            ..Default::default()
        };
        if self.btf >= 0 {
            options.prog_btf_fd = self.btf.cast_unsigned();
            options.func_info = self.functions.as_ptr().cast();
            options.func_info_cnt = count(&self.functions)?;
            options.func_info_rec_size = size_of::<bpf_func_info>() as u32;
            options.line_info = self.lines.as_ptr().cast();
            options.line_info_cnt = count(&self.lines)?;
            options.line_info_rec_size = size_of::<bpf_line_info>() as u32;
        }
        if !log.is_empty() {
            options.log_level = 1;
            options.log_size = count(log)?;
            options.log_buf = log.as_mut_ptr().cast();
        }
        // SAFETY: every address has as many elements behind it as is said, and all outlive the call.
        let descriptor = checked(unsafe {
            bpf_prog_load(
                self.kind,
                name.as_ptr(),
                LICENSE.as_ptr(),
                self.instructions.as_ptr(),
                self.instructions.len() as u64,
                &raw mut options,
            )
        })?;
        // SAFETY: the kernel has just made it, for us.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

fn count<T>(elements: &[T]) -> io::Result<u32> {
    u32::try_from(elements.len()).map_err(io::Error::other)
}

/// # Safety
/// `start` is null, or has `count` elements behind it.
unsafe fn copy<T: Clone>(start: *const T, count: u32) -> Vec<T> {
    if start.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's word.
    unsafe { std::slice::from_raw_parts(start, count as usize) }.to_vec()
}
