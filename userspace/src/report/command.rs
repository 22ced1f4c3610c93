//! The command line of a Python: which of its words says what it executes. Read as Python/getopt.c reads it.

/// What a Python was told to execute, with the number of the word that says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program<'c> {
    /// The value of `-c`.
    Text(usize, &'c str),
    /// A module: `-m`.
    Module(usize),
    /// The name of a file, which may be a folder's or an archive's.
    Script(usize, &'c str),
    /// A lone `-`: standard input.
    Input(usize),
}

impl Program<'_> {
    /// The number of its word.
    pub fn index(&self) -> usize {
        match *self {
            Self::Text(index, _) | Self::Module(index) | Self::Script(index, _) | Self::Input(index) => index,
        }
    }
}

/// What a command executes; `None`: nothing is given, which is standard input too.
pub fn program_of(command: &[String]) -> Option<Program<'_>> {
    let named = |index: usize| {
        let word = command.get(index)?.as_str();
        Some(if word == "-" { Program::Input(index) } else { Program::Script(index, word) })
    };
    let mut index = 1;
    while let Some(options) = command.get(index)?.strip_prefix('-').filter(|options| !options.is_empty()) {
        if let Some(long) = options.strip_prefix('-') {
            match long {
                "" => return named(index + 1),
                "check-hash-based-pycs" => index += 2,
                _ => index += 1,
            }
            continue;
        }
        // The first that takes a value ends the word: the value is the rest of it, or the next word.
        let Some(at) = options.find(['c', 'm', 'W', 'X']) else {
            index += 1;
            continue;
        };
        let (place, value) = match &options[at + 1..] {
            "" => (index + 1, command.get(index + 1)?.as_str()),
            rest => (index, rest),
        };
        match options.as_bytes()[at] {
            b'c' => return Some(Program::Text(place, value)),
            b'm' => return Some(Program::Module(place)),
            _ => index = place + 1,
        }
    }
    named(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<T>(text: &str, check: impl Fn(Option<Program<'_>>) -> T) -> T {
        let words = text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        check(program_of(&words))
    }

    #[test]
    fn a_command_text_is_told_from_a_script() {
        for text in ["p -c x", "p -cx", "p -Ic x", "p -X dev -c x", "p -Xdev -W ignore -c x y", "p -uWignore -bc x"] {
            of(text, |given| assert!(matches!(given, Some(Program::Text(_, "x"))), "{text}"));
        }
        of("p --check-hash-based-pycs always -c x", |given| assert_eq!(given, Some(Program::Text(4, "x"))));
        for text in ["p s -c", "p -X c s", "p -Wc s", "p -- s x", "p -I -u s -", "p --version s"] {
            of(text, |given| assert!(matches!(given, Some(Program::Script(_, "s"))), "{text}"));
        }
        of("p -- -c x", |given| assert_eq!(given, Some(Program::Script(2, "-c"))));
        for text in ["p -m module -c", "p -mc"] {
            of(text, |given| assert!(matches!(given, Some(Program::Module(_))), "{text}"));
        }
        for text in ["p - -c x", "p -- -"] {
            of(text, |given| assert!(matches!(given, Some(Program::Input(_))), "{text}"));
        }
        for text in ["p", "p -c", "p -W", "p --"] {
            of(text, |given| assert_eq!(given, None, "{text}"));
        }
    }
}
