//! The texts of the files that an image executes, each read once, as early as it is known to be one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::image::Birth;
use crate::python::code::CodeObject;
use crate::report::{Program, program_of};
use crate::target::credentials::Credentials;
use crate::target::source::{Root, Source};

/// The program's own file, read before the program has begun: it may remove it, or write another there.
#[derive(Debug)]
pub struct Script {
    /// The names that its code may have: up to 3.8 as it was given, later with the working directory before it.
    names: [PathBuf; 2],
    source: Source,
}

impl Script {
    /// Of a Python that has this command; `None` where that executes no file, or one that cannot be read.
    pub fn of(command: &[String], root: Option<&Root>, credentials: Option<&Credentials>) -> Option<Self> {
        let Some(Program::Script(_, name)) = program_of(command) else { return None };
        let root = root?;
        let name = Path::new(name);
        let source = with_rights(credentials, || root.read_source(name).ok())?;
        let names = [name.to_owned(), root.working_path().unwrap_or_default().join(name)];
        Some(Self { names, source })
    }
}

fn with_rights<T>(credentials: Option<&Credentials>, read: impl FnOnce() -> T) -> T {
    match credentials {
        Some(credentials) => credentials.open_files_as(read),
        None => read(),
    }
}

/// A source file as it was when its first function was seen.
#[derive(Clone, Debug)]
struct Text {
    lines: Arc<Vec<String>>,
    /// The file was written after the program began: by the program itself, which then executed it, or by somebody else, after
    /// the program had executed what was there before.
    may_be_another: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Sources {
    texts: HashMap<PathBuf, Option<Text>>,
    /// Since when files may have been executed: the beginning of the image, or of the one it is a fork of.
    executing_since: SystemTime,
}

impl Sources {
    /// Of an image that begins.
    pub fn new(executing_since: SystemTime, script: Option<Script>) -> Self {
        let mut texts = HashMap::new();
        if let Some(script) = script {
            let text = Text { lines: Arc::new(script.source.lines), may_be_another: false };
            texts.extend(script.names.map(|name| (name, Some(text.clone()))));
        }
        Self { texts, executing_since }
    }

    /// The text that `code` was compiled from; `None` where it cannot be read, or is not that text any more.
    pub fn of(&mut self, birth: &Birth, code: &CodeObject) -> Option<Arc<Vec<String>>> {
        self.read(birth, code);
        let text = self.texts.get(code.path())?.as_ref()?;
        (!text.may_be_another || code.can_be_of(&text.lines)).then(|| Arc::clone(&text.lines))
    }

    /// Reads the file of `code`, if that has not been done.
    pub fn read(&mut self, birth: &Birth, code: &CodeObject) {
        let path = code.path();
        if self.texts.contains_key(path) {
            return;
        }
        let read = || birth.root.as_ref()?.read_source(path).ok();
        let is_file = !code.filename.starts_with('<');
        let source = if is_file { with_rights(birth.credentials.as_deref(), read) } else { None };
        let text = source.map(|source| Text {
            may_be_another: source.changed >= self.executing_since,
            lines: Arc::new(source.lines),
        });
        self.texts.insert(path.to_owned(), text);
    }
}
