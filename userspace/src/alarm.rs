//! Limits of resident memory and what is to be done where a process passes one (`--on-limit`).

use std::str::FromStr;

use nix::sys::signal::Signal;
use rmprof_probes::abi;

use crate::report::OptionError;
use crate::report::checks::mebibytes;

/// How many there may be.
pub const MOST: usize = abi::RM_ALARMS as usize;

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the report as it stands.
    Report,
    /// Stop the process until somebody continues it.
    Stop,
    /// Have the shell run this, with the rights of who called us.
    Exec(String),
    /// Send it a signal.
    Signal(Signal),
    /// Kill the program's processes and end with this status.
    Exit(u8),
}

/// One limit, of each process by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Resident bytes above which something is done.
    pub bytes: u64,
    /// What.
    pub action: Action,
}

/// The commands differ in what they can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// `run`.
    Run,
    /// `attach` and `system`.
    Watch,
}

impl Alarm {
    /// Reads `MIB[:rss|:per-process]=ACTION`, as often as it was given.
    ///
    /// # Errors
    /// Names the text that cannot be used.
    pub fn parse_all(texts: &[String], of: Of) -> Result<Vec<Self>, OptionError> {
        if texts.len() > MOST {
            return Err(OptionError::new(
                format!("{} limits with --on-limit", texts.len()),
                format!("{MOST} may be given"),
            ));
        }
        texts.iter().map(|text| Self::parse(text, of)).collect()
    }

    fn parse(text: &str, of: Of) -> Result<Self, OptionError> {
        let wrong = |why: &str, hint: &str| {
            OptionError::new(format!("--on-limit '{}': {why}", crate::report::escape(text)), hint.to_owned())
        };
        let form = "write MIB=ACTION, such as 500=stop";
        let (limit, action) = text.split_once('=').ok_or_else(|| wrong("no action", form))?;
        let mib = match limit.split_once(':') {
            None => limit,
            Some((mib, "rss" | "per-process")) => mib,
            Some(_) => {
                return Err(wrong(
                    "what follows the colon is not known",
                    "rss and per-process are: what each process has resident",
                ));
            }
        };
        let bytes = mebibytes(mib).map_err(|why| wrong(&why, form))?;
        let (word, rest) = action.split_once(' ').map_or((action, None), |(word, rest)| (word, Some(rest.trim())));
        let action = match (word, rest, of) {
            ("report", None, Of::Watch) => Action::Report,
            ("report", None, Of::Run) => {
                return Err(wrong("run writes its report at the end", "report is an action of attach and system"));
            }
            ("stop", None, _) => Action::Stop,
            ("exec", Some(command), Of::Watch) if !command.is_empty() => Action::Exec(command.to_owned()),
            ("exec", _, Of::Run) => {
                return Err(wrong("run does not begin other commands", "exec is an action of attach and system"));
            }
            ("signal", Some(name), _) => Action::Signal(
                signal(name).ok_or_else(|| wrong("no such signal", "write its name, such as USR1 or SIGTERM"))?,
            ),
            ("exit", Some(code), Of::Run) => {
                Action::Exit(code.parse().map_err(|_| wrong("no exit status", "write a number from 0 to 255"))?)
            }
            ("exit", _, Of::Watch) => {
                return Err(wrong("exit is an action of run", "signal TERM ends a process that runs already"));
            }
            _ => {
                let known = match of {
                    Of::Run => "stop, signal NAME and exit CODE are known",
                    Of::Watch => "report, stop, exec CMD and signal NAME are known",
                };
                return Err(wrong("the action is not known", known));
            }
        };
        Ok(Self { bytes, action })
    }
}

fn signal(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    let whole = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    Signal::from_str(&whole).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(text: &str, of: Of) -> Result<Alarm, String> {
        Alarm::parse(text, of).map_err(|error| error.to_string())
    }

    #[test]
    fn each_action_is_read() {
        for (text, of, bytes, action) in [
            ("10=stop", Of::Run, 10 << 20, Action::Stop),
            ("0.5:rss=report", Of::Watch, 1 << 19, Action::Report),
            ("1:per-process=signal usr1", Of::Watch, 1 << 20, Action::Signal(Signal::SIGUSR1)),
            ("1=signal SIGTERM", Of::Run, 1 << 20, Action::Signal(Signal::SIGTERM)),
            ("1=exec a --b=c 'd e'", Of::Watch, 1 << 20, Action::Exec("a --b=c 'd e'".to_owned())),
            ("1=exit 7", Of::Run, 1 << 20, Action::Exit(7)),
        ] {
            assert_eq!(one(text, of).unwrap(), Alarm { bytes, action }, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, of) in [
            ("10", Of::Run),
            ("=stop", Of::Run),
            ("0=stop", Of::Run),
            ("1:growth=stop", Of::Run),
            ("1=stop now", Of::Run),
            ("1=signal", Of::Run),
            ("1=signal NONE", Of::Run),
            ("1=exit 256", Of::Run),
            ("1=exit 3", Of::Watch),
            ("1=report", Of::Run),
            ("1=exec", Of::Watch),
            ("1=exec ", Of::Watch),
            ("1=exec true", Of::Run),
            ("1=dance", Of::Watch),
        ] {
            assert!(one(text, of).is_err(), "{text}");
        }
        let many = vec!["1=stop".to_owned(); MOST + 1];
        assert!(Alarm::parse_all(&many, Of::Run).is_err());
        assert_eq!(Alarm::parse_all(&many[1..], Of::Run).unwrap().len(), MOST);
    }
}
