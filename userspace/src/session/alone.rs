//! What is done with a process that nobody holds, which may be somebody else at any moment.

use std::time::SystemTime;

use super::collector::Message;
use super::hold::{Held, Hold};
use super::image::{Death, End};
use super::modules::Program;
use crate::kernel::Links;
use crate::kernel::event::Executable;
use crate::ledger::ProcessId;
use crate::target::{Pid, maps, status};

impl Hold {
    /// A fork that nobody holds is there, and counted, as `id`. False: nothing is known of its parent.
    pub(super) fn forked_alone(&mut self, parent: ProcessId, child: Pid, id: ProcessId) -> bool {
        let of_parent = self.watched.iter().find(|(_, held)| held.id == parent);
        let Some((parent_pid, held)) = of_parent.map(|(pid, held)| (*pid, held)) else { return false };
        // A fork has its parent's command line; its own may be another's by now.
        let (interpreter, layout, command) = (held.interpreter.clone(), held.layout.clone(), held.command.clone());
        let (mut links, mut allocators) = (Links::default(), Vec::new());
        if self.mode.counts_blocks() {
            let libraries = self.modules.libraries(child).unwrap_or_default();
            links = self.attach(child, &libraries, None);
            self.unprobed += u64::from(!self.is_there(child));
            allocators = libraries.allocators;
        }
        // It may have ended by now: what can be known without it is.
        let held = Held { id, command, links, allocators, interpreter, layout, tally: None };
        let resident = status::resident(child).ok().map(|resident| resident.total_bytes());
        self.announce(child, parent_pid, held, Some(parent), resident);
        true
    }

    /// An image that nobody holds is no more.
    pub(super) fn gone(&mut self, pid: Pid, end: End, resident: (u64, u64)) {
        let Some(held) = self.watched.remove(&pid) else { return };
        // It may have ended just before the kernel side was told to watch it: its number will be another process's.
        if self.is_still(pid, held.id) {
            self.let_alone(pid);
        }
        let (rss_bytes, peak_bytes) = resident;
        let death = Death { ended: SystemTime::now(), end, rss_bytes, peak_bytes, last_change: None };
        let _ = self.messages.send(Message::Died(held.id, death));
    }

    /// Nothing more is to be told of a process that is not measured.
    pub(super) fn let_alone(&self, pid: Pid) {
        self.attacher.forget(pid.as_raw().unsigned_abs());
    }

    /// Is it measured?
    pub(super) fn watches(&self, pid: Pid) -> bool {
        self.watched.contains_key(&pid)
    }

    /// Is it known to the kernel side, to be measured or to be looked at?
    pub(super) fn is_met(&self, pid: Pid) -> bool {
        self.attacher.watched(pid.as_raw().unsigned_abs()).is_some()
    }

    /// Does a process that has been running for a while run Python?
    pub(super) fn runs_python(&mut self, pid: Pid) -> bool {
        self.modules.runs_python(pid)
    }

    /// Has it a memory of its own? What has ended has none.
    pub(super) fn is_there(&self, pid: Pid) -> bool {
        maps::mappings(pid).is_ok_and(|mappings| !mappings.is_empty())
    }

    /// What a process executes.
    ///
    /// # Errors
    /// Where that cannot be seen: it may have ended.
    pub(super) fn program(&mut self, pid: Pid) -> std::io::Result<Program> {
        self.modules.program(pid)
    }

    /// Has the kernel side the same number for what it executes?
    pub(super) fn is_still(&self, pid: Pid, id: ProcessId) -> bool {
        self.attacher.still_watched(pid, id).is_some()
    }

    /// This program is no Python: nobody tells of its execs any more.
    pub(super) fn pass_over(&self, executable: &Executable) {
        // Where it cannot be noted, it is looked at again.
        let _ = self.attacher.pass_over(executable);
    }
}
