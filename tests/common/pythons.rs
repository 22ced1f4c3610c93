//! The Pythons of this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The minor versions of Python 3 that rmprof-bpf measures.
const SUPPORTED: std::ops::RangeInclusive<u32> = 6..=15;

/// An interpreter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Python {
    /// (minor, micro) of Python 3.
    pub version: (u32, u32),
    /// The file, no wrapper script.
    pub path: PathBuf,
}

impl Python {
    /// As in the report.
    pub fn version_text(&self) -> String {
        format!("3.{}.{}", self.version.0, self.version.1)
    }

    /// The block that a `bytearray` of this length takes: a byte more, and from 3.15 on a `bytes` object (Objects/bytearrayobject.c).
    pub fn of_bytearray(&self, length: i64) -> i64 {
        length + if self.version.0 >= 15 { 33 } else { 1 }
    }

    /// Runs it bare and returns what it printed.
    pub fn bare(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.path).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.path.display(), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Every CPython 3 found on PATH, in pyenv's versions and in /usr/bin, each real file once.
fn all() -> &'static [Python] {
    static FOUND: OnceLock<Vec<Python>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut seen = BTreeSet::new();
        let mut found: Vec<Python> = candidates().iter().filter_map(|path| examine(path, &mut seen)).collect();
        found.sort();
        found
    })
}

fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.push("/usr/bin".into());
    let pyenv = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let pyenv = pyenv.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = pyenv.and_then(|root| std::fs::read_dir(root.join("versions")).ok());
    directories.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let names = |directory: &PathBuf| -> Vec<PathBuf> {
        let minors = (6..30).map(|minor| directory.join(format!("python3.{minor}")));
        std::iter::once(directory.join("python3")).chain(minors).collect()
    };
    directories.iter().flat_map(names).collect()
}

fn examine(path: &Path, seen: &mut BTreeSet<PathBuf>) -> Option<Python> {
    let file = path.canonicalize().ok()?;
    if !std::fs::read(&file).ok()?.starts_with(b"\x7fELF") || !seen.insert(file.clone()) {
        return None;
    }
    let ask = "import sys; print(sys.implementation.name, *sys.version_info[:3])";
    let output = Command::new(&file).args(["-I", "-c", ask]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let words: Vec<&str> = said.split_whitespace().collect();
    match words[..] {
        ["cpython", "3", minor, micro] => {
            Some(Python { version: (minor.parse().ok()?, micro.parse().ok()?), path: file })
        }
        _ => None,
    }
}

/// Those that are measured. There must be one: a suite that tries none proves nothing.
pub fn supported_pythons() -> Vec<Python> {
    let found: Vec<Python> = all().iter().filter(|python| SUPPORTED.contains(&python.version.0)).cloned().collect();
    assert!(!found.is_empty(), "no CPython 3.6 to 3.15 was found on PATH, in pyenv or in /usr/bin");
    found
}

/// Those that are refused.
pub fn refused_pythons() -> Vec<Python> {
    all().iter().filter(|python| !SUPPORTED.contains(&python.version.0)).cloned().collect()
}

/// One of the measured, for tests that are not about the version: that of /usr/bin, which every user can execute, else the newest.
pub fn any_python() -> Python {
    let found = supported_pythons();
    let system = found.iter().find(|python| python.path.starts_with("/usr/bin"));
    system.or(found.last()).cloned().unwrap()
}
