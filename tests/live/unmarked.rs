//! Programs without marks: the functions of the user's own files that moved most.

use crate::common::{Ran, Run, Script, any_python, near, near_blocks, root, script, supported_pythons};

const PROGRAM: &str = "
import json, os
import helper

def small():
    return bytearray(1_000_000)

def medium():
    return bytearray(2_000_000)

def large():
    return bytearray(4_000_000)

def through_library():
    return json.loads('[' + '\"' + 'x' * 3_000_000 + '\"' + ']')  # library

kept = [small(), medium(), large(), through_library(), helper.grow()]
os._exit(0)
";

fn program() -> Script {
    let program = script("plain.py", PROGRAM);
    program.beside("helper.py", "def grow():\n    return bytearray(8_000_000)\n");
    program
}

fn table(options: &[&str], program: &Script) -> Ran {
    Run::new(options).words([&any_python().path, &program.path]).run().expect(0).quiet()
}

#[test]
fn root_top_shows_the_functions_that_moved_most() {
    if !root() {
        return;
    }
    let program = program();
    let text = table(&["--top", "3"], &program).stdout_text();
    // The module's own table holds the `def` lines of all, and the bodies of none.
    assert!(!text.contains("bytearray(1_000_000)") && !text.contains("bytearray(2_000_000)"), "{text}");
    assert!(text.contains("bytearray(8_000_000)"), "{text}");
    assert_eq!(text.matches("Filename: ").count(), 3, "{text}");
    let text = table(&["--top", "0"], &program).stdout_text();
    assert_eq!(text.matches("Filename: ").count(), 0, "{text}");
}

#[test]
fn root_files_are_chosen_by_include_and_exclude() {
    if !root() {
        return;
    }
    let program = program();
    let files = |options: &[&str]| {
        let text = table(options, &program).stdout_text();
        let names = text.lines().filter_map(|line| line.strip_prefix("Filename: "));
        let mut names: Vec<String> = names.map(|name| name.rsplit('/').next().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(files(&[]), ["helper.py", "plain.py"]);
    assert_eq!(files(&["--include", "*helper.py"]), ["helper.py"]);
    assert_eq!(files(&["--exclude", "*helper.py"]), ["plain.py"]);
    assert_eq!(files(&["--include", "*/live-test-*.py", "--exclude", "*/plain.py"]), ["helper.py"]);
    let all = files(&["--all-files", "--top", "1000"]);
    assert!(all.contains(&"helper.py".to_owned()) && all.len() > 3, "{all:?}");
}

#[test]
fn root_library_bytes_count_on_the_users_line() {
    if !root() {
        return;
    }
    let program = program();
    for python in supported_pythons() {
        let report = Run::json().words([&python.path, &program.path]).run().expect(0).quiet().report();
        let process = report.only();
        assert!(process.marked().is_empty());
        let line = process.line("through_library", program.line("# library"));
        // The text and its two copies are gone when the line ends; what the decoder made stays.
        near(line.increment(), 3_000_000, 200_000);
        let whole =
            Run::json().word("--all-files").words([&python.path, &program.path]).run().expect(0).quiet().report();
        let same = whole.only().line("through_library", program.line("# library")).increment();
        near(same, line.increment(), 65_536);
        let names: Vec<&str> = whole.only().lines().iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"JSONDecoder.decode") || names.contains(&"decode"), "{names:?}");
        let files = report.0["processes"][0]["functions"].as_array().unwrap();
        for function in files {
            let name = function["filename"].as_str().unwrap();
            assert!(name.ends_with("/plain.py") || name.ends_with("/helper.py"), "not the user's own: {name}");
        }
    }
}

/// What ran in a package of `site-packages` is the caller's.
#[test]
fn root_installed_packages_are_no_files_of_the_user() {
    if !root() {
        return;
    }
    let program = script(
        "uses.py",
        "
import os, sys
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'lib/python3/site-packages'))
import package

def use():
    return package.grow()  # use
kept = use()
os._exit(0)
",
    );
    let folder = program.directory().join("lib/python3/site-packages");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("package.py"), "def grow():\n    return bytearray(6_000_000)\n").unwrap();
    let report = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet().report();
    let line = report.only().line("use", program.line("# use"));
    near_blocks(line.increment(), 6_000_001);
    near_blocks(line.own(), 0);
    assert!(report.only().find("grow", 2).is_none(), "{report}");
}

/// Of a program on the command line the text is known; what it executes from a string has the same file name and is not it, nor
/// are the lines of `.pth` files, which `site` executes.
#[test]
fn root_a_command_text_is_shown_and_nothing_else_named_string() {
    if !root() {
        return;
    }
    let text = "kept = bytearray(3_000_000)\nexec('more = bytearray(2_000_000)')\ndef grow():\n    return bytes(1_000_000)\nlast = grow()\n";
    for python in supported_pythons() {
        let ran = Run::json().word(&python.path).words(["-W", "ignore", "-c", text]).run().expect(0).quiet();
        let report = ran.report();
        let process = report.only();
        let shown =
            process.0["functions"].as_array().unwrap().iter().filter(|function| function["filename"] == "<string>");
        let names: Vec<&str> = shown.map(|function| function["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["<module>", "grow"], "{}", python.version_text());
        near(process.line("<module>", 2).increment(), 2_000_001, 16_384); // and what the compiler keeps and gives back
        near_blocks(process.line("grow", 4).increment(), 1_000_033);
        let table = Run::new([&python.path]).words(["-c", text]).run().expect(0).stdout_text();
        assert!(table.contains("2.861 MiB   kept = bytearray(3_000_000)\n"), "{table}");
        assert!(!table.contains("not readable"), "{table}");
    }
}
