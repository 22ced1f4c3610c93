//! What is done with a process while the supervisor holds it: find its Python, attach, watch; at its end, take the last state.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use nix::unistd::Pid;
use rmprof_probes::abi;
use tokio::sync::mpsc::UnboundedSender;

use super::collector::Message;
use super::image::{Birth, Death};
use super::modules::{self, Modules};
use crate::kernel::{Attacher, Links, Mode, ProbePoint};
use crate::launch::{Shim, Site, site_places};
use crate::ledger::ProcessId;
use crate::python::discover::Interpreter;
use crate::python::layout::{CleanUpCodes, Layout};
use crate::python::thread_slot::ThreadSlot;
use crate::python::{verify, with_cleanup};
use crate::tally::{self, Segment, Segments};
use crate::target::ProcessMemory;
use crate::target::credentials::Credentials;
use crate::target::preload;
use crate::target::source::Root;
use crate::target::status;
use crate::target::supervise::{AfterExec, Announcement, Watcher, exit_code};

/// `struct pthread.specific` in glibc (nptl/descr.h), the same from 2.27 to 2.43 on x86-64.
const GLIBC_SPECIFIC: u32 = 0x510;

/// A watched process.
struct Held {
    id: ProcessId,
    links: Links,
    interpreter: Interpreter,
    layout: Layout,
    /// Where it counts its blocks itself.
    tally: Option<Arc<Segment>>,
}

/// The library that lets a process count its blocks itself.
struct Library {
    path: PathBuf,
    file: File,
    sites: Vec<ProbePoint>,
}

/// The watcher of a run.
pub struct Hold {
    attacher: Arc<Attacher>,
    mode: Mode,
    messages: UnboundedSender<Message>,
    launch: Option<(File, Vec<ProbePoint>)>,
    help: Option<PathBuf>,
    library: Option<Library>,
    watched: HashMap<Pid, Held>,
    modules: Modules,
    /// Where the launch help is told of the program's process, once.
    notice: Option<File>,
    credentials: Option<Arc<Credentials>>,
    last_id: u32,
}

impl Hold {
    /// A watcher that attaches with `attacher` and tells the collector.
    pub fn new(
        attacher: Arc<Attacher>,
        mode: Mode,
        messages: UnboundedSender<Message>,
        shim: Option<&Shim>,
        preload: bool,
        credentials: Option<Arc<Credentials>>,
    ) -> Self {
        let launch = shim.and_then(|shim| match launch_points(shim) {
            Ok(launch) => Some(launch),
            Err(error) => {
                super::say(&format!("marks are not available: {error:#}"));
                None
            }
        });
        let wanted = shim.filter(|_| preload && mode.counts_blocks());
        let library = wanted.and_then(|shim| match library_of(shim) {
            Ok(library) => Some(library),
            Err(error) => {
                super::say(&format!("every call of the allocator is trapped, which is slow: {error:#}"));
                None
            }
        });
        let help = shim.map(|shim| shim.path().to_path_buf());
        let notice = shim.and_then(Shim::notice).map(File::from);
        Self {
            attacher,
            mode,
            messages,
            launch,
            help,
            library,
            notice,
            credentials,
            watched: HashMap::new(),
            modules: Modules::default(),
            last_id: 0,
        }
    }

    fn note(&self, text: String) {
        // The collector hears until the last sender is gone.
        let _ = self.messages.send(Message::Note(text));
    }

    fn next_id(&mut self) -> ProcessId {
        self.last_id += 1;
        ProcessId(self.last_id)
    }

