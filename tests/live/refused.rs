//! Pythons that are not measured are recognised and refused in one sentence; the program runs as it would have.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol};

use crate::common::{Python, Run, any_python, near_blocks, refused_pythons, root, script};

/// A program for every Python.
const TEXT: &str = "import sys; sys.stdout.write('%d\\n' % sum(range(10))); sys.exit(3)";

/// Asserts that a Python's program runs, to its own status, and that it is refused with these words.
#[track_caller]
fn check_refused(run: impl Fn(Run) -> Run, words: &[&str]) {
    for mode in ["heap", "pages", "objects"] {
        let ran = run(Run::json().words(["--mode", mode])).words(["-c", TEXT]).run().expect(3);
        assert_eq!(ran.stdout_text(), "45\n");
        let said = ran.stderr_text();
        let sentences: Vec<&str> = said.lines().filter(|line| line.contains(" is not measured: ")).collect();
        assert_eq!(sentences.len(), 1, "{said}");
        for word in words {
            assert!(sentences[0].contains(word), "{said}");
        }
        assert!(said.lines().any(|line| line.starts_with("hint: ")) && !said.contains("\\x0a"), "{said}");
        assert!(ran.report().processes().is_empty());
    }
}

#[test]
fn root_other_versions_found_here_are_refused_and_run() {
    if !root() {
        return;
    }
    for python in refused_pythons() {
        let version = format!("CPython {}", python.version_text());
        check_refused(|run| run.word(&python.path), &[&version, "3.6 to 3.15"]);
    }
}

/// The file that a command of the PATH is, or one of pyenv's versions.
fn find(name: &str) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let pyenv =
        std::env::var_os("HOME").and_then(|home| std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).ok());
    folders.extend(pyenv.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let files = folders.into_iter().filter_map(|folder| folder.join(name).canonicalize().ok());
    let mut programs = files.filter(|file| std::fs::read(file).is_ok_and(|content| content.starts_with(b"\x7fELF")));
    programs.next()
}

#[test]
fn root_pypy_and_python_2_are_refused_and_run() {
    if !root() {
        return;
    }
    for (name, words) in [("pypy3", &["libpypy3", " is PyPy"][..]), ("python2.7", &["older than 3.6", "3.6 to 3.15"])] {
        match find(name) {
            Some(file) => check_refused(|run| run.word(&file), words),
            None => println!("nothing to try: no {name} here"),
        }
    }
}

/// A copy of a real interpreter that says that it is another version; `None` where it does not say it in one place.
fn of_another_version(python: &Python, hexversion: u32, to: &Path) -> Option<()> {
    let mut content = std::fs::read(&python.path).ok()?;
    let place = {
        let file = object::File::parse(content.as_slice()).ok()?;
        let symbol =
            file.dynamic_symbols().find(|symbol| symbol.name() == Ok("Py_Version") && symbol.is_definition())?;
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        let (begin, _) = section.file_range()?;
        usize::try_from(begin + (symbol.address() - section.address())).ok()?
    };
    content[place..place + 4].copy_from_slice(&hexversion.to_le_bytes());
    std::fs::write(to, content).ok()?;
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755)).ok()
}

#[test]
fn root_a_version_that_is_not_known_yet_is_refused_and_runs() {
    if !root() {
        return;
    }
    let folder = script("unused", "");
    let copy = folder.directory().join("python3.16");
    let python = any_python();
    if of_another_version(&python, 0x0310_01f0, &copy).is_none() {
        println!("nothing to try: {} does not tell its version by a symbol of its own", python.path.display());
        return;
    }
    // It looks for its library beside itself, and is told where that is.
    let prefix = python.bare(&["-c", "import sys; print(sys.base_prefix, end='')"]);
    assert!(Command::new(&copy).args(["-c", ""]).env("PYTHONHOME", &prefix).status().unwrap().success());
    check_refused(|run| run.env("PYTHONHOME", &prefix).word(&copy), &["CPython 3.16.1", "3.6 to 3.15"]);
}

/// What is refused does not keep its parent and its children from being measured.
#[test]
fn root_one_that_is_refused_beside_one_that_is_not() {
    if !root() {
        return;
    }
    let Some(other) = find("pypy3").or_else(|| find("python2.7")) else {
        println!("nothing to try: neither pypy3 nor python2.7 here");
        return;
    };
    let program = script(
        "both.py",
        "
import subprocess, sys
@profile
def grow():
    kept = bytearray(3_000_000)  # here
    return kept
subprocess.check_call([sys.argv[1], '-c', 'pass'])
grow()
",
    );
    let ran = Run::json().words([&any_python().path, &program.path, &other]).run().expect(0);
    assert_eq!(ran.stderr_text().matches(" is not measured: ").count(), 1, "{ran}");
    near_blocks(ran.report().only().line("grow", program.line("# here")).increment(), 3_000_001);
}
