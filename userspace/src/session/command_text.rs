//! A program that was given on the command line (`-c`): its text, and which code objects are of it.

use std::collections::HashSet;
use std::sync::Arc;

use super::image::Image;
use crate::ledger::StackStatus;
use crate::python::code::CodeObject;

/// The file name of code that is compiled from a string: with `-c`, by `exec`, and by `site` from `.pth` files.
pub(super) const STRING: &str = "<string>";

/// See the module.
#[derive(Debug)]
pub(super) struct CommandText {
    lines: Arc<Vec<String>>,
    /// Functions that nothing called: the program itself is one of them.
    outermost: HashSet<u32>,
}

impl CommandText {
    /// The text of an image's program; `None` where that is a file or a module.
    pub(super) fn of(image: &Image) -> Option<Self> {
        let Given::Text(text) = given(&image.birth.command) else { return None };
        let lines = Arc::new(text.lines().map(str::to_owned).collect());
        let complete = image.stacks.values().filter(|stack| stack.status == StackStatus::Complete);
        let outermost = complete.filter_map(|stack| image.function(stack.frames.last()?.code)).collect();
        Some(Self { lines, outermost })
    }

    /// Is `code`, the code object of `function`, of this program? What the program executes from a string of its own has the same
    /// file name, and may look alike but for its caller.
    pub(super) fn has(&self, function: u32, code: &CodeObject) -> bool {
        code.filename == STRING
            && code.can_be_of(&self.lines)
            && (code.name != "<module>" || self.outermost.contains(&function))
    }

    /// Its lines.
    pub(super) fn lines(&self) -> Arc<Vec<String>> {
        Arc::clone(&self.lines)
    }
}

/// What a Python was told to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given<'c> {
    /// The value of `-c`.
    Text(&'c str),
    /// The name of a file, which may be a folder's or an archive's.
    Script(&'c str),
    /// A module, or standard input.
    Other,
}

/// The words of a Python's command, read as Python/getopt.c reads them.
pub(super) fn given(command: &[String]) -> Given<'_> {
    let mut words = command.iter().skip(1).map(String::as_str);
    while let Some(word) = words.next() {
        // A lone `-` is no option: standard input.
        let Some(options) = word.strip_prefix('-').filter(|word| !word.is_empty()) else {
            return if word == "-" { Given::Other } else { Given::Script(word) };
        };
        if let Some(long) = options.strip_prefix('-') {
            match long {
                "" => return words.next().filter(|word| *word != "-").map_or(Given::Other, Given::Script),
                "check-hash-based-pycs" => drop(words.next()),
                _ => {}
            }
            continue;
        }
        // The first that takes a value ends the word: the value is the rest of it, or the next word.
        let Some(at) = options.find(['c', 'm', 'W', 'X']) else { continue };
        match (options.as_bytes()[at], &options[at + 1..]) {
            (b'c', "") => return words.next().map_or(Given::Other, Given::Text),
            (b'c', text) => return Given::Text(text),
            (b'm', _) => return Given::Other,
            (_, "") => drop(words.next()),
            _ => {}
        }
    }
    Given::Other
}

#[cfg(test)]
mod tests {
    use super::{Given, given};

    fn of<T>(text: &str, check: impl Fn(Given<'_>) -> T) -> T {
        let words = text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        check(given(&words))
    }

    #[test]
    fn a_command_text_is_told_from_a_script() {
        for text in ["p -c x", "p -cx", "p -Ic x", "p -X dev -c x", "p -Xdev -W ignore -c x y", "p -uWignore -bc x"] {
            of(text, |given| assert_eq!(given, Given::Text("x"), "{text}"));
        }
        of("p --check-hash-based-pycs always -c x", |given| assert_eq!(given, Given::Text("x")));
        for text in ["p s -c", "p -X c s", "p -Wc s", "p -- s x", "p -I -u s -", "p --version s"] {
            of(text, |given| assert_eq!(given, Given::Script("s"), "{text}"));
        }
        of("p -- -c x", |given| assert_eq!(given, Given::Script("-c")));
        for text in ["p", "p -c", "p -m module -c", "p -mc", "p - -c x", "p -- -"] {
            of(text, |given| assert_eq!(given, Given::Other, "{text}"));
        }
    }
}
