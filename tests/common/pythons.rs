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
    /// Built without the GIL: mimalloc holds its objects, which count by the page.
    pub free_threaded: bool,
    /// Built with `Py_DEBUG`: its allocators put something around each block.
    pub debug: bool,
    /// The file, no wrapper script.
    pub path: PathBuf,
}

impl Python {
    /// As in the report.
    pub fn version_text(&self) -> String {
        let variant = [(self.free_threaded, "t"), (self.debug, "d")];
        let variant: String = variant.into_iter().filter(|(is_it, _)| *is_it).map(|(_, letter)| letter).collect();
        format!("3.{}.{}{variant}", self.version.0, self.version.1)
    }

    /// The block that a `bytearray` of this length takes: a byte more, and from 3.15 on a `bytes` object (Objects/bytearrayobject.c).
    pub fn of_bytearray(&self, length: i64) -> i64 {
        length + if self.version.0 >= 15 { 33 } else { 1 }
    }

    /// What a debug build's allocators put around an object of more than 512 bytes, where `PYTHONMALLOC` does not say otherwise: two words
    /// of padding and one of size (Objects/obmalloc.c, PYMEM_DEBUG_EXTRA_BYTES), once as an object and once as raw memory.
    pub fn around_an_object(&self) -> i64 {
        if self.debug { 48 } else { 0 }
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
        let names = (6..30).flat_map(|minor| ["", "t", "d", "td"].map(|variant| format!("python3.{minor}{variant}")));
        let minors = names.map(|name| directory.join(name));
        std::iter::once(directory.join("python3")).chain(minors).collect()
    };
    directories.iter().flat_map(names).collect()
}

fn examine(path: &Path, seen: &mut BTreeSet<PathBuf>) -> Option<Python> {
    let file = path.canonicalize().ok()?;
    if !std::fs::read(&file).ok()?.starts_with(b"\x7fELF") || !seen.insert(file.clone()) {
        return None;
    }
    let ask = "import sys, sysconfig; print(sys.implementation.name, *sys.version_info[:3], \
               int(bool(sysconfig.get_config_var('Py_GIL_DISABLED'))), int(hasattr(sys, 'gettotalrefcount')))";
    let output = Command::new(&file).args(["-I", "-c", ask]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let words: Vec<&str> = said.split_whitespace().collect();
    match words[..] {
        ["cpython", "3", minor, micro, free_threaded, debug] => Some(Python {
            version: (minor.parse().ok()?, micro.parse().ok()?),
            free_threaded: free_threaded == "1",
            debug: debug == "1",
            path: file,
        }),
        _ => None,
    }
}

/// The release builds with GIL that are measured: what most tests are about. There must be one: a suite that tries none proves nothing.
pub fn supported_pythons() -> Vec<Python> {
    let mut found = every_build();
    found.retain(|python| !python.free_threaded && !python.debug);
    assert!(!found.is_empty(), "no CPython 3.6 to 3.15 (RMPROF_MINORS) was found on PATH, in pyenv or in /usr/bin");
    found
}

/// All that are measured, debug and free-threaded builds too; of these the minor versions of `RMPROF_MINORS` where that is given.
pub fn every_build() -> Vec<Python> {
    let wanted = std::env::var("RMPROF_MINORS").ok();
    let is_wanted = |minor: u32| wanted.as_ref().is_none_or(|list| list.split(',').any(|one| one == minor.to_string()));
    let measured = |python: &&Python| SUPPORTED.contains(&python.version.0) && is_wanted(python.version.0);
    all().iter().filter(measured).cloned().collect()
}

/// Those that are refused.
pub fn refused_pythons() -> Vec<Python> {
    all().iter().filter(|python| !SUPPORTED.contains(&python.version.0)).cloned().collect()
}

/// One of the measured, for tests that are not about the version, whatever `RMPROF_MINORS` says: that of /usr/bin, which every user can
/// execute, else the newest.
pub fn any_python() -> Python {
    let mut found: Vec<Python> = all().iter().filter(|python| SUPPORTED.contains(&python.version.0)).cloned().collect();
    found.retain(|python| !python.free_threaded && !python.debug);
    let system = found.iter().find(|python| python.path.starts_with("/usr/bin"));
    system.or(found.last()).cloned().unwrap()
}
