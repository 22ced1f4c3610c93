//! Collections of garbage that a line asked for, told from those that became due while it ran.
//!
//! The interpreter does not say which it is. A line that calls something by the name `collect` asked, as `gc.collect()` does: what is
//! released then is its doing. Where no such call is written, or the text cannot be read, the collector has a row of its own.

use super::command_text::CommandText;
use super::image::Image;
use crate::ledger::{LinePosition, Resolved, StackId};

/// Gives the lines of an image what they asked the collector to do.
pub(super) fn settle(image: &mut Image) {
    let innermost = |stack: &crate::ledger::Stack| {
        let resolved = stack.frames.iter().map(|frame| image.resolve(*frame));
        match resolved.into_iter().find(|resolved| *resolved != Resolved::Skip) {
            Some(Resolved::Line(position)) => Some(position),
            _ => None,
        }
    };
    let collecting = image.stacks.iter().filter(|(_, stack)| stack.collector);
    let collecting: Vec<(StackId, LinePosition)> =
        collecting.filter_map(|(id, stack)| Some((*id, innermost(stack)?))).collect();
    if collecting.is_empty() {
        return;
    }
    let command_text = CommandText::of(image);
    for (id, position) in collecting {
        if asks(image, command_text.as_ref(), position)
            && let Some(stack) = image.stacks.get_mut(&id)
        {
            stack.collector = false;
        }
    }
}

fn asks(image: &mut Image, command_text: Option<&CommandText>, position: LinePosition) -> bool {
    let Some(function) = image.functions.get(position.function as usize) else { return false };
    let code = std::sync::Arc::clone(&function.code);
    let text = match command_text {
        Some(text) if text.has(position.function, &code) => Some(text.lines()),
        _ => image.source(&code),
    };
    let at = (position.line as usize).checked_sub(1);
    at.zip(text).and_then(|(at, text)| text.get(at).map(|line| calls_collect(line))).unwrap_or(false)
}

/// Is a call of something that is called `collect` on this line?
fn calls_collect(line: &str) -> bool {
    const NAME: &str = "collect";
    line.match_indices(NAME).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(is_part) && line[at + NAME.len()..].trim_start().starts_with('(')
    })
}

#[cfg(test)]
mod tests {
    use super::calls_collect;

    #[test]
    fn a_call_is_one_by_that_name() {
        for line in ["gc.collect()", "    freed = collect (2)", "print(gc.collect(), 1)"] {
            assert!(calls_collect(line), "{line}");
        }
        for line in ["", "collect", "collected()", "recollect()", "é_collect()", "gc.collect", "# collect\u{e9}("] {
            assert!(!calls_collect(line), "{line}");
        }
    }
}
