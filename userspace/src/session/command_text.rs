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
        let lines = Arc::new(text_of(&image.birth.command)?.lines().map(str::to_owned).collect());
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

/// The value of `-c`. Read as Python/getopt.c reads it.
fn text_of(command: &[String]) -> Option<&str> {
    let mut words = command.iter().skip(1);
    // A script is no option, nor is a lone `-`: standard input.
    while let Some(options) = words.next().and_then(|word| word.strip_prefix('-')).filter(|word| !word.is_empty()) {
        if let Some(long) = options.strip_prefix('-') {
            match long {
                "" => return None,
                "check-hash-based-pycs" => drop(words.next()),
                _ => {}
            }
            continue;
        }
        // The first that takes a value ends the word: the value is the rest of it, or the next word.
        let Some(at) = options.find(['c', 'm', 'W', 'X']) else { continue };
        match (options.as_bytes()[at], &options[at + 1..]) {
            (b'c', "") => return words.next().map(String::as_str),
            (b'c', text) => return Some(text),
            (b'm', _) => return None,
            (_, "") => drop(words.next()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::text_of;

    #[test]
    fn a_command_text_is_told_from_a_script() {
        let of = |text: &str| {
            let words = text.split(' ').map(str::to_owned).collect::<Vec<_>>();
            text_of(&words).map(str::to_owned)
        };
        for text in ["p -c x", "p -cx", "p -Ic x", "p -X dev -c x", "p -Xdev -W ignore -c x y", "p -uWignore -bc x"] {
            assert_eq!(of(text).as_deref(), Some("x"), "{text}");
        }
        assert_eq!(of("p --check-hash-based-pycs always -c x").as_deref(), Some("x"));
        for text in [
            "p",
            "p -c",
            "p script -c",
            "p -m module -c",
            "p -mc",
            "p -X c script",
            "p -Wc script",
            "p -- -c x",
            "p - -c x",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
