//! The person's commands that are run when a limit is passed (`--on-limit MIB=exec CMD`).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::say;
use crate::alarm::{MOST, Measure};
use crate::target::credentials::{self, Credentials};
use crate::target::spawn;

/// A command that is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// By which alarm: each has one command running at most, so that a program that passes its limit over and over does not
    /// fill the machine with them.
    pub alarm: usize,
    /// For the shell.
    pub text: String,
    /// Which process passed the limit.
    pub pid: nix::unistd::Pid,
    /// Bytes it had resident then.
    pub bytes: u64,
    /// Bytes that passed the limit, where it is of something else.
    pub measured: Option<(Measure, u64)>,
}

/// Those that were begun. Nobody waits for them at our end.
#[derive(Default)]
pub(super) struct Commands {
    running: [Option<Running>; MOST],
}

/// One that may still run.
struct Running {
    child: Child,
    /// As it was given to the shell.
    text: String,
}

impl Commands {
    /// Begins one, with the rights of `credentials` (`None`: ours), told of the report that was written for it. What cannot be is said.
    pub fn begin(&mut self, wanted: &Wanted, report: Option<&Path>, credentials: Option<&Credentials>) {
        self.look_after();
        let Some(place) = self.running.get_mut(wanted.alarm) else { return };
        let about = format!("process {}: --on-limit exec", wanted.pid);
        if let Some(Running { child, text }) = place {
            let pid = child.id();
            say(&format!("{about}: '{text}' still runs from the last time (process {pid}), and is not begun again"));
            return;
        }
        match start(wanted, report, credentials) {
            Ok(child) => *place = Some(Running { child, text: wanted.text.clone() }),
            Err(error) => say(&format!(
                "{about}: /bin/sh could not be started: {error}\nhint: it needs a shell there, and room for one more process \
                 (ulimit -u)"
            )),
        }
    }

    /// Says which have failed.
    pub fn look_after(&mut self) {
        for place in &mut self.running {
            let Some(Running { child, text }) = place else { continue };
            match child.try_wait() {
                Ok(None) => continue,
                Ok(Some(status)) if !status.success() => say(&format!(
                    "--on-limit exec: '{text}' has failed ({status})\nhint: what it said is above; it is run by /bin/sh in this \
                     directory, as the user who called sudo"
                )),
                _ => {}
            }
            *place = None;
        }
    }

    /// The end: says which are left.
    pub fn leave(mut self) {
        self.look_after();
        for Running { child, text } in self.running.iter().flatten() {
            say(&format!("--on-limit exec: '{text}' still runs (process {}), and is left to itself", child.id()));
        }
    }
}

fn start(wanted: &Wanted, report: Option<&Path>, credentials: Option<&Credentials>) -> io::Result<Child> {
    let mut environment = credentials::environment(credentials);
    environment.retain(|(name, _)| name != "RMPROF_REPORT" && name != "RMPROF_GROWTH" && name != "RMPROF_TOTAL");
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(&wanted.text).env_clear().envs(environment);
    command.env("RMPROF_PID", wanted.pid.to_string()).env("RMPROF_RESIDENT", wanted.bytes.to_string());
    if let Some((measure, bytes)) = wanted.measured {
        command.env(if measure == Measure::Total { "RMPROF_TOTAL" } else { "RMPROF_GROWTH" }, bytes.to_string());
    }
    if let Some(report) = report {
        command.env("RMPROF_REPORT", std::path::absolute(report)?);
    }
    // Our standard output is the report's.
    command.stdin(Stdio::null()).stdout(io::stderr().as_fd().try_clone_to_owned()?);
    if let Some(credentials) = credentials {
        spawn::with_rights(&mut command, credentials);
    }
    command.spawn()
}
