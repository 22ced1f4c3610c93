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

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// What is resident.
    Resident,
    /// How much more it is than at the least within the last second.
    Growth,
    /// What all processes that are measured have resident together.
    Total,
}

/// One limit, of each process by itself or of all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Of what.
    pub measure: Measure,
    /// Bytes above which something is done.
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

/// The limits as the kernel side compares them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// `rm_constants.alarm_bytes`.
    pub bytes: [u64; MOST],
    /// `rm_constants.alarms_of_growth`.
    pub of_growth: u32,
    /// `rm_constants.alarms_of_total`.
    pub of_total: u32,
}

impl Alarms {
    /// Those, numbered from 0.
    pub fn of(alarms: &[Alarm]) -> Self {
        let mut all = Self::default();
        for (number, (bytes, alarm)) in all.bytes.iter_mut().zip(alarms).enumerate() {
            *bytes = alarm.bytes;
            all.of_growth |= u32::from(alarm.measure == Measure::Growth) << number;
            all.of_total |= u32::from(alarm.measure == Measure::Total) << number;
        }
        all
    }
}

impl Alarm {
    /// Reads `MIB[:rss|:per-process|:growth/s]=ACTION`, as often as it was given.
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
            OptionError::new(
                crate::report::escape(&format!("--on-limit '{text}': {why}")).into_owned(),
                hint.to_owned(),
            )
        };
        let form = "write MIB=ACTION, such as 500=stop";
        let (limit, action) = text.split_once('=').ok_or_else(|| wrong("no action", form))?;
        let (mib, measure) = match limit.split_once(':') {
            None => (limit, Measure::Resident),
            Some((mib, "per-process")) => (mib, Measure::Resident),
            Some((mib, "rss")) => (mib, Measure::Total),
            Some((mib, "growth/s")) => (mib, Measure::Growth),
            Some((_, word)) => {
                return Err(wrong(
                    &format!("'{word}' is no kind of limit"),
                    "per-process is (what each process has resident, as without a word), rss (what all that are measured have together), and \
                     growth/s (by how much a process grows within a second)",
                ));
            }
        };
        let bytes = mebibytes(mib.trim()).map_err(|why| wrong(&why, form))?;
        let action = action.trim();
        let (word, rest) = action.split_once(' ').map_or((action, None), |(word, rest)| (word, Some(rest.trim())));
        let lacks = |what: &str, example: &str| wrong(&format!("{word} lacks {what}"), &format!("write MIB={example}"));
        let action = match (word, rest, of) {
            ("exit", _, Of::Watch) => {
                return Err(wrong("exit is an action of run", "signal TERM ends a process that runs already"));
            }
            ("report", None, _) => Action::Report,
            ("stop", None, _) => Action::Stop,
            ("report" | "stop", Some(rest), _) => {
                return Err(wrong(&format!("'{rest}' follows {word}, which is all by itself"), form));
            }
            ("exec", Some(command), _) => Action::Exec(command.to_owned()),
            ("exec", None, _) => return Err(lacks("the command", "exec CMD, for the shell")),
            ("signal", Some(name), _) => Action::Signal(signal(name).ok_or_else(|| {
                let hint = "write its name, such as USR1 or SIGTERM, or its number; real-time signals are not sent";
                wrong(&format!("there is no signal '{name}'"), hint)
            })?),
            ("signal", None, _) => return Err(lacks("the signal", "signal NAME, such as signal USR1")),
            ("exit", Some(code), Of::Run) => Action::Exit(
                code.parse()
                    .map_err(|_| wrong(&format!("'{code}' is no exit status"), "write a number from 0 to 255"))?,
            ),
            ("exit", None, Of::Run) => return Err(lacks("the exit status", "exit CODE, a number from 0 to 255")),
            _ => {
                let known = match of {
                    Of::Run => "report, stop, exec CMD, signal NAME and exit CODE are known",
                    Of::Watch => "report, stop, exec CMD and signal NAME are known",
                };
                return Err(wrong(&format!("the action '{word}' is not known"), known));
            }
        };
        Ok(Self { measure, bytes, action })
    }
}

/// By its name, with or without SIG, or its number.
fn signal(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
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
            ("2=report", Of::Run, 2 << 20, Action::Report),
            ("2=exec true", Of::Run, 2 << 20, Action::Exec("true".to_owned())),
            ("0.5:per-process=report", Of::Watch, 1 << 19, Action::Report),
            ("1:per-process=signal usr1", Of::Watch, 1 << 20, Action::Signal(Signal::SIGUSR1)),
            ("1=signal SIGTERM", Of::Run, 1 << 20, Action::Signal(Signal::SIGTERM)),
            ("1=exec a --b=c 'd e'", Of::Watch, 1 << 20, Action::Exec("a --b=c 'd e'".to_owned())),
            ("1=exit 7", Of::Run, 1 << 20, Action::Exit(7)),
            ("1=signal 12", Of::Run, 1 << 20, Action::Signal(Signal::SIGUSR2)),
            (" 1 = stop ", Of::Run, 1 << 20, Action::Stop),
        ] {
            assert_eq!(one(text, of).unwrap(), Alarm { measure: Measure::Resident, bytes, action }, "{text}");
        }
        let growth = one("3:growth/s=stop", Of::Watch).unwrap();
        assert_eq!(growth, Alarm { measure: Measure::Growth, bytes: 3 << 20, action: Action::Stop });
        let total = one("4:rss=stop", Of::Watch).unwrap();
        assert_eq!(total, Alarm { measure: Measure::Total, bytes: 4 << 20, action: Action::Stop });
        let resident = one("5=stop", Of::Watch).unwrap();
        let expected = Alarms { bytes: [5 << 20, 3 << 20, 4 << 20, 0], of_growth: 2, of_total: 4 };
        assert_eq!(Alarms::of(&[resident, growth, total]), expected);
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
            ("1=exec", Of::Watch),
            ("1=exec ", Of::Watch),
            ("1=exec", Of::Run),
            ("1=dance", Of::Watch),
        ] {
            assert!(one(text, of).is_err(), "{text}");
        }
        for (text, why) in [
            ("1=exit", "exit lacks the exit status"),
            ("1=signal", "signal lacks the signal"),
            ("1=signal 99", "there is no signal '99'"),
            ("1=exec ", "exec lacks the command"),
            ("1=stop now", "'now' follows stop"),
            ("1:pss=stop", "'pss' is no kind of limit"),
            ("-1=stop", "more than 0 is needed"),
            ("1e99=stop", "more than any machine has"),
            ("1=dance wildly", "the action 'dance' is not known"),
        ] {
            let said = one(text, Of::Run).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        let many = vec!["1=stop".to_owned(); MOST + 1];
        assert!(Alarm::parse_all(&many, Of::Run).is_err());
        assert_eq!(Alarm::parse_all(&many[1..], Of::Run).unwrap().len(), MOST);
    }
}
