//! Text of a measured program on its way to a terminal: nothing of it may move the cursor, colour or reorder what stands there.

use std::borrow::Cow;

/// The text with control characters written out: `\x1b` for C0 (tabs stay), DEL and C1, `\u202e` for those that change the
/// direction of text or end a line. A file name can hold a line break; a source line cannot.
pub fn escape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_unprintable) else { return Cow::Borrowed(text) };
    let (plain, rest) = text.split_at(first);
    let mut escaped = String::with_capacity(text.len() + 16);
    escaped.push_str(plain);
    for character in rest.chars() {
        match u32::from(character) {
            code if !is_unprintable(character) => escaped.extend(char::from_u32(code)),
            code if code <= 0xff => escaped.push_str(&format!("\\x{code:02x}")),
            code => escaped.push_str(&format!("\\u{code:04x}")),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character must not reach a terminal as it is.
pub(super) fn is_unprintable(character: char) -> bool {
    match character {
        '\t' => false,
        // Bidirectional marks, embeddings, overrides and isolates (Unicode TR 9), the line and paragraph separators.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

/// A command line as one would type it, escaped, and cut with `…` after `limit` characters.
pub fn shell_words(command: &[String], limit: usize) -> String {
    let mut line = String::new();
    for (index, word) in command.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        let is_plain = |c: char| c.is_alphanumeric() || "_-./:=,@%+".contains(c);
        if !word.is_empty() && word.chars().all(is_plain) {
            line.push_str(word);
        } else {
            line.push_str(&format!("'{}'", escape(word).replace('\'', "'\\''")));
        }
        // Counted each time round, so that an endless command line costs no more than what is shown of it.
        if let Some((cut, _)) = line.char_indices().nth(limit) {
            line.truncate(cut);
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        assert!(matches!(escape("\tüber [\u{1f980}]"), Cow::Borrowed(_)));
        assert_eq!(escape("a\x1b[2J\u{7f}\u{9b}b\n\r\0"), "a\\x1b[2J\\x7f\\x9bb\\x0a\\x0d\\x00");
        assert_eq!(escape("x = '\u{202e}evil\u{2066}'\u{2028}"), "x = '\\u202eevil\\u2066'\\u2028");
    }

    #[test]
    fn command_lines() {
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        assert_eq!(
            shell_words(&words(&["python", "a b.py", "", "it's", "--n=3"]), 80),
            r"python 'a b.py' '' 'it'\''s' --n=3"
        );
        assert_eq!(shell_words(&words(&["python", "-c", "\x1b\n"]), 80), r"python -c '\x1b\x0a'");
        assert_eq!(shell_words(&words(&["python", "worker.py"]), 9), "python wo…");
    }
}
