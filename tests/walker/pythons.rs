//! The CPythons of this machine that have a layout: in PATH, of pyenv, of the distribution.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rmprof_bpf::python::layout::{Layout, Variant, for_build};

/// One of them.
pub struct Python {
    /// What starts it.
    pub program: PathBuf,
    /// Of its version.
    pub layout: &'static Layout,
}

/// Final releases of CPython alone: the others have no layout.
const SCRIPT: &str = "import sys, sysconfig
plain = sys.implementation.name == 'cpython' and sys.version_info[3] == 'final'
free_threaded = bool(sysconfig.get_config_var('Py_GIL_DISABLED'))
print(*sys.version_info[:2], int(plain), int(free_threaded), int(hasattr(sys, 'gettotalrefcount')), sys.executable)
";

/// All that are found, each once.
pub fn found() -> Vec<Python> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    folders.push("/usr/bin".into());
    folders.push("/usr/local/bin".into());
    let pyenv = env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".pyenv")));
    let versions = pyenv.and_then(|root| root.join("versions").read_dir().ok());
    folders.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let programs = folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten().flatten();
    let programs = programs.filter(|entry| is_python(&entry.file_name().to_string_lossy()));
    // Several names are links to one file, which is asked once.
    let programs: BTreeMap<PathBuf, PathBuf> =
        programs.filter_map(|entry| Some((entry.path().canonicalize().ok()?, entry.path()))).collect();
    let found: BTreeMap<PathBuf, Python> =
        programs.values().filter_map(|program| ask(program)).map(|python| (python.program.clone(), python)).collect();
    found.into_values().collect()
}

/// `python`, `python3`, `python3.11`, `python3.14t`, `python3.11d`; not `python3-config`.
fn is_python(name: &str) -> bool {
    let version = name.strip_prefix("python");
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || b".dt".contains(&byte)))
}

fn ask(program: &Path) -> Option<Python> {
    let mut command = Command::new(program);
    let output = command.args(["-c", SCRIPT]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut words = text.trim_end().splitn(6, ' ');
    let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let mut flag = || Some(words.next()? == "1");
    let (plain, free_threaded, debug) = (flag()?, flag()?, flag()?);
    let program = PathBuf::from(words.next()?).canonicalize().ok()?;
    for_build(major, minor, Variant::of(free_threaded, debug))
        .filter(|_| plain)
        .map(|layout| Python { program, layout })
}
