//! Processes that nobody holds: what the kernel side tells of their forks, execs and ends, and what is done about it.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::hold::{Hold, command_of};
use super::image::End;
use super::modules::Program;
use crate::kernel::event::{Change, Command, Event, Executable};
use crate::ledger::ProcessId;
use crate::plan::Filter;
use crate::target::supervise::Watcher;
use crate::target::{Pid, identity};

/// How long an image that was just executed is given to load its Python. What it loads after that is not found.
const LOADING: Duration = Duration::from_secs(2);
/// Programs whose kind is remembered.
const MOST_PROGRAMS: usize = 4096;
/// Sentences about Pythons that are not supported which are not said again.
const MOST_SAID: usize = 64;

/// Whom it is about.
pub enum Scope {
    /// Processes that were named, and those they make or not.
    Named {
        /// What they make is measured too.
        children: bool,
    },
    /// All of the machine that pass.
    Machine(Filter),
}

/// Executed, may be a Python, and has none yet.
#[derive(Clone)]
struct Loading {
    until: Instant,
    /// The number that the kernel side gave what it executes: another exec gives another.
    id: ProcessId,
    /// What it executes.
    executable: Executable,
    /// With which words.
    command: Command,
}

/// What is not in the report, and is counted instead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Missing {
    /// Processes that executed something that may have been a Python, and ended before that could be seen.
    pub missed: u64,
    /// Processes with a Python that is not supported.
    pub refused: u64,
    /// Forks that ended before the probes of blocks were on them: they are in the report without these.
    pub unprobed: u64,
}

/// Drives a [`Hold`] by what is told.
pub struct Follower {
    hold: Hold,
    loading: HashMap<Pid, Loading>,
    /// Those of them that are measured by now. What they forked before is told under their first number.
    begun: HashMap<Pid, Loading>,
    scope: Scope,
    missing: Missing,
    /// By program: may it be a Python?
    kinds: HashMap<Executable, bool>,
    /// Processes that ended before it was seen what program they executed.
    unseen: HashMap<Executable, u64>,
    /// What was said of Pythons that are not supported.
    said: HashSet<String>,
}

impl Follower {
    /// With nothing to measure yet.
    pub fn new(hold: Hold, scope: Scope) -> Self {
        Self {
            hold,
            loading: HashMap::new(),
            begun: HashMap::new(),
            scope,
            missing: Missing::default(),
            kinds: HashMap::new(),
            unseen: HashMap::new(),
            said: HashSet::new(),
        }
    }

    /// What is not in the report so far. A process that ended unseen counts unless its program is known to be no Python by now.
    pub fn missing(&self) -> Missing {
        let unseen: u64 = self.unseen.iter().filter(|(program, _)| self.may_be(program)).map(|(_, count)| count).sum();
        Missing { missed: self.missing.missed.saturating_add(unseen), unprobed: self.hold.unprobed, ..self.missing }
    }

    fn may_be(&self, program: &Executable) -> bool {
        self.kinds.get(program).copied().unwrap_or(true)
    }

    /// Begins with a process that runs.
    ///
    /// # Errors
    /// A sentence and a hint.
    pub fn begin(&mut self, pid: Pid) -> Result<(), (String, String)> {
        let Some(look) = self.hold.look(pid)? else {
            return Err((
                "it is no Python program".into(),
                "`ps -ef` shows what runs; the number of the Python process is needed, not that of the shell that started it".into(),
            ));
        };
        if let Some(refusal) = self.hold.refuses_debugger(pid, &look) {
            return Err(refusal);
        }
        if self.hold.watch(pid, look, None) {
            return Ok(());
        }
        Err(("it has ended".into(), "`pgrep -a python` lists the Pythons that run".into()))
    }

