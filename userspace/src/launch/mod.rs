//! What a program gets from us: one that we start the builtin `profile` and the line events of the functions it marks, one that runs already
//! the debugger, where that is asked for ([`files_from_outside`]).
//!
//! # How it works
//!
//! [`Shim::create`] makes a directory of these files, and [`Shim::pythonpath`] puts it first in the program's `PYTHONPATH`:
//!
//! | file | what it does |
//! |---|---|
//! | `sitecustomize.py` | imported by `site`; takes the directory off `sys.path`, runs the next one, then imports the `sitecustomize` that would have been found without us |
//! | `rmprof-marks.py` | `marks.py`: defines `builtins.profile` and a `memory_profiler` that has the mark; CPython 3.6 to 3.15 |
//! | `rmprof-debugger.py` | `debugger.py` and `at_limit.py`, with `--pdb-mmem` alone: opens pdb at the line that `stop.h` stops at |
//! | `rmprof-every.py` | `every.py`, where a column takes it: has every function of the user's own code give line events, marked or not |
//! | `_rmprof_launch.so` | `line_events.c`: keeps the set of code objects that give line events and calls the [`SITES`] |
//! | `_rmprof_tally.so` | the preloaded library (`tally/`); nothing in Python knows of it |
//! | `__pycache__` | an empty *file*: no Python run by root leaves compiled files here |
//!
//! `profile(f)` returns `f` itself and wraps nothing: it marks `f.__code__`. From then on the interpreter tells the
//! extension each line of that code that begins, and the extension calls `rmprof_site_line`, a function of one nop and one
//! return where the kernel side's probe sits. In other interpreters than CPython 3.6 to 3.15 `profile` is the identity and
//! no site is called; any failure of ours has the same outcome. `-I`, `-E` and `-S` keep the shim out: no `profile` then.
//!
//! Which code is the user's own is decided in `every.h`, by its file name and once: up to 3.11 by the frame evaluation function, from 3.12
//! on at `PY_START`, which is off for other code from its first call on. It is never less than what the report then chooses from
//! (`report/select.rs`); of a glob its ends are looked at (`every.rs`).
//!
//! The order in one process: `rmprof_site_hello(hexversion, pid)` once; for each code object that gives line events
//! `rmprof_site_mark(code, number_and_asked, co_code, co_exceptiontable)` before its first event, `number` from 0 and above bit 0, and again
//! where a mark of the program's own (bit 0) comes after it has run; `rmprof_site_line(code, line, what)`, the number in `what` above bit 0, which is
//! 0 when a line begins and 1 when the frame's current line ended without another beginning in this frame (return,
//! yield, await, exception; `line` is then the line that ended). A generator closed before it began gives a lone 1. After a
//! resumption CPython tells no line until the next one begins. Code of a function that gives line events is never freed;
//! other code (modules, class bodies) is let go when no frame of it runs, and has a new number when it comes back. A child of fork calls
//! no hello and no mark: it has its parent's marks, at the same addresses.
//!
//! # What a program can see of it
//!
//! - `PYTHONPATH` in its environment, for its children's sake; `sys.path` is as without us.
//! - `builtins.profile`; one finder more at `sys.meta_path[0]`, which answers for `memory_profiler` alone. `sys.modules` has
//!   nothing more; under `-S` the directory stays on `sys.path`. A real `memory_profiler` is imported when the program asks
//!   the stand-in for more than `profile`.
//! - `_rmprof_launch.so` in its memory map. An empty program starts 2 to 3.5 ms later and has 0.2 to 0.7 MiB more resident
//!   memory, most of it what compiling `marks.py` leaves in the allocators for the program to reuse.
//! - 3.12+: the bytecode of a marked function has been asked for (`co_code`), which CPython then keeps a copy of.
//! - 3.12+, after the first mark: a `sys.monitoring` tool `rmprof-bpf`, id 3 where it is free (four audit
//!   events `sys.monitoring.register_callback`).
//! - 3.6 to 3.11, after the first mark: a frame evaluation function (PEP 523). It costs unmarked calls 0 to 4 ns up to 3.10
//!   (a tail call, no C stack) and 12 ns in 3.11, where a Python call then uses C stack as it did up to 3.10: a program that
//!   raises the recursion limit past about 20,000 frames may need `ulimit -s`. A marked function that recurses uses some
//!   C stack more in all four.
//! - 3.6 to 3.11: where the program has a trace function of its own (`sys.settrace`: debugger, coverage), that one is left
//!   alone and marked functions give no line events as long as it is there.
//! - 3.6 to 3.11 with greenlets (gevent, eventlet): tracing belongs to the thread, greenlet itself sees to that. A marked
//!   function that another greenlet interrupted may give no line events, its end included, until it is entered again.
//! - With `--pdb-mmem`: a handler of the highest real-time signal that has none. 3.12 and later: a pending call that does nothing,
//!   made before the program begins. After the limit was passed: tracing, until the debugger has gone; standard modules that pdb
//!   imports; two audit events `sys.settrace` a stop (one more from 3.12 on).
//! - With a column that takes line events of every function, all that is said of marks from the start, and for all of the user's own
//!   functions. Up to 3.11 a frame in which the program itself sets and unsets a trace function gives none from there on.
//! - A traceback out of the user's own `sitecustomize` (`python -v`, `SystemExit`) has our frame in it.
//! - `-X importtime` has a line `sitecustomize` more. Audit events: one `import` of the extension, and up to 3.11 two
//!   `sys.settrace`, all before any Python code of the program can listen.
//!
//! # What a mark costs
//!
//! About 10 to 25 ns a line event without a probe; a call from a marked to an unmarked function 30 to 80 ns up to 3.11,
//! nothing later; other code nothing (3.12+) or as above.
//!
//! # What is left behind
//!
//! Nothing, even when we are killed: see `janitor.rs`.

