//! What is done when the resident memory of a process passes a limit (`--on-limit`).

use nix::sys::signal::{Signal, kill};

use super::collector::Collector;
use super::commands::Wanted;
use super::image::Image;
use super::say;
use crate::alarm::{Action, Alarm, Measure};
use crate::report::columns::mib;

/// What is left for the session to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Todo {
    /// Write a report now.
    pub report: bool,
    /// Run these, after the report.
    pub commands: Vec<Wanted>,
    /// All that was started is to be killed, and the run to end with this status.
    pub exit: Option<u8>,
}

impl Todo {
    /// Is one to be written now? A command is told of a report in a file; on standard output nobody asked for one.
    pub fn wants_report(&self, to_file: bool) -> bool {
        self.report || !self.commands.is_empty() && to_file
    }
}

/// Acts on what was passed since the last time.
pub(super) fn act(alarms: &[Alarm], collector: &mut Collector) -> Todo {
    let mut todo = Todo::default();
    for passed in std::mem::take(&mut collector.limits.passed) {
        let (Some(alarm), Some(image)) = (alarms.get(passed.alarm), collector.images.get(&passed.process)) else {
            continue;
        };
        let pid = image.birth.pid;
        let mib = |bytes: u64| mib(bytes.into(), 3);
        let (measured, limit) = (mib(passed.measured), mib(alarm.bytes));
        let about = match alarm.measure {
            Measure::Resident => format!("process {pid}: {measured} resident, above {limit} (--on-limit)"),
            Measure::Growth => {
                format!("process {pid}: {measured} more resident within a second, above {limit} (--on-limit)")
            }
            Measure::Total => {
                let who = match collector.images.values().filter(|image| image.death.is_none()).count() {
                    0 | 1 => "one process".to_owned(),
                    count => format!("{count} processes together"),
                };
                let own = mib(passed.bytes);
                format!("{who}: {measured} resident, above {limit} (--on-limit), passed by process {pid} with {own}")
            }
        };
        match &alarm.action {
            Action::Report => {
                say(&format!("{about}: the report is written"));
                todo.report = true;
            }
            Action::Exec(command) => {
                say(&format!("{about}: the command is run"));
                let measured = (alarm.measure != Measure::Resident).then_some((alarm.measure, passed.measured));
                let (alarm, text) = (passed.alarm, command.clone());
                todo.commands.push(Wanted { alarm, text, pid, bytes: passed.bytes, measured });
            }
            Action::Stop => {
                if send(image, Signal::SIGSTOP, &about) {
                    say(&format!(
                        "{about}: it is stopped\nhint: `kill -CONT {pid}` lets it go on, `kill -KILL {pid}` ends it"
                    ));
                }
            }
            Action::Signal(signal) => {
                if send(image, *signal, &about) {
                    say(&format!("{about}: it was sent {signal}"));
                }
            }
            Action::Exit(code) => {
                say(&format!("{about}: the run ends with status {code}"));
                todo.exit = todo.exit.or(Some(*code));
            }
        }
    }
    todo
}

/// False: the process has ended meanwhile, or cannot be sent it, which is said.
fn send(image: &Image, signal: Signal, about: &str) -> bool {
    let pid = image.birth.pid;
    if image.death.is_some() || image.birth.attacher.still_watched(pid, image.birth.id).is_none() {
        return false;
    }
    match kill(pid, signal) {
        Ok(()) => true,
        Err(nix::errno::Errno::ESRCH) => false,
        Err(error) => {
            say(&format!(
                "{about}: {signal} could not be sent: {error}\nhint: to processes of other users that takes CAP_KILL: run rmprof-bpf as root"
            ));
            false
        }
    }
}
