//! One process image as the collector knows it: its stacks, code objects, marks and mappings, growing as records come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rmprof_probes::abi;

use super::pieces::Pieces;
use super::sources::{Script, Sources};
use super::tallied::Tally;
use crate::kernel::Attacher;
use crate::kernel::event::{Piece, RawCode};
use crate::launch;
use crate::ledger::{
    CodeKey, Frame, LinePosition, MapChange, Mappings, Origin, ProcessId, Resolved, SiteCounts, Stack, StackId,
};
use crate::native::{CodeMapping, Files, Natives, Snapshot};
use crate::python::code::Memory;
use crate::python::code::{self, CodeObject, RawStr};
use crate::python::discover::Interpreter;
use crate::python::flow::Flow;
use crate::python::layout::Layout;
use crate::python::{verify, with_cleanup};
use crate::report::is_own_file;
use crate::tally::Segment;
use crate::target::ProcessMemory;
use crate::target::credentials::Credentials;
use crate::target::identity::Container;
use crate::target::source::Root;
use crate::target::supervise::exit_code;

/// What the supervisor tells of a new image.
#[derive(Debug)]
pub struct Birth {
    /// Its number for the whole session.
    pub id: ProcessId,
    /// Its process.
    pub pid: Pid,
    /// The process's parent.
    pub parent: Pid,
    /// The command line.
    pub command: Vec<String>,
    /// Its control group.
    pub cgroup: Option<String>,
    /// Its container.
    pub container: Option<Container>,
    /// When it began.
    pub started: SystemTime,
    /// Its Python.
    pub interpreter: Interpreter,
    /// Where things stand in its memory: the layout of its minor version, with what the interpreter says itself laid over it.
    pub layout: Layout,
    /// The image it is a fork of.
    pub forked_from: Option<ProcessId>,
    /// Tells whether the process still is this image.
    pub attacher: Arc<Attacher>,
    /// Whose rights the program has, where they are not ours: its sources are read with them.
    pub credentials: Option<Arc<Credentials>>,
    /// Directory of our help to the program: its files' frames are not the program's.
    pub help: Option<PathBuf>,
    /// Its interpreter may be asked to run a script of ours ([`launch::SCRIPT`]).
    pub asked_from_outside: bool,
    /// Where it counts its blocks itself, if it does; the image takes it.
    pub tally: Option<Arc<Segment>>,
    /// Its view of the file system, kept open.
    pub root: Option<Root>,
    /// The program's own file, where it has one; the image takes it.
    pub script: Option<Script>,
    /// Resident bytes at that moment.
    pub rss_bytes: Option<u64>,
}

/// A first sight of something native.
#[derive(Debug)]
pub enum NativeNews {
    /// Where a stack was called from.
    Call(Snapshot),
    /// The function with which the thread of a stack without Python frames began.
    Thread(StackId, u64),
}

/// What is known of its end.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    /// When.
    pub ended: SystemTime,
    /// How.
    pub end: End,
    /// Resident bytes at the last change.
    pub rss_bytes: u64,
    /// The highest.
    pub peak_bytes: u64,
    /// The last change of resident memory, as [`Event::Resident`](crate::kernel::event::Event::Resident) tells of those before.
    pub last_change: Option<(u64, u64)>,
}

/// How an image ended. All absent: it was replaced by another (exec), or let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Exit status, 128 + N for signal N.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel had chosen to end it for want of memory.
    pub victim: bool,
}

impl End {
    /// Of a status of `wait`.
    pub fn of(status: ExitStatus, victim: bool) -> Self {
        let signal = status.signal();
        Self { status: Some(exit_code(status)), signal, victim: victim && signal == Some(libc::SIGKILL) }
    }

    /// After the words "process N"; `None` where it ended by itself, or lives on.
    pub fn words(&self) -> Option<String> {
        let signal = self.signal?;
        let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string());
        Some(match signal {
            libc::SIGKILL if self.victim => "was killed by the kernel for want of memory".into(),
            libc::SIGKILL => format!("was killed ({name})"),
            _ if self.is_abnormal() => format!("crashed ({name})"),
            _ => format!("was ended by {name}"),
        })
    }

    /// Killed, or crashed: nobody asked it to end.
    pub fn is_abnormal(&self) -> bool {
        // Those whose default is to dump core, but for Ctrl-\ (signal(7)), and the one that nothing withstands.
        self.signal.is_some_and(|signal| {
            [
                libc::SIGKILL,
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGABRT,
                libc::SIGILL,
                libc::SIGFPE,
                libc::SIGSYS,
                libc::SIGTRAP,
                libc::SIGXCPU,
                libc::SIGXFSZ,
            ]
            .contains(&signal)
        })
    }
}

