//! The Pythons of this machine: those in PATH, of pyenv, and of the distribution.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::super::layout::{Layout, Variant, for_build, known};

/// An installed Python, of any version and kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Installed {
    /// major, minor, micro.
    pub(super) version: (u8, u8, u8),
    /// What starts it.
    pub(super) program: PathBuf,
    /// `final`, `candidate`…
    pub(super) level: String,
    /// d: debug, t: free-threaded.
    pub(super) flags: String,
    /// `cpython` or `pypy`.
    pub(super) implementation: String,
}

impl Installed {
    /// The layout of its build.
    pub(super) fn layout(&self) -> Option<&'static Layout> {
        let variant = Variant::of(self.flags.contains('t'), self.flags.contains('d'));
        let plain = self.implementation == "cpython" && self.level == "final";
        for_build(self.version.0, self.version.1, variant).filter(|_| plain)
    }
}

const SCRIPT: &str = "import sys, sysconfig, platform
print(*sys.version_info[:4])
print(('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else '') + ('d' if hasattr(sys, 'gettotalrefcount') else '') or '-')
print(platform.python_implementation().lower())
print(sys.executable)
";

/// All that are found, oldest version first.
pub(super) fn installed() -> &'static [Installed] {
    static FOUND: OnceLock<Vec<Installed>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let found: BTreeSet<Installed> = candidates().into_iter().filter_map(|program| ask(&program)).collect();
        found.into_iter().collect()
    })
}

/// Those with a layout. Says which versions are missing.
pub(super) fn supported() -> Vec<(&'static Installed, &'static Layout)> {
    let found: Vec<_> = installed().iter().filter_map(|python| Some((python, python.layout()?))).collect();
    for layout in known() {
        if !found.iter().any(|(_, known)| *known == layout) {
            eprintln!("skipped: no CPython {}.{}{} is installed", layout.major, layout.minor, layout.variant.suffix());
        }
    }
    found
}

fn candidates() -> BTreeSet<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: BTreeSet<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/bin", "/usr/local/bin"].map(PathBuf::from));
    let versions = std::env::home_dir().unwrap_or_default().join(".pyenv/versions");
    folders.extend(versions.read_dir().into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let entries = folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().flatten();
    entries.filter(|entry| is_python(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
}

/// `python`, `python3`, `python3.11`, `python3.13t`, `pypy3`; not `python3-config`.
fn is_python(name: &str) -> bool {
    let rest = name.strip_prefix("python").or(name.strip_prefix("pypy"));
    rest.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || b".dt".contains(&byte)))
}

fn ask(program: &PathBuf) -> Option<Installed> {
    let output =
        Command::new(program).args(["-S", "-c", SCRIPT]).stderr(Stdio::null()).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut lines = text.lines();
    // Python 2 does not compile the script, and is passed over.
    let mut words = lines.next()?.split(' ');
    let mut number = || words.next()?.parse().ok();
    let version = (number()?, number()?, number()?);
    let level = words.next()?.to_string();
    let flags = lines.next()?.to_string();
    let implementation = lines.next()?.to_string();
    let program = PathBuf::from(lines.next()?).canonicalize().ok()?;
    Some(Installed { version, program, level, flags, implementation })
}
