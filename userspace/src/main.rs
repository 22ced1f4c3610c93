//! Parse, run, exit status.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use rmprof_bpf::cli::{Cli, Command, RunArguments};
use rmprof_bpf::plan::{AttachPlan, RunPlan, SystemPlan};
use rmprof_bpf::report::OptionError;
use rmprof_bpf::session::RunError;
use rmprof_bpf::{doctor, session};

/// The status for a usage that cannot be, as clap's own.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Doctor(arguments)) => doctor::run(&arguments.pythons),
        Some(Command::Run(arguments)) => run(arguments),
        Some(Command::Attach(arguments)) => {
            ended(AttachPlan::new(arguments).map(|plan| session::attach::attach(&plan)))
        }
        Some(Command::System(arguments)) => {
            ended(SystemPlan::new(arguments).map(|plan| session::attach::system(&plan)))
        }
        None => run(cli.run),
    }
}

fn run(arguments: RunArguments) -> ExitCode {
    ended(RunPlan::new(arguments).map(|plan| session::run(&plan)))
}

/// The exit status of a session, or of what was typed for one.
fn ended(session: Result<Result<i32, RunError>, OptionError>) -> ExitCode {
    let result = match session {
        Ok(result) => result,
        Err(error) => return fail(&error.to_string(), error.hint(), USAGE),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(125)),
        Err(error) => fail(&error.to_string(), error.hint(), u8::try_from(error.exit_code()).unwrap_or(125)),
    }
}

fn fail(message: &str, hint: &str, code: u8) -> ExitCode {
    // Nobody to tell is no reason for another status.
    let _ = writeln!(std::io::stderr(), "error: {message}\nhint: {hint}");
    ExitCode::from(code)
}