mod directory;
mod every;
mod janitor;
mod sites;

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rmprof_probes::abi;

pub use directory::{Folder, refuse_owner_and_mode};
pub use sites::{SITES, Site, SitePlace, offset_of, site_places};

/// The compiled `line_events.c`.
pub(crate) const EXTENSION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/line_events.so"));
const EXTENSION_NAME: &CStr = c"_rmprof_launch.so";
/// What both uses of pdb begin with.
const DEBUGGER: &str = include_str!("debugger.py");

/// What the interpreter of a process that runs already is asked to run.
pub const SCRIPT: &CStr = c"begin.py";

const DEBUGGER_NAME: &CStr = c"rmprof-debugger.py";
const EVERY_NAME: &CStr = c"rmprof-every.py";

/// Every file of the directory, and one that only Python 2 run by root leaves.
const FILES: &[(&CStr, &[u8])] = &[
    (c"sitecustomize.py", include_bytes!("sitecustomize.py")),
    (c"rmprof-marks.py", include_bytes!("marks.py")),
    (EXTENSION_NAME, EXTENSION),
    (abi::RM_TALLY_FILE, rmprof_probes::TALLY_LIBRARY),
    (c"__pycache__", b""),
];
const NAMES: &[&CStr] = &[
    c"sitecustomize.py",
    c"rmprof-marks.py",
    DEBUGGER_NAME,
    EVERY_NAME,
    EXTENSION_NAME,
    abi::RM_TALLY_FILE,
    c"__pycache__",
    c"sitecustomize.pyc",
];

/// The shim directory of one run. Dropping it removes the directory.
#[derive(Debug)]
pub struct Shim {
    path: PathBuf,
    folder: Folder,
}

impl Shim {
    /// Makes the directory (owned by our effective user, mode 0755, files 0644) where code can be loaded from and nobody
    /// else can put his own in its place, and forks the janitor.
    ///
    /// To be called early: the janitor holds a copy of our memory, shared until written.
    ///
    /// # Errors
    ///
    /// When no candidate directory will do (the message says why for each), or the files cannot be written.
    pub fn create() -> Result<Self> {
        let (path, folder) = directory::create(NAMES)?;
        let shim = Shim { path, folder };
        shim.write_all(FILES)?;
        Ok(shim)
    }

    fn write_all(&self, files: &[(&CStr, &[u8])]) -> Result<()> {
        for (name, content) in files {
            self.folder.write(name, content).with_context(|| {
                format!("cannot write {}", self.path.join(OsStr::new(&*name.to_string_lossy())).display())
            })?;
        }
        Ok(())
    }

    /// Adds what opens the debugger when resident memory passes `limit` bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn add_debugger(&self, limit: u64) -> Result<()> {
        let text = format!("LIMIT = {limit}\n{DEBUGGER}\n\n{}", include_str!("at_limit.py"));
        self.write_all(&[(DEBUGGER_NAME, text.as_bytes())])
    }

    /// Has not only marked functions give line events but every one of the user's own code; or of the files that match `include`, or of
    /// `all`.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn add_every(&self, all: bool, include: &[String]) -> Result<()> {
        self.write_all(&[(EVERY_NAME, every::text(all, include).as_bytes())])
    }

    /// The directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where to write the number of the program's process (four bytes, native order) before it is let go: should we be killed, the
    /// directory stays until the program has ended too.
    pub fn notice(&self) -> Option<OwnedFd> {
        self.folder.notice()
    }

    /// The extension's file, which probes on the [`SITES`] are attached to.
    pub fn extension_path(&self) -> PathBuf {
        self.path.join("_rmprof_launch.so")
    }

    /// The preloaded library's file (`tally/`), which has no place in the environment: an image is given it at its exec.
    pub fn library_path(&self) -> PathBuf {
        self.path.join(crate::tally::FILE)
    }

    /// The program's `PYTHONPATH`: the shim, then what the user had. An empty one is like none, as for Python.
    pub fn pythonpath(&self, existing: Option<&OsStr>) -> OsString {
        let mut value = self.path.as_os_str().to_owned();
        if let Some(existing) = existing.filter(|v| !v.is_empty()) {
            value.push(":");
            value.push(existing);
        }
        value
    }
}

/// The line of the script on which its work begins. The interpreter names the script "<string>", as it does what -c gave: by this line it
/// is told from that.
pub const SCRIPT_BEGINS: u32 = 7680;

/// The files of a folder from which a process that runs already gets the debugger, `directory` for it: the name of the one that its
/// interpreter is asked to run is [`SCRIPT`].
pub fn files_from_outside(directory: &str) -> [(&'static CStr, String); 2] {
    let before = "\n".repeat(SCRIPT_BEGINS as usize - 1);
    let directory = every::literal(directory);
    let script = format!(
        "{before}import sys
try:
    with sys.modules[\"_io\"].FileIO({directory} + \"/debugger.py\") as file:
        code = compile(file.readall(), \"<rmprof-bpf debugger>\", \"exec\")
    exec(code, {{\"DIRECTORY\": {directory}, \"FRAME\": sys._getframe().f_back}})
except Exception:
    pass  # the folder has gone, and we with it
"
    );
    [(SCRIPT, script), (c"debugger.py", format!("{DEBUGGER}\n\n{}", include_str!("from_outside.py")))]
}

#[cfg(test)]
mod tests;