    /// Attaches everything the mode asks for to one process.
    fn attach(&self, pid: Pid, libraries: &[Arc<modules::Allocator>], tally: Option<&Segment>) -> Links {
        let number = pid.as_raw().unsigned_abs();
        let mut links = Links::default();
        if let (Some(tally), Some(library)) = (tally, &self.library) {
            match self.attacher.attach_launch(number, &library.file, &library.sites) {
                Ok(more) => links.extend(more),
                Err(error) => self.note(format!("process {pid}: its stacks are not known: {error}")),
            }
            let (file, offset) = tally.switch();
            match self.attacher.silence(file, offset) {
                Ok(more) => links.extend(more),
                Err(error) => self.note(format!("process {pid}: should we be killed, it goes on counting: {error}")),
            }
        } else if self.mode.counts_blocks() {
            for library in libraries.iter().filter(|library| library.name != tally::FILE) {
                match self.attacher.attach_heap(number, &library.file, &library.points) {
                    Ok(more) => links.extend(more),
                    Err(error) => self.note(format!("process {pid}: {} is not measured: {error}", library.name)),
                }
            }
        }
        if let Some((file, points)) = &self.launch {
            match self.attacher.attach_launch(number, file, points) {
                Ok(more) => links.extend(more),
                Err(error) => self.note(format!("process {pid}: marks are not available: {error}")),
            }
        }
        links
    }

    /// Begins an image: tells the collector first, so that its births come before their records.
    fn begin(&mut self, pid: Pid, process: abi::rm_process, held: Held, forked_from: Option<ProcessId>) {
        let id = ProcessId(process.id);
        let birth = Birth {
            id,
            pid,
            parent: status::parent_pid(pid).unwrap_or(Pid::from_raw(0)),
            command: command_of(pid),
            cgroup: status::cgroup(pid).ok(),
            started: SystemTime::now(),
            interpreter: held.interpreter.clone(),
            layout: held.layout.clone(),
            forked_from,
            attacher: Arc::clone(&self.attacher),
            credentials: self.credentials.clone(),
            help: self.help.clone(),
            tally: held.tally.clone(),
            root: Root::of(pid).ok(),
            rss_bytes: status::resident(pid).ok().map(|resident| resident.total_bytes()),
        };
        let _ = self.messages.send(Message::Born(Box::new(birth)));
        if let Err(error) = self.attacher.watch(pid.as_raw().unsigned_abs(), &process) {
            self.note(format!("process {pid}: it is not measured: {error}"));
        }
        self.watched.insert(pid, held);
    }

    /// Ends an image.
    fn end(&mut self, pid: Pid, exit: Option<i32>) {
        let Some(held) = self.watched.remove(&pid) else { return };
        if let Some(tally) = &held.tally {
            tally.end();
        }
        let last = self.attacher.forget(pid.as_raw().unsigned_abs());
        if self.mode == Mode::Objects && last.is_some_and(|last| last.arena_caller != 0) {
            self.note(format!(
                "process {pid}: its Python did not heed PYTHONMALLOC=malloc: objects of up to 512 bytes were counted by the page, \
                 as in heap mode\nhint: run it without -E and -I, and leave its environment as it is"
            ));
        }
        let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
        let death = Death {
            ended: SystemTime::now(),
            status: exit,
            rss_bytes: last.map_or(0, |last| bytes(crate::kernel::resident_bytes(&last))),
            peak_bytes: last.map_or(0, |last| bytes(last.resident_peak)),
            last_change: last.map(|last| (last.history_sequence, bytes(last.history_bytes))),
        };
        let _ = self.messages.send(Message::Died(held.id, death));
        drop(held.links);
    }

    /// The layout, with the interpreter's own word (3.13+) laid over it; what differs is told.
    fn live_layout(&self, pid: Pid, interpreter: &Interpreter) -> Layout {
        match verify::with_live_offsets(&ProcessMemory(pid), interpreter.runtime_address, interpreter.layout) {
            Ok((layout, differences)) => {
                for difference in differences {
                    let (name, expected, live) = (difference.name, difference.expected, difference.live);
                    self.note(format!(
                        "process {pid}: its Python has {name} at {live}, not at {expected}: taken as it says"
                    ));
                }
                layout
            }
            Err(error) => {
                self.note(format!("process {pid}: {error}; the offsets known for its version are used"));
                interpreter.layout.clone()
            }
        }
    }

