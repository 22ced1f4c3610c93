//! What is done with a process while the supervisor holds it: find its Python, attach, watch; at its end, take the last state.

mod watcher;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use nix::unistd::Pid;
use rmprof_probes::abi;
use tokio::sync::mpsc::UnboundedSender;

use super::collector::Message;
use super::given::{Library, launch_points, library_of};
use super::image::{Birth, Death, End};
use super::modules::{self, Libraries, Modules};
use super::recipe;
use super::sources::Script;
use crate::kernel::{Attacher, Links, Mode, ProbePoint};
use crate::launch::Shim;
use crate::ledger::ProcessId;
use crate::native;
use crate::plan::DebuggerPlan;
use crate::prompts::{self, Refusal};
use crate::python::discover::Interpreter;
use crate::python::layout::Layout;
use crate::python::verify;
use crate::tally::{self, Segment, Segments};
use crate::target::ProcessMemory;
use crate::target::credentials::{self, Credentials};
use crate::target::identity::Container;
use crate::target::pods::Pods;
use crate::target::source::Root;
use crate::target::status;
use crate::target::supervise::Announcement;

/// A watched process.
pub(super) struct Held {
    pub(super) id: ProcessId,
    pub(super) command: Vec<String>,
    pub(super) links: Links,
    /// The allocators that are probed, or counted by the tally.
    pub(super) allocators: Vec<Arc<modules::Allocator>>,
    pub(super) interpreter: Interpreter,
    pub(super) layout: Layout,
    /// Where it counts its blocks itself.
    pub(super) tally: Option<Arc<Segment>>,
}

/// A Python that was found in a process.
pub(super) struct Look {
    interpreter: Interpreter,
    libraries: Libraries,
    is_musl: bool,
    loader_range: (u64, u64),
    library_range: (u64, u64),
    tcache_offset: u64,
    start_offset: u32,
}

/// The watcher of a run.
pub struct Hold {
    pub(super) attacher: Arc<Attacher>,
    pub(super) mode: Mode,
    /// Native functions are asked for.
    native: bool,
    pub(super) messages: UnboundedSender<Message>,
    launch: Option<(File, Vec<ProbePoint>)>,
    help: Option<PathBuf>,
    library: Option<Library>,
    pub(super) watched: HashMap<Pid, Held>,
    pub(super) modules: Modules,
    /// Where the launch help is told of the program's process, once.
    notice: Option<File>,
    /// Dropped as soon as the program's process is there.
    unforked: Option<Sender<Infallible>>,
    credentials: Option<Arc<Credentials>>,
    last_id: u32,
    /// The resident memory at which the debugger opens.
    limit: Option<DebuggerPlan>,
    /// Bytes between two that are sampled, in the mean, where a process counts its blocks itself.
    sample: Option<NonZeroU64>,
    pods: Pods,
    /// Nobody holds its processes.
    followed: bool,
    /// A process that was watched has been let go of, and lives on.
    outlived: bool,
    /// Forks that ended before the probes of blocks were on them.
    pub(super) unprobed: u64,
}

