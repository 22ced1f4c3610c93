//! Where blocks end.

use std::sync::Arc;

use super::*;

/// The rows of a function of the text that has code on the given lines.
fn rows_of(name: &str, first_line: u32, own_lines: &[u32], text: &str) -> Vec<u32> {
    let function = Function {
        name: name.into(),
        first_line,
        own_lines: own_lines.to_vec(),
        source: Some(Arc::new(text.lines().map(str::to_owned).collect())),
        ..Function::default()
    };
    rows(&function).lines.into_iter().collect()
}

#[test]
fn a_def_ends_with_its_indentation() {
    let text = "def f():\n    return g(\n        1,\n    )\n    # said after\n\n# of the next\ndef h():\n    pass\n";
    assert_eq!(rows_of("f", 1, &[2, 3], text), [1, 2, 3, 4, 5]);
    assert_eq!(rows_of("f", 1, &[1], "def f():\n    pass\n\n\n\nx = 1\n"), [1, 2]);
    assert_eq!(rows_of("f", 1, &[1], "@mark\ndef f(): 'text'\n\n@mark\n"), [1, 2]);
    assert_eq!(rows_of("f", 1, &[2], "def f():\n\tif x:\n        return 1\ny = 1\n"), [1, 2, 3]);
}

#[test]
fn brackets_and_strings_end_where_they_close() {
    let bracket = "def f():\n    return [\n1,\n2\n]\n\nx = 1\n";
    assert_eq!(rows_of("f", 1, &[2], bracket), [1, 2, 3, 4, 5]);
    let string = "def f():\n    return '''\nfree (\n'''\nx = (1\n)\n";
    assert_eq!(rows_of("f", 1, &[2], string), [1, 2, 3, 4]);
    let continued = "def f():\n    return 1 + \\\n2\nx = 1\n";
    assert_eq!(rows_of("f", 1, &[2], continued), [1, 2, 3]);
    let quoted = "def f():\n    return '#(' + \"it's [\" + r'\\' # ( '''\nx = 1\n";
    assert_eq!(rows_of("f", 1, &[2], quoted), [1, 2]);
    let signature = "@mark(\n1)\ndef f(\n    a,\n):\n    return a\nx = 1\n";
    assert_eq!(rows_of("f", 1, &[1, 6], signature), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_text_that_never_closes_is_not_believed() {
    assert_eq!(rows_of("f", 1, &[2], "def f():\n    return (1\nx = 1\ny = 2\n"), [1, 2]);
}

#[test]
fn a_text_that_no_longer_fits_adds_no_rows() {
    assert_eq!(rows_of("f", 2, &[3, 4], "import os\nx = 1\ny = 2\nz = 3\n    w = 4\n"), [2, 3, 4]);
    assert_eq!(rows_of("f", 90, &[91, 4_000_000_000], "x = 1\n"), [90]);
}

#[test]
fn expressions_are_their_own_lines() {
    let text = "with open(lambda: 1):\n    x = 2\n";
    assert_eq!(rows_of("<lambda>", 1, &[1], text), [1]);
}

#[test]
fn modules_and_classes_leave_bodies_out() {
    let text = "\
import os
# a remark

@mark
def f(
    a=1,
):
    return a


class C:
    x = 1

    def m(self):
        return 1


if f(
    1
):
    C()
";
    assert_eq!(rows_of("<module>", 1, &[1, 4, 11, 18, 21], text), [1, 2, 3, 4, 5, 11, 18, 19, 20, 21]);
    assert_eq!(rows_of("C", 11, &[11, 12, 14], text), [11, 12, 13, 14]);
}

#[test]
fn without_a_source_numbers_are_bounded() {
    let bare = |first_line, own_lines: &[u32]| {
        let function = Function { first_line, own_lines: own_lines.to_vec(), ..Function::default() };
        rows(&function).lines.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(bare(3, &[4, 6]), [3, 4, 5, 6]);
    assert_eq!(bare(3, &[4, u32::MAX]), [3]);
    assert_eq!(bare(0, &[]), [1]);
}