    /// What the preloaded library of an image offers to count in.
    fn tally(&self, pid: Pid, said: Announcement) -> Option<Arc<Segment>> {
        match Segments::of(pid, said) {
            Ok(segments) => segments.take().map(Arc::new),
            Err(error) => {
                self.note(format!("process {pid}: every call of its allocator is trapped, which is slow: {error}"));
                None
            }
        }
    }

    /// A segment of a fork's own. Where there is none left its calls are trapped.
    fn tally_of_fork(&self, child: Pid, parent: Option<&Segment>) -> Option<Arc<Segment>> {
        let segments = parent?.siblings();
        let own = segments.take().map(Arc::new);
        if let Err(error) = segments.direct(child, own.as_deref()) {
            self.note(format!("process {child}: its blocks are counted as its parent's: {error}"));
            return None;
        }
        own
    }

    fn new_process(&mut self, pid: Pid) -> abi::rm_process {
        // SAFETY: rm_process is a plain C struct for which all zero is a valid value: nothing known yet.
        let mut process: abi::rm_process = unsafe { std::mem::zeroed() };
        process.id = self.next_id().0;
        process.flags = match self.mode {
            Mode::Heap | Mode::Objects => abi::RM_HEAP,
            Mode::Pages => abi::RM_PAGES,
        };
        seed_resident(&mut process, pid);
        process
    }
}

impl Watcher for Hold {
    fn starting(&mut self, pid: Pid) {
        if let Some(mut notice) = self.notice.take() {
            // Without it the directory merely goes with us.
            let _ = notice.write_all(&pid.as_raw().to_ne_bytes());
        }
    }

    fn forked(&mut self, parent: Pid, child: Pid) {
        let Some(held) = self.watched.get(&parent) else { return };
        let (interpreter, layout, parent_id) = (held.interpreter.clone(), held.layout.clone(), held.id);
        let Some(mut process) = self.attacher.watched(parent.as_raw().unsigned_abs()) else { return };
        let tally = self.tally_of_fork(child, held.tally.as_deref());
        let from = process.id;
        process.id = self.next_id().0;
        process.memory = 0;
        // The library tells where it is, at its first event.
        (process.tally, process.own_bytes) = (0, 0);
        (process.order_major, process.order_minor) = (0, 0);
        seed_resident(&mut process, child);
        if let Err(error) = self.attacher.inherit_arenas(from, process.id) {
            self.note(format!("process {child}: arena memory of its parent is not known: {error}"));
        }
        let libraries = self.modules.of(child).map(|mapped| mapped.allocators).unwrap_or_default();
        let links = self.attach(child, &libraries, tally.as_deref());
        if let Some(tally) = &tally {
            let of_parent = self.watched.get(&parent).and_then(|parent| parent.tally.as_deref());
            tally.begin(&process, self.mode == Mode::Objects, of_parent);
        }
        let held = Held { id: ProcessId(process.id), links, interpreter, layout, tally };
        self.begin(child, process, held, Some(parent_id));
    }

    fn executed(&mut self, pid: Pid) -> AfterExec {
        self.end(pid, None);
        if !self.modules.may_be_python(pid) {
            return AfterExec::Continue;
        }
        match &self.library {
            Some(library) if preload::give(pid, &library.path) => AfterExec::HoldWhenAnnounced(tally::ANNOUNCER),
            _ => AfterExec::HoldWhenLoaded,
        }
    }

