//! Processes that nobody holds: what the kernel side tells of their forks, execs and ends, and what is done about it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::hold::Hold;
use crate::kernel::event::{Change, Event};
use crate::target::Pid;
use crate::target::supervise::{Watcher, exit_code};

/// How long an image that was just executed is given to load its Python. What it loads after that is not found.
const LOADING: Duration = Duration::from_secs(2);

/// Drives a [`Hold`] by what is told.
pub struct Follower {
    hold: Hold,
    /// Executed, may be Pythons, and have none yet: until when they are looked at.
    loading: HashMap<Pid, Instant>,
    children: bool,
    /// Processes that executed something that may have been a Python, and ended before that could be seen.
    pub missed: u64,
}

impl Follower {
    /// `children`: what the processes make is measured too.
    pub fn new(hold: Hold, children: bool) -> Self {
        Self { hold, loading: HashMap::new(), children, missed: 0 }
    }

    /// Begins with a process that runs.
    ///
    /// # Errors
    /// A sentence and a hint.
    pub fn begin(&mut self, pid: Pid) -> Result<(), (String, String)> {
        match self.hold.look(pid)? {
            Some(look) => {
                self.hold.watch(pid, look, None);
                Ok(())
            }
            None => Err((
                "it is no Python program".into(),
                "`ps -ef` shows what runs; the number of the Python process is needed, not that of the shell that started it".into(),
            )),
        }
    }

    /// Takes what became of a process.
    pub fn hear(&mut self, event: &Event) {
        let Event::Followed { process, pid, change, resident } = event else { return };
        match change {
            Change::Forked(parent) if self.children => self.hold.forked_alone(*parent, *pid, *process),
            Change::Forked(_) | Change::Borrows => {}
            Change::Loaded => self.hold.mapped_more(*pid),
            Change::Executed => {
                self.hold.gone(*pid, None, *resident);
                if self.children {
                    self.loading.insert(*pid, Instant::now() + LOADING);
                }
            }
            Change::Exited(status) => {
                use std::os::unix::process::ExitStatusExt;
                self.missed += u64::from(self.loading.remove(pid).is_some());
                let status = std::process::ExitStatus::from_raw(*status);
                if let Some(signal) = status.signal().filter(|_| self.hold.watched().any(|watched| watched == *pid)) {
                    super::say(&format!("process {pid} was ended by signal {signal}"));
                }
                self.hold.gone(*pid, Some(exit_code(status)), *resident);
            }
        }
    }

    /// Looks again at what was executed. Is there still something that may become a Python?
    pub fn look_again(&mut self) -> bool {
        let now = Instant::now();
        for pid in self.loading.keys().copied().collect::<Vec<_>>() {
            let over = self.loading.get(&pid).is_some_and(|until| *until < now) || !self.hold.may_be_python(pid);
            match self.hold.look(pid) {
                Ok(Some(look)) => self.hold.watch(pid, look, None),
                Ok(None) if !over => continue,
                // It has ended meanwhile: its end, which is about to be heard, says that it was missed.
                _ if !is_there(pid) => continue,
                Ok(None) => {}
                Err((sentence, hint)) => {
                    super::say(&format!("process {pid} is not measured: {sentence}\nhint: {hint}"))
                }
            }
            self.loading.remove(&pid);
        }
        !self.loading.is_empty()
    }

    /// Is anything measured, or may it be yet?
    pub fn has_any(&self) -> bool {
        self.hold.watched().next().is_some() || !self.loading.is_empty()
    }

    /// Lets go of all that is left: it runs on.
    pub fn let_go(&mut self) {
        for pid in self.hold.watched().collect::<Vec<_>>() {
            self.hold.left(pid);
        }
    }
}

fn is_there(pid: Pid) -> bool {
    crate::target::maps::mappings(pid).is_ok_and(|mappings| !mappings.is_empty())
}