/// A function: code objects that are alike in everything a reader sees. What is compiled anew from the same text is the same
/// function; what only shares a name (`<module>` of `<string>`) is another.
#[derive(Clone, Debug)]
pub struct FunctionInfo {
    /// A code object of it.
    pub code: Arc<CodeObject>,
    /// Lines of its own bytecode.
    pub own_lines: Vec<u32>,
    /// The mark's order, if it is marked.
    pub mark: Option<u32>,
    /// Numbers of its code objects that gave line events.
    pub numbers: BTreeSet<u32>,
    /// Of one that gives them, which go on with an execution; `None` where that is not known.
    pub flow: Option<Flow>,
}

/// So many thread states have to be unknown to the interpreter before it is said: one thread may have ended meanwhile.
const CHECKS: u32 = 3;

/// The fingerprint of a code object that the kernel side could not read (`walk_step` in probes/bpf/python.bpf.h).
const NOT_READ: u32 = 0;

/// The name under which our own help to the program is compiled (`launch/`).
const OWN_HELP: &str = "<rmprof-bpf>";
/// What the file names begin with of what it does in the middle of the program: the debugger that it opens, and the line events that it
/// has functions give.
const OWN_WORK: &str = "<rmprof-bpf ";

/// See the module.
#[derive(Debug)]
pub struct Image {
    /// What was known at its birth.
    pub birth: Birth,
    /// Its end, once it has come.
    pub death: Option<Death>,
    /// Did the launch help announce itself?
    pub hello: bool,
    /// Functions, by the index that line positions carry.
    pub functions: Vec<FunctionInfo>,
    /// Every stack announced.
    pub stacks: HashMap<StackId, Stack>,
    /// Sums of its own mappings, by stack.
    pub mapped: BTreeMap<StackId, SiteCounts>,
    codes: HashMap<CodeKey, Option<u32>>,
    by_content: HashMap<Arc<CodeObject>, u32>,
    mappings: Mappings,
    /// Code objects that are still to be heard of, their numbers, and whether they are marked.
    marks_waiting: Vec<(CodeKey, u32, bool)>,
    sources: Sources,
    /// Thread states still to be held against the interpreter's own list.
    checks: u32,
    pieces: Pieces,
    /// What it counts itself.
    pub tally: Option<Tally>,
    /// Its native functions.
    pub natives: Natives,
}

impl Image {
    /// An image that has just begun.
    pub fn new(mut birth: Birth) -> Self {
        Self {
            sources: Sources::new(birth.started, birth.script.take()),
            tally: birth.tally.take().map(|segment| Tally::new(segment, birth.rss_bytes.unwrap_or(0))),
            birth,
            death: None,
            hello: false,
            functions: Vec::new(),
            stacks: HashMap::new(),
            mapped: BTreeMap::new(),
            codes: HashMap::new(),
            by_content: HashMap::new(),
            mappings: Mappings::new(crate::target::page_bytes()),
            marks_waiting: Vec::new(),
            checks: CHECKS,
            pieces: Pieces::default(),
            natives: Natives::default(),
        }
    }

    /// An image that is a copy of another: the same code objects stand at the same addresses, marked ones too.
    pub fn forked(birth: Birth, parent: &Image) -> Self {
        Self {
            hello: parent.hello,
            functions: parent.functions.clone(),
            codes: parent.codes.clone(),
            by_content: parent.by_content.clone(),
            sources: parent.sources.clone(),
            ..Self::new(birth)
        }
    }