    fn loaded(&mut self, pid: Pid, said: Option<Announcement>) {
        let mapped = match self.modules.of(pid) {
            Ok(mapped) => mapped,
            Err(error) => {
                let text = format!("process {pid}: its mappings cannot be read, it is not measured: {error}");
                drop(self.messages.send(Message::Note(text)));
                return;
            }
        };
        let interpreter = match mapped.interpreter() {
            Ok(Some(interpreter)) => interpreter,
            Ok(None) => return,
            Err(refusal) => {
                let text = format!("process {pid} is not measured: {}\nhint: {}", refusal.sentence, refusal.hint);
                drop(self.messages.send(Message::Note(text)));
                return;
            }
        };
        let (allocators, tcache_offset) = (mapped.allocators, mapped.tcache_offset);
        let (loader_range, library_range) = (mapped.loader_range, mapped.library_range);
        // Before the beginning is taken: what it reads may become resident by that.
        let layout = self.live_layout(pid, &interpreter);
        let mut process = self.new_process(pid);
        process.flags |= abi::RM_PYTHON;
        process.layout = layout_of(&layout);
        set_thread_slot(&mut process, &interpreter);
        (process.text_start, process.text_end) = (interpreter.text_range.start, interpreter.text_range.end);
        (process.loader_start, process.loader_end) = loader_range;
        (process.library_start, process.library_end) = library_range;
        process.specific_offset = GLIBC_SPECIFIC;
        process.tcache_offset = tcache_offset;
        process.finalizing_address = interpreter.finalizing_address();
        process.code_type = interpreter.code_type.unwrap_or(0);
        let tally = said.filter(|_| only_libc(&allocators)).and_then(|said| self.tally(pid, said));
        if let Some(tally) = &tally {
            let segments = tally.siblings();
            (process.tally, process.tally_thread) = (segments.address(), segments.thread_offset());
        }
        let links = self.attach(pid, &allocators, tally.as_deref());
        if let Some(tally) = &tally {
            tally.begin(&process, self.mode == Mode::Objects, None);
        }
        let held = Held { id: ProcessId(process.id), links, interpreter, layout, tally };
        self.begin(pid, process, held, None);
    }

    fn exited(&mut self, pid: Pid, status: std::process::ExitStatus) {
        self.end(pid, Some(exit_code(status)));
    }

    fn left(&mut self, pid: Pid) {
        self.end(pid, None);
    }
}

