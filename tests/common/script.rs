//! Python programs written into a directory of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A program of one file, in a directory that other users may read.
pub struct Script {
    directory: TempDir,
    /// The file.
    pub path: PathBuf,
    text: String,
}

/// Writes `text` (a leading line end is taken off) into `name` in a new directory.
pub fn script(name: &str, text: &str) -> Script {
    let directory = tempfile::Builder::new().prefix("live-test-").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path().canonicalize().unwrap().join(name);
    let text = text.strip_prefix('\n').unwrap_or(text).to_owned();
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Script { directory, path, text }
}

impl Script {
    /// The number of the one line that has `marker` in it.
    pub fn line(&self, marker: &str) -> u32 {
        let mut found =
            self.text.lines().zip(1u32..).filter(|(line, _)| line.contains(marker)).map(|(_, number)| number);
        let number = found.next().unwrap_or_else(|| panic!("no line with {marker:?}"));
        assert_eq!(found.next(), None, "more than one line with {marker:?}");
        number
    }

    /// The directory it is alone in.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap()
    }

    /// Another file beside it.
    pub fn beside(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory().join(name);
        fs::write(&path, text.strip_prefix('\n').unwrap_or(text)).unwrap();
        path
    }

    /// A C library beside it. Its functions are not put into each other: each can be probed.
    pub fn library_beside(&self, source: &str) -> PathBuf {
        let (source, library) = (self.beside("library.c", source), self.directory().join("liblibrary.so"));
        let mut compiler = Command::new("clang");
        compiler.args(["-O0", "-shared", "-fPIC", "-o"]).args([&library, &source]);
        assert!(compiler.status().unwrap().success());
        library
    }

    /// As text, for command lines.
    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // A test may have given the directory to another user, or taken it away itself.
        let _ = fs::remove_dir_all(self.directory.path());
    }
}