    /// A stack was seen for the first time. Returns what is wrong with the thread state it came from, once an image.
    pub fn stack(&mut self, id: StackId, stack: Stack, thread_state: u64, thread_pointer: u64) -> Option<String> {
        for frame in &stack.frames {
            // Announced before its stack, unless the kernel side could not read it: then it is tried here.
            if !self.codes.contains_key(&frame.code) {
                self.code(frame.code, RawCode::default());
            }
        }
        self.stacks.insert(id, stack);
        if self.checks == 0 || thread_state == 0 {
            return None;
        }
        let memory = self.memory();
        let runtime = self.birth.interpreter.runtime_address;
        match verify::thread_is_known(&memory, runtime, &self.birth.layout, thread_state, thread_pointer) {
            Ok(true) => self.checks = 0,
            Ok(false) => {
                self.checks -= 1;
                if self.checks == 0 {
                    return Some(format!("the thread state at {thread_state:#x} is not in it"));
                }
            }
            // It has ended; a short program has before its first stack is looked at, and has a thousand of them.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => self.checks = 0,
            Err(_) => {} // it is about to end
        }
        None
    }

    /// Where a stack was called from, or what its thread began with.
    pub fn native(&mut self, what: NativeNews, files: &mut Files) {
        let process = self.live_process();
        match what {
            NativeNews::Call(snapshot) => self.natives.call(snapshot, files, process),
            NativeNews::Thread(stack, start) => self.natives.thread(stack, start, files, process),
        }
    }

    /// All native functions that can be known by now are known after this. `code`: what it maps, where somebody has looked.
    pub fn settle_natives(&mut self, code: Option<Vec<CodeMapping>>, files: &mut Files) {
        let process = self.live_process();
        self.natives.settle(code, files, process);
    }

    /// Its process, while it still is this image.
    fn live_process(&self) -> Option<Pid> {
        self.memory().still_this_image().is_ok().then_some(self.birth.pid)
    }

    /// Writes what is known of native functions into the stacks.
    pub fn set_origins(&mut self) {
        for (id, stack) in &mut self.stacks {
            stack.origin = Origin { asked_in: self.natives.of_call(*id), thread: self.natives.of_thread(*id) };
        }
    }

    /// A piece of a code object that is announced next.
    pub fn piece(&mut self, key: CodeKey, piece: Piece) {
        self.pieces.add(key, piece);
    }

    /// A code object was seen for the first time.
    pub fn code(&mut self, key: CodeKey, mut raw: RawCode) {
        let bytecode = self.pieces.complete(key, &mut raw);
        let mut code = copied(&raw, &self.birth.layout).or_else(|| self.read(key));
        if let Some(code) = &mut code {
            self.mend(key, code, bytecode);
        }
        let index = code.map(|code| self.function_of(code));
        self.codes.insert(key, index);
        for (key, number, asked) in std::mem::take(&mut self.marks_waiting) {
            self.mark(key, number, asked);
        }
    }

    /// What the table of lines does not say, and the bytecode does (up to 3.9).
    fn mend(&self, key: CodeKey, code: &mut CodeObject, bytecode: Option<Vec<u8>>) {
        let layout = &self.birth.layout;
        if let Some(bytecode) = bytecode.or_else(|| with_cleanup::read(layout, &self.memory(), key.address)) {
            code.clean_ups = with_cleanup::of(layout.minor, &bytecode);
            code.lines.bytecode_bytes = u32::try_from(bytecode.len()).ok();
        }
    }