fn command_of(pid: Pid) -> Vec<String> {
    let words = status::command_line(pid).unwrap_or_default();
    words.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// What the kernel says is resident before the first event tells.
fn seed_resident(process: &mut abi::rm_process, pid: Pid) {
    let now = status::resident(pid).unwrap_or_default();
    let bytes = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    process.resident = [bytes(now.file_bytes), bytes(now.anonymous_bytes), 0, bytes(now.shared_bytes)];
    process.resident_peak = bytes(now.total_bytes());
    (process.history_sequence, process.history_bytes) = (0, process.resident_peak);
}

/// Is the C library the only allocator, the preloaded library aside? What others do is not seen by that.
fn only_libc(allocators: &[Arc<modules::Allocator>]) -> bool {
    let mut others = allocators.iter().map(|allocator| allocator.name.as_str()).filter(|name| *name != tally::FILE);
    others.next().is_some_and(|name| name.starts_with("libc.so") || name.starts_with("libc-2."))
        && others.next().is_none()
}

fn library_of(shim: &Shim) -> anyhow::Result<Library> {
    let path = shim.library_path();
    let sites = tally::sites()?.into_iter().map(|(role, offset)| ProbePoint { offset, role, returns: false }).collect();
    Ok(Library { file: File::open(&path)?, path, sites })
}

fn launch_points(shim: &Shim) -> anyhow::Result<(File, Vec<ProbePoint>)> {
    let points = site_places()?
        .into_iter()
        .map(|place| ProbePoint {
            offset: place.file_offset,
            role: match place.site {
                Site::Line => abi::RM_LAUNCH_LINE,
                Site::Mark => abi::RM_LAUNCH_MARK,
                Site::Hello => abi::RM_LAUNCH_HELLO,
            },
            returns: false,
        })
        .collect();
    Ok((File::open(shim.extension_path())?, points))
}

/// Where its threads keep their thread states.
fn set_thread_slot(process: &mut abi::rm_process, interpreter: &Interpreter) {
    process.slot_kind = abi::RM_SLOT_VARIABLE;
    process.key_address = interpreter.interpreters_address();
    match interpreter.thread_slot {
        ThreadSlot::TssKey { address } => {
            (process.slot_kind, process.key_address) = (abi::RM_SLOT_TSS_KEY, address);
        }
        ThreadSlot::Static { offset } => process.slot_offset = offset,
        ThreadSlot::InModule { index, offset } => (process.slot_module, process.slot_offset) = (index, offset),
    }
}

/// How much of a frame is to be read: to the last field wanted and no further.
fn frame_bytes(layout: &Layout) -> u32 {
    let position = if layout.position_kind == abi::RM_POSITION_POINTER { 8 } else { 4 };
    let owner = if layout.frame_owner == abi::RM_ABSENT { 0 } else { layout.frame_owner + 1 };
    (layout.frame_back + 8).max(layout.frame_code + 8).max(layout.frame_position + position).max(owner)
}

/// The data file's fields as the walker's struct, name by name.
fn layout_of(layout: &Layout) -> abi::rm_layout {
    abi::rm_layout {
        thread_head: layout.thread_head,
        thread_head_hop: layout.thread_head_hop,
        thread_thread_id: layout.thread_thread_id,
        frame_base: layout.frame_base,
        frame_bytes: frame_bytes(layout),
        frame_back: layout.frame_back,
        frame_code: layout.frame_code,
        frame_code_tags: layout.frame_code_tags,
        frame_position: layout.frame_position,
        frame_owner: layout.frame_owner,
        owner_skip: layout.owner_skip,
        position_kind: layout.position_kind,
        code_base: layout.code_base,
        code_first_line: layout.code_first_line,
        code_filename: layout.code_filename,
        code_name: layout.code_name,
        code_qualname: layout.code_qualname,
        code_line_table: layout.code_line_table,
        code_version: layout.code_version,
        code_code: layout.code_code,
        lines_mended: with_cleanup::is_needed(layout.minor).into(),
        code_bytecode: layout.code_bytecode,
        object_type: layout.object_type,
        str_length: layout.str_length,
        str_state: layout.str_state,
        str_ascii_data: layout.str_ascii_data,
        str_compact_data: layout.str_compact_data,
        str_kind_shift: layout.str_kind_shift,
        str_compact_bit: layout.str_compact_bit,
        str_ascii_bit: layout.str_ascii_bit,
        bytes_length: layout.bytes_length,
        bytes_data: layout.bytes_data,
        arena_bytes: layout.arena_bytes,
        clean_up: layout.clean_up.as_ref().map_or(NO_CLEAN_UP, clean_up_of),
    }
}

const NO_CLEAN_UP: abi::rm_clean_up = abi::rm_clean_up {
    calls: [0; 8],
    load: [abi::RM_ABSENT; 2],
    again: [abi::RM_ABSENT; 2],
    argument: 0,
    raised: abi::RM_ABSENT,
    before: [abi::RM_ABSENT; 3],
    line: abi::RM_ABSENT,
};

fn clean_up_of(codes: &CleanUpCodes) -> abi::rm_clean_up {
    let mut calls = [0; 8];
    for call in &codes.calls {
        calls[usize::from(call >> 5)] |= 1 << (call & 31);
    }
    abi::rm_clean_up {
        calls,
        load: filled(codes.load.iter().copied().map(u32::from)),
        again: filled(codes.again.iter().copied().map(u32::from)),
        argument: codes.argument.into(),
        raised: codes.raised.into(),
        before: filled(codes.before.iter().map(|(opcode, argument)| u32::from(*opcode) | u32::from(*argument) << 8)),
        line: codes.line.map_or(abi::RM_ABSENT, u32::from),
    }
}

/// What there is, and `RM_ABSENT` in the rest; more than there is room for was refused (`CleanUpCodes::validate`).
fn filled<const N: usize>(values: impl Iterator<Item = u32>) -> [u32; N] {
    let mut all = [abi::RM_ABSENT; N];
    all.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    all
}
