//! A program that was given on the command line (`-c`): its text, and which code objects are of it.

use std::collections::HashSet;
use std::sync::Arc;

use super::image::Image;
use crate::ledger::StackStatus;
use crate::python::code::CodeObject;
use crate::report::{Program, program_of};

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
        let Some(Program::Text(_, text)) = program_of(&image.birth.command) else { return None };
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