    fn memory(&self) -> ImageMemory<'_> {
        ImageMemory { memory: ProcessMemory(self.birth.pid), birth: &self.birth }
    }

    /// Reads a code object from the process, if it still stands there.
    fn read(&self, key: CodeKey) -> Option<CodeObject> {
        let read = code::read(&self.memory(), key.address, &self.birth.layout);
        read.ok()
            .filter(|(_, fingerprint)| key.fingerprint == NOT_READ || *fingerprint == key.fingerprint)
            .map(|(code, _)| code)
    }

    fn function_of(&mut self, code: CodeObject) -> u32 {
        let code = Arc::new(code);
        if let Some(index) = self.by_content.get(&code) {
            return *index;
        }
        let index = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        if is_own_file(&code.filename) {
            self.sources.read(&self.birth, &code); // while the file stands as it was executed
        }
        let own_lines = code.own_lines();
        self.by_content.insert(Arc::clone(&code), index);
        self.functions.push(FunctionInfo { code, own_lines, mark: None, numbers: BTreeSet::new(), flow: None });
        index
    }

    /// A code object gives line events from here on. It is read at once: the launch help keeps it alive, but not the process.
    pub fn mark(&mut self, key: CodeKey, number: u32, asked: bool) {
        if !self.codes.contains_key(&key) {
            let Some(mut code) = self.read(key) else {
                self.marks_waiting.push((key, number, asked));
                return;
            };
            self.mend(key, &mut code, None);
            let index = self.function_of(code);
            self.codes.insert(key, Some(index));
        }
        let Some(Some(index)) = self.codes.get(&key).copied() else { return };
        let instructions = self.pieces.take_instructions(key);
        if let Some(function) = self.functions.get_mut(index as usize) {
            if let (Some((bytecode, handlers)), Some(codes)) = (instructions, &self.birth.layout.flow) {
                let code = &function.code;
                function.flow = Flow::new(codes, &bytecode, &handlers, &code.lines, code.first_line);
            }
            if asked {
                function.mark.get_or_insert(number);
            }
            function.numbers.insert(number);
        }
    }

    /// A mapping call of the program's own.
    pub fn map(&mut self, stack: StackId, change: MapChange) {
        for (owner, credit) in self.mappings.apply(change, stack) {
            self.mapped.entry(owner).or_default().add(&credit);
        }
    }

    /// The text that `code` was compiled from; `None` where it cannot be read, or is not that text any more.
    pub fn source(&mut self, code: &CodeObject) -> Option<Arc<Vec<String>>> {
        self.sources.of(&self.birth, code)
    }

    /// The function that a code object is of.
    pub fn function(&self, code: CodeKey) -> Option<u32> {
        self.codes.get(&code).copied().flatten()
    }

    /// Where a frame stands.
    pub fn resolve(&self, frame: Frame) -> Resolved {
        let Some(index) = self.function(frame.code) else { return Resolved::Unknown };
        let Some(function) = self.functions.get(index as usize) else { return Resolved::Unknown };
        if function.code.filename == OWN_HELP || self.is_help_file(&function.code.filename) {
            return Resolved::Skip;
        }
        if function.code.filename.starts_with(OWN_WORK) {
            return Resolved::OwnWork;
        }
        let line = function.code.line_of(frame.position);
        let is_script = self.birth.asked_from_outside && function.code.filename == "<string>";
        if is_script && line.is_some_and(|line| line >= launch::SCRIPT_BEGINS) {
            return Resolved::OwnWork;
        }
        match line {
            Some(line) if line > 0 => Resolved::Line(LinePosition { function: index, line }),
            _ => Resolved::Line(LinePosition { function: index, line: function.code.first_line.max(1) }),
        }
    }

    fn is_help_file(&self, filename: &str) -> bool {
        self.birth.help.as_ref().is_some_and(|help| Path::new(filename).starts_with(help))
    }
}

/// The memory of one image: reads fail once the process has become another.
struct ImageMemory<'i> {
    memory: ProcessMemory,
    birth: &'i Birth,
}

impl ImageMemory<'_> {
    fn still_this_image(&self) -> std::io::Result<()> {
        let watched = self.birth.attacher.watched(self.birth.pid.as_raw().unsigned_abs());
        // An exec leaves the number for a moment, and takes all else that was known.
        let is_this = |process: &abi::rm_process| process.id == self.birth.id.0 && process.flags & abi::RM_PYTHON != 0;
        if watched.as_ref().is_some_and(is_this) {
            return Ok(());
        }
        Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the process has ended or executed another program"))
    }
}

impl Memory for ImageMemory<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(address, buffer)?;
        self.still_this_image() // after the read: it was this image's then
    }
}

/// What the kernel side copied, if it could copy all of it.
fn copied(raw: &RawCode, layout: &Layout) -> Option<CodeObject> {
    fn text(raw: &crate::kernel::event::RawText) -> RawStr<'_> {
        RawStr { kind: raw.kind, bytes: &raw.bytes }
    }
    let has_qualified_name = layout.code_qualname != crate::python::layout::ABSENT;
    let qualified_name = raw.qualified_name.as_ref().map(text);
    if has_qualified_name && qualified_name.is_none() {
        return None;
    }
    let parts = code::RawCode {
        first_line: raw.first_line,
        filename: text(raw.filename.as_ref()?),
        name: text(raw.name.as_ref()?),
        qualified_name,
        line_table: raw.line_table.as_ref()?,
    };
    CodeObject::from_raw(layout.line_table_kind, &parts)
}