    /// Begins with all that run.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    pub fn begin_with_all(&mut self) -> std::io::Result<()> {
        self.begin_with(identity::processes)
    }

    /// Begins with what these have started before we came, as far as it runs Python: the workers of a server.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    pub fn begin_with_children(&mut self, of: &[Pid]) -> std::io::Result<()> {
        self.begin_with(|| identity::descendants(of))
    }

    /// Again until nothing new is there: a fork of a process that was not watched yet is told by nobody.
    fn begin_with(&mut self, list: impl Fn() -> std::io::Result<Vec<Pid>>) -> std::io::Result<()> {
        const ROUNDS: u32 = 8;
        let mut seen = HashSet::new();
        for _ in 0..ROUNDS {
            let mut found = false;
            for pid in list()? {
                // What the kernel side has met, a fork or an exec of just now, is about to be heard of: begun here it would be there twice.
                let known = self.hold.is_met(pid) || !seen.insert(pid);
                if !known && self.hold.runs_python(pid) {
                    found |= self.begin_one_of(pid);
                }
            }
            if !found {
                break;
            }
        }
        Ok(())
    }

    fn begin_one_of(&mut self, pid: Pid) -> bool {
        if !self.admits(pid, None) {
            return false;
        }
        match self.hold.look(pid) {
            Ok(Some(look)) => self.hold.watch(pid, look, None),
            Ok(None) => false,
            Err(refusal) => {
                self.refuse(pid, refusal);
                false
            }
        }
    }

    fn admits(&self, pid: Pid, words: Option<&[String]>) -> bool {
        match &self.scope {
            Scope::Named { .. } => true,
            Scope::Machine(filter) => filter.admits(pid, words),
        }
    }

    /// Said once, where there may be many.
    fn refuse(&mut self, pid: Pid, (sentence, hint): (String, String)) {
        self.missing.refused += 1;
        let again = matches!(self.scope, Scope::Machine(_)) && self.said.contains(&sentence);
        if !again {
            super::say(&format!("process {pid} is not measured: {sentence}\nhint: {hint}"));
            if self.said.len() < MOST_SAID {
                self.said.insert(sentence);
            }
        }
    }

    /// Takes what became of a process.
    pub fn hear(&mut self, event: &Event) {
        let Event::Followed { process, pid, change, resident } = event else { return };
        let children = !matches!(self.scope, Scope::Named { children: false });
        match change {
            Change::Loaded => self.hold.mapped_more(*pid),
            Change::Forked(parent) if children => {
                if !self.hold.forked_alone(*parent, *pid, *process) {
                    self.missing.missed += 1;
                    self.hold.let_alone(*pid);
                }
            }
            Change::Young(parent) if children => self.forked_young(*parent, *pid, *process),
            Change::Forked(_) | Change::Young(_) => self.hold.let_alone(*pid),
            Change::Borrows => {}
            Change::Executed(executable, command) => {
                self.hold.gone(*pid, End::default(), *resident);
                self.begun.remove(pid);
                // Replaced before it could be looked at. `env` and its like, which are never seen, are not counted.
                let before = self.loading.remove(pid);
                if let Some(before) = before.filter(|before| self.kinds.contains_key(&before.executable)) {
                    self.ended_unseen(&before);
                }
                if children {
                    self.load(*pid, *process, *executable, command.clone());
                } else {
                    self.hold.let_alone(*pid);
                }
            }
            Change::Exited { status, victim } => {
                if let Some(loading) = self.loading.remove(pid) {
                    self.ended_unseen(&loading);
                }
                self.begun.remove(pid);
                let end = End::of(ExitStatus::from_raw(*status), *victim);
                // On a whole machine processes are ended all the time.
                let told = end.is_abnormal() || !matches!(self.scope, Scope::Machine(_));
                if let Some(words) = end.words().filter(|_| told && self.hold.watches(*pid)) {
                    super::say(&format!("process {pid} {words}"));
                }
                self.hold.gone(*pid, end, *resident);
            }
        }
    }

    /// A fork of what has not been looked at yet is looked at too; of what has been, and is no Python, it is none either.
    fn forked_young(&mut self, parent: ProcessId, child: Pid, id: ProcessId) {
        let mut images = self.loading.values().chain(self.begun.values());
        let program = images.find(|loading| loading.id == parent).cloned();
        match (program, &self.scope) {
            (Some(Loading { executable, command, .. }), _) => self.load(child, id, executable, command),
            (None, Scope::Machine(_)) => self.hold.let_alone(child),
            // What it executes may be one.
            (None, Scope::Named { .. }) => {}
        }
    }

    fn load(&mut self, pid: Pid, id: ProcessId, executable: Executable, command: Command) {
        self.loading.insert(pid, Loading { until: Instant::now() + LOADING, id, executable, command });
    }

    fn ended_unseen(&mut self, loading: &Loading) {
        let program = loading.executable;
        if matches!(&self.scope, Scope::Machine(filter) if !filter.may_admit(&loading.command)) {
            return;
        }
        if !self.kinds.contains_key(&program) && self.unseen.len() < MOST_PROGRAMS {
            // It will be known when the next one executes it, or never.
            *self.unseen.entry(program).or_default() += 1;
        } else {
            self.missing.missed += u64::from(self.may_be(&program));
        }
    }

    /// Looks again at what was executed. Is there still something that may become a Python?
    pub fn look_again(&mut self) -> bool {
        for pid in self.loading.keys().copied().collect::<Vec<_>>() {
            let Some(loading) = self.loading.get(&pid) else { continue };
            let (over, id, executable) = (loading.until < Instant::now(), loading.id, loading.executable);
            let settled = match self.hold.program(pid) {
                // It has ended meanwhile: its end, which is about to be heard, says that it was missed.
                Err(_) if !over => false,
                Err(_) => {
                    if let Some(loading) = self.loading.remove(&pid) {
                        self.ended_unseen(&loading);
                    }
                    true
                }
                Ok(program) => {
                    if self.hold.is_still(pid, id) {
                        self.classify(&program, executable);
                    }
                    self.look_at(pid, over || !program.may_be_python)
                }
            };
            let loading = if settled { self.loading.remove(&pid) } else { None };
            if let Some(loading) = loading.filter(|_| self.hold.watches(pid)) {
                self.begun.insert(pid, loading);
            }
        }
        !self.loading.is_empty()
    }

    /// Remembers what kind of program a file is, and tells the kernel side of one that is no Python where it tells of all.
    fn classify(&mut self, program: &Program, executable: Executable) {
        if self.kinds.len() >= MOST_PROGRAMS {
            self.kinds.clear();
        }
        if self.kinds.insert(executable, program.may_be_python).is_none() && program.may_be_python {
            self.missing.missed += self.unseen.remove(&executable).unwrap_or(0);
        }
        if !program.may_be_python {
            self.unseen.remove(&executable);
            if matches!(self.scope, Scope::Machine(_)) {
                self.hold.pass_over(&executable);
            }
        }
    }

    /// Is it known now what it is? `over`: it becomes nothing else any more.
    fn look_at(&mut self, pid: Pid, over: bool) -> bool {
        let command = self.loading.get(&pid).map(|loading| &loading.command).filter(|command| command.whole);
        let command = command.map(|command| command.words.clone());
        if !self.admits(pid, command.as_deref()) {
            // Of one that has ended meanwhile nothing could be read: its end, which is about to be heard, says that it was missed.
            let is_there = self.hold.is_there(pid);
            if is_there {
                self.hold.let_alone(pid);
            }
            return is_there;
        }
        match self.hold.look(pid) {
            Ok(Some(look)) => {
                let command = command.unwrap_or_else(|| command_of(pid));
                self.hold.watch_as(pid, look, None, command)
            }
            Ok(None) if !over => false,
            // It has ended meanwhile: as above.
            _ if !self.hold.is_there(pid) => false,
            Ok(None) => {
                if matches!(self.scope, Scope::Machine(_)) {
                    self.hold.let_alone(pid);
                }
                true
            }
            Err(refusal) => {
                self.refuse(pid, refusal);
                self.hold.let_alone(pid);
                true
            }
        }
    }

    /// Is anything measured, or may it be yet?
    pub fn has_any(&self) -> bool {
        matches!(self.scope, Scope::Machine(_)) || self.hold.watched().next().is_some() || !self.loading.is_empty()
    }

    /// How many are measured?
    pub fn count(&self) -> usize {
        self.hold.watched().count()
    }

    /// Lets go of all that is left: it runs on.
    pub fn let_go(&mut self) {
        for pid in self.hold.watched().collect::<Vec<_>>() {
            self.hold.left(pid);
        }
    }
}