impl Hold {
    /// A watcher that attaches with `attacher` and tells the collector: what is counted, and whether native functions are asked for.
    pub fn new(
        attacher: Arc<Attacher>,
        (mode, native): (Mode, bool),
        messages: UnboundedSender<Message>,
        shim: Option<&Shim>,
        preload: bool,
        credentials: Option<Arc<Credentials>>,
        limit: Option<DebuggerPlan>,
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
            native,
            messages,
            launch,
            help,
            library,
            notice,
            unforked: None,
            credentials,
            watched: HashMap::new(),
            modules: Modules::default(),
            last_id: 0,
            limit,
            sample: None,
            pods: Pods::default(),
            followed: false,
            outlived: false,
            unprobed: 0,
        }
    }

    /// May a process that was watched still live?
    pub fn is_outlived(&self) -> bool {
        self.outlived || !self.watched.is_empty()
    }

    /// Has blocks sampled in processes that count them themselves.
    pub fn sampling(self, sample: Option<NonZeroU64>) -> Self {
        Self { sample, ..self }
    }

    /// Lets go of this end of a channel when the program's process has been forked: it has our descriptors of then.
    pub fn telling_of_the_fork(self, unforked: Sender<Infallible>) -> Self {
        Self { unforked: Some(unforked), ..self }
    }

    /// The debugger is to be opened in its processes, which nobody holds, from outside.
    #[must_use]
    pub fn with_debugger(mut self, limit: Option<DebuggerPlan>) -> Self {
        self.limit = limit;
        self
    }

    /// Why the debugger that is asked for cannot be opened in a process that nobody holds.
    pub(super) fn refuses_debugger(&self, pid: Pid, look: &Look) -> Option<Refusal> {
        self.limit.filter(|_| self.followed)?;
        let layout = self.live_layout(pid, &look.interpreter);
        prompts::check(pid, look.interpreter.runtime_address, &layout).err()
    }

    /// A watcher of processes that nobody holds: driven by what the kernel side tells of them ([`super::follow`]).
    pub fn of_followed(attacher: Arc<Attacher>, what: (Mode, bool), messages: UnboundedSender<Message>) -> Self {
        Self { followed: true, ..Self::new(attacher, what, messages, None, false, None, None) }
    }

    /// Of one that nobody holds and that has ended meanwhile there is nothing to say.
    fn note_of(&self, pid: Pid, text: &str) {
        if !self.followed || self.is_there(pid) {
            self.note(format!("process {pid}: {text}"));
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
    pub(super) fn attach(&self, pid: Pid, libraries: &Libraries, tally: Option<&Segment>) -> Links {
        let number = pid.as_raw().unsigned_abs();
        let mut links = self.attach_allocators(pid, &libraries.allocators, tally.is_some());
        if let Some(loader) = libraries.loader.as_ref().filter(|_| self.mode.counts_blocks()) {
            match self.attacher.attach_launch(number, &loader.file, &loader.points) {
                Ok(more) => links.extend(more),
                Err(error) => self.note_of(pid, &format!("allocators that it loads later are not measured: {error}")),
            }
        }
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
        }
        if let Some((file, points)) = &self.launch {
            match self.attacher.attach_launch(number, file, points) {
                Ok(more) => links.extend(more),
                Err(error) => self.note(format!("process {pid}: marks are not available: {error}")),
            }
        }
        links
    }

    /// Attaches to allocators. Those of a process that is `tallied` are the others than glibc's, which the tally stands before.
    fn attach_allocators(&self, pid: Pid, allocators: &[Arc<modules::Allocator>], tallied: bool) -> Links {
        let mut links = Links::default();
        if !self.mode.counts_blocks() {
            return links;
        }
        let ours = |library: &&Arc<modules::Allocator>| library.name == tally::FILE || (tallied && library.is_glibc());
        for library in allocators.iter().filter(|library| !ours(library)) {
            match self.attacher.attach_heap(pid.as_raw().unsigned_abs(), &library.file, &library.points) {
                Ok(more) => links.extend(more),
                Err(error) => self.note_of(pid, &format!("{} is not measured: {error}", library.name)),
            }
        }
        links
    }

    /// A process has mapped further libraries: those that are allocators are measured from now on.
    fn attach_later(&mut self, pid: Pid) {
        let (Ok(libraries), Some(held)) = (self.modules.libraries(pid), self.watched.get(&pid)) else { return };
        let known = |library: &Arc<modules::Allocator>| held.allocators.iter().any(|known| Arc::ptr_eq(known, library));
        let new: Vec<_> = libraries.allocators.into_iter().filter(|library| !known(library)).collect();
        let links = self.attach_allocators(pid, &new, held.tally.is_some());
        if let Some(held) = self.watched.get_mut(&pid) {
            held.links.extend(links);
            held.allocators.extend(new);
        }
    }

    /// Begins an image: tells the collector first, so that its births come before their records.
    fn begin(&mut self, pid: Pid, process: &abi::rm_process, held: Held, forked_from: Option<ProcessId>) {
        let parent = status::parent_pid(pid).unwrap_or(Pid::from_raw(0));
        // What the kernel side begins with: others may make pages of it resident at any moment, by reading them.
        let resident = u64::try_from(process.resident_peak).ok().filter(|bytes| *bytes != 0);
        self.announce(pid, parent, held, forked_from, resident);
        if let Err(error) = self.attacher.watch(pid.as_raw().unsigned_abs(), process) {
            self.note(format!("process {pid}: it is not measured: {error}"));
        }
    }

    /// Tells the collector of an image, and what is resident of it.
    pub(super) fn announce(
        &mut self,
        pid: Pid,
        parent: Pid,
        held: Held,
        forked_from: Option<ProcessId>,
        resident: Option<u64>,
    ) {
        let root = Root::of(pid).ok();
        let cgroup = status::cgroup(pid).ok();
        let credentials =
            if self.followed { credentials::of_process(pid).map(Arc::new) } else { self.credentials.clone() };
        // What runs already may have another file there by now, and a fork has its parent's.
        let begins = !self.followed && forked_from.is_none();
        let container = cgroup.as_deref().and_then(|path| Container::of(path, root.as_ref(), &mut self.pods));
        let birth = Birth {
            id: held.id,
            pid,
            parent,
            command: held.command.clone(),
            container,
            cgroup,
            // What was compiled since then may be of files as they were then.
            started: if self.followed { status::started(pid).ok() } else { None }.unwrap_or_else(SystemTime::now),
            interpreter: held.interpreter.clone(),
            layout: held.layout.clone(),
            forked_from,
            attacher: Arc::clone(&self.attacher),
            script: begins.then(|| Script::of(&held.command, root.as_ref(), credentials.as_deref())).flatten(),
            credentials,
            help: self.help.clone(),
            asked_from_outside: self.followed && self.limit.is_some(),
            tally: held.tally.clone(),
            root,
            rss_bytes: resident,
        };
        let id = birth.id;
        let _ = self.messages.send(Message::Born(Box::new(birth)));
        if self.followed && self.native {
            self.tell_code(pid, id); // it is not held at its end
        }
        self.watched.insert(pid, held);
    }

    fn tell_code(&self, pid: Pid, id: ProcessId) {
        if let Ok(code) = native::code_of(pid) {
            let _ = self.messages.send(Message::Code(id, code));
        }
    }

    /// Ends an image.
    fn end(&mut self, pid: Pid, exit: Option<std::process::ExitStatus>) {
        let Some(held) = self.watched.remove(&pid) else { return };
        if let Some(tally) = &held.tally {
            tally.end();
        }
        let last = self.attacher.forget(pid.as_raw().unsigned_abs());
        let has_gil = !held.layout.variant.is_free_threaded(); // else it was told of when it began
        if self.mode == Mode::Objects && has_gil && last.is_some_and(|last| last.arena_caller != 0) {
            self.note(format!(
                "process {pid}: its Python did not heed PYTHONMALLOC=malloc: objects of up to 512 bytes were counted by the page, \
                 as in heap mode\nhint: run it without -E and -I, and leave its environment as it is"
            ));
        }
        let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
        let death = Death {
            ended: SystemTime::now(),
            end: exit.map_or_else(End::default, |exit| {
                End::of(exit, last.is_some_and(|last| last.flags & abi::RM_VICTIM != 0))
            }),
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
                self.note_of(pid, &format!("{error}; the offsets known for its version are used"));
                interpreter.layout.clone()
            }
        }
    }

    /// What Python a process has, if it has one.
    ///
    /// # Errors
    /// A sentence and a hint: it has one, and it cannot be measured.
    pub(super) fn look(&mut self, pid: Pid) -> Result<Option<Look>, (String, String)> {
        let mapped = self.modules.of(pid).map_err(|error| {
            let hint = "reading another process takes CAP_SYS_PTRACE: run rmprof-bpf as root";
            (format!("its mappings cannot be read: {error}"), hint.to_owned())
        })?;
        let interpreter = mapped.interpreter().map_err(|refusal| (refusal.sentence, refusal.hint))?;
        Ok(interpreter.map(|interpreter| Look {
            interpreter,
            libraries: mapped.libraries,
            is_musl: mapped.is_musl,
            loader_range: mapped.loader_range,
            library_range: mapped.library_range,
            tcache_offset: mapped.tcache_offset,
            start_offset: mapped.start_offset,
        }))
    }

    /// Begins to measure an image. False: it is gone before that, and nobody would know what it was.
    pub(super) fn watch(&mut self, pid: Pid, look: Look, said: Option<Announcement>) -> bool {
        let command = command_of(pid);
        self.watch_as(pid, look, said, command)
    }

    /// The same of one whose command line is known.
    pub(super) fn watch_as(&mut self, pid: Pid, look: Look, said: Option<Announcement>, command: Vec<String>) -> bool {
        let Look { interpreter, libraries, .. } = look;
        if self.followed && command.is_empty() && !self.is_there(pid) {
            return false;
        }
        if self.mode == Mode::Objects && interpreter.layout.variant.is_free_threaded() {
            self.note(format!(
                "process {pid}: its Python is a free-threaded build, which takes objects from mimalloc alone: they were counted by the \
                 page, as in heap mode\nhint: for their bytes run the program with a build that has the GIL"
            ));
        }
        // Before the beginning is taken: what it reads may become resident by that.
        let layout = self.live_layout(pid, &interpreter);
        let mut process = self.new_process();
        if self.followed && self.limit.is_some() {
            // One that was named has been asked before; of its children it is said.
            if let Err((why, hint)) = prompts::check(pid, interpreter.runtime_address, &layout) {
                process.limit_bytes = 0;
                self.note_of(pid, &format!("{why}\nhint: {hint}"));
            }
        }
        recipe::describe(&mut process, &interpreter, &layout, look.is_musl);
        (process.loader_start, process.loader_end) = look.loader_range;
        (process.library_start, process.library_end) = look.library_range;
        process.tcache_offset = look.tcache_offset;
        process.start_offset = look.start_offset;
        let tally = said.filter(|_| libraries.only_glibc()).and_then(|said| self.tally(pid, said));
        if let Some(tally) = &tally {
            let segments = tally.siblings();
            (process.tally, process.tally_thread) = (segments.address(), segments.thread_offset());
            process.page_sample = self.sample.and_then(tally::pages_each).map_or(0, NonZeroU32::get);
        }
        let links = self.attach(pid, &libraries, tally.as_deref());
        // Late: probes are waited for before, and change pages of it.
        self.attacher.has_probes();
        seed_resident(&mut process, pid);
        if let Some(tally) = &tally {
            tally.begin(&process, self.mode == Mode::Objects, self.sample, None);
        }
        let (id, allocators) = (ProcessId(process.id), libraries.allocators);
        self.begin(pid, &process, Held { id, command, links, allocators, interpreter, layout, tally }, None);
        if self.followed {
            self.attach_later(pid); // what it mapped while it was looked at
        }
        true
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

    /// The processes that are measured now.
    pub(super) fn watched(&self) -> impl Iterator<Item = Pid> {
        self.watched.keys().copied()
    }

    fn new_process(&mut self) -> abi::rm_process {
        // SAFETY: rm_process is a plain C struct for which all zero is a valid value: nothing known yet.
        let mut process: abi::rm_process = unsafe { std::mem::zeroed() };
        process.id = self.next_id().0;
        process.flags = match self.mode {
            Mode::Heap | Mode::Objects => abi::RM_HEAP,
            Mode::Pages => abi::RM_PAGES,
        };
        if self.followed {
            process.flags |= abi::RM_FOLLOW;
        }
        if self.native {
            process.flags |= abi::RM_NATIVE;
        }
        if let Some(limit) = self.limit {
            (process.limit_bytes, process.limit_step) = (limit.bytes, limit.step.unwrap_or(0));
        }
        process
    }
}

/// The command line of a process; empty where it has none, or has ended. Of one that is about to end it may be cut.
pub(super) fn command_of(pid: Pid) -> Vec<String> {
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
