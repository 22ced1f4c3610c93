//! What the supervisor tells of the processes it holds.

use std::io::Write;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Held, Hold, seed_resident};
use crate::kernel::Mode;
use crate::ledger::ProcessId;
use crate::session::MALLOC_FOR_OBJECTS;
use crate::tally;
use crate::target::preload;
use crate::target::supervise::{AfterExec, Announcement, Watcher};

impl Watcher for Hold {
    fn starting(&mut self, pid: Pid) {
        drop(self.unforked.take());
        if let Some(mut notice) = self.notice.take() {
            // Without it the directory merely goes with us.
            let _ = notice.write_all(&pid.as_raw().to_ne_bytes());
        }
    }

    fn forked(&mut self, parent: Pid, child: Pid) {
        let Some(held) = self.watched.get(&parent) else { return };
        let (interpreter, layout, parent_id) = (held.interpreter.clone(), held.layout.clone(), held.id);
        let command = held.command.clone();
        let Some(mut process) = self.attacher.watched(parent.as_raw().unsigned_abs()) else { return };
        let tally = self.tally_of_fork(child, held.tally.as_deref());
        let from = process.id;
        process.id = self.next_id().0;
        (process.memory, process.in_total) = (0, 0);
        // It has its parent's terminal, where the debugger may be at work.
        process.limit_bytes = 0;
        // The library tells where it is, at its first event.
        (process.tally, process.own_bytes) = (0, 0);
        if tally.is_none() {
            process.page_sample = 0;
        }
        (process.order_major, process.order_minor) = (0, 0);
        seed_resident(&mut process, child);
        if let Err(error) = self.attacher.inherit_arenas(from, process.id) {
            self.note(format!("process {child}: arena memory of its parent is not known: {error}"));
        }
        let libraries = self.modules.libraries(child).unwrap_or_default();
        let links = self.attach(child, &libraries, tally.as_deref());
        if let Some(tally) = &tally {
            let of_parent = self.watched.get(&parent).and_then(|parent| parent.tally.as_deref());
            tally.begin(&process, self.mode == Mode::Objects, self.sample, of_parent);
        }
        let (id, allocators) = (ProcessId(process.id), libraries.allocators);
        let held = Held { id, command, links, allocators, interpreter, layout, tally };
        self.begin(child, &process, held, Some(parent_id));
    }

    fn executed(&mut self, pid: Pid) -> AfterExec {
        self.end(pid, None);
        if !self.modules.program(pid).is_ok_and(|program| program.may_be_python) {
            self.wait_for_probes(pid);
            return AfterExec::Continue;
        }
        if self.mode == Mode::Objects && self.modules.executes_free_threaded(pid) {
            preload::empty_variable(pid, MALLOC_FOR_OBJECTS); // it would refuse to start
        }
        match &self.library {
            Some(library) if preload::give(pid, &library.path) => AfterExec::HoldWhenAnnounced(tally::ANNOUNCER),
            _ => AfterExec::HoldWhenLoaded,
        }
    }

    fn loaded(&mut self, pid: Pid, said: Option<Announcement>) {
        match self.look(pid) {
            Ok(Some(look)) => drop(self.watch(pid, look, said)),
            Ok(None) => {}
            Err((sentence, hint)) => self.note(format!("process {pid} is not measured: {sentence}\nhint: {hint}")),
        }
        self.wait_for_probes(pid);
    }

    fn mapped_more(&mut self, pid: Pid) {
        self.attach_later(pid);
    }

    fn wants_endings(&self, pid: Pid) -> bool {
        self.watched.contains_key(&pid)
    }

    fn ending(&mut self, pid: Pid) {
        let Some(id) = self.watched.get(&pid).map(|held| held.id) else { return };
        let now = self.attacher.watched(pid.as_raw().unsigned_abs());
        if self.native || now.is_some_and(|now| now.native_threads != 0) {
            self.tell_code(pid, id);
        }
    }

    fn exited(&mut self, pid: Pid, status: std::process::ExitStatus) {
        self.end(pid, Some(status));
    }

    fn spared(&mut self, pid: Pid, error: Errno) {
        let hint = "processes of other users take CAP_KILL: run rmprof-bpf as root";
        self.note(format!("process {pid} could not be killed: {}\nhint: {hint}", error.desc()));
    }

    fn left(&mut self, pid: Pid) {
        self.outlived |= self.watched.contains_key(&pid);
        self.end(pid, None);
    }
}

impl Hold {
    /// A program is executed, and its libraries are mapped, while the probes are still being loaded: before anything of it runs they are
    /// there. Where they cannot be had, it never begins.
    fn wait_for_probes(&self, pid: Pid) {
        if !self.attacher.has_probes() {
            // Gone already is as good.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}
