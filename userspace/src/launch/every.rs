//! Which code is measured when every function of the user's own is: the lines that stand above `every.py`.

use std::fmt::Write as _;

/// What a name begins with and ends with that a glob can match. The program looks at no more: it measures more than is shown then, never
/// less. `*` and `**` cross slashes.
fn ends(glob: &str) -> (&str, &str) {
    let begin = glob.find(['*', '?', '[', '{', '\\']).unwrap_or(glob.len());
    let end = glob.rfind(['*', '?', ']', '}', '\\']).map_or(0, |at| at + 1);
    // `**/` matches nothing at all, too.
    let crosses = glob[..end].ends_with("**");
    let tail = &glob[end..];
    (&glob[..begin], if crosses { tail.strip_prefix('/').unwrap_or(tail) } else { tail })
}

/// A literal of Python's.
pub(super) fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for one in text.chars() {
        // What is written to a `String` is written.
        let _ = match one {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '/' | '.' | '_' | '-' => write!(literal, "{one}"),
            _ => write!(literal, "\\U{:08x}", u32::from(one)),
        };
    }
    literal + "\""
}

/// The whole of `rmprof-every.py`. `include`: globs of files; none: the user's own; `all`: every file.
pub(super) fn text(all: bool, include: &[String]) -> String {
    let globs = include.iter().map(|glob| ends(glob));
    let words: String = globs.map(|(begin, end)| format!("{}, {}, ", literal(begin), literal(end))).collect();
    format!("ALL, GLOBS = {}, ({words})\n{}", u8::from(all), include_str!("every.py"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_looked_at_by_their_ends() {
        assert_eq!(ends("main.py"), ("main.py", "main.py"));
        assert_eq!(ends("*helper.py"), ("", "helper.py"));
        assert_eq!(ends("/srv/*"), ("/srv/", ""));
        assert_eq!(ends("**/app/main.py"), ("", "app/main.py"));
        assert_eq!(ends("/srv/**/x[ab]y.py"), ("/srv/", "y.py"));
        assert_eq!(ends("{b,c}.py"), ("", ".py"));
        assert_eq!(ends(r"a\[b"), ("a", "[b"));
    }

    #[test]
    fn names_are_literals_of_python() {
        assert_eq!(literal("/a-b.py"), "\"/a-b.py\"");
        assert_eq!(literal("\"\\ö\n"), "\"\\U00000022\\U0000005c\\U000000f6\\U0000000a\"");
        assert!(text(false, &["*x.py".to_owned()]).starts_with("ALL, GLOBS = 0, (\"\", \"x.py\", )\n# "));
        assert!(text(true, &[]).starts_with("ALL, GLOBS = 1, ()\n"));
    }
}
