//! `rmprof-bpf doctor`: what this kernel, these privileges and these Pythons allow, and how to mend the rest.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use caps::CapSet;

use crate::kernel::features;
use crate::report::escape;

/// The test program's second line makes a `bytes` of so many, and writes to all of them: mimalloc's memory counts where it is touched.
const ASKED: i64 = 1_000_003;

/// What it asks of the C allocator: the same and the object's head (Objects/bytesobject.c, PyBytesObject_SIZE).
const EXPECTED: i64 = ASKED + 33;

/// Examines the machine. Succeeds (status 0) when heap mode works with at least one Python that was found.
pub fn run(pythons: &[PathBuf]) -> ExitCode {
    let mut text = String::new();
    kernel(&mut text);
    let kernel_works = features_of(&mut text);
    let rights_missing = rights(&mut text);
    let any = examine_pythons(&mut text, pythons, kernel_works && !rights_missing);
    // Nobody to tell is no reason for another status.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if kernel_works && !rights_missing && any { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn line(text: &mut String, mark: &str, name: &str, detail: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  {mark:<4} {name:<28} {}", escape(detail));
}

fn kernel(text: &mut String) {
    let Ok(name) = nix::sys::utsname::uname() else { return };
    let _ = writeln!(text, "Kernel: {} {}", name.release().to_string_lossy(), name.machine().to_string_lossy());
    match std::fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) if modes.contains("[confidentiality]") => {
            line(text, "no", "lockdown", "confidentiality: the kernel reads no program's memory for us");
            let _ = writeln!(text, "       hint: boot with lockdown=integrity or none");
        }
        Ok(modes) => line(text, "ok", "lockdown", modes.trim()),
        Err(_) => line(text, "ok", "lockdown", "none"),
    }
}

/// Returns whether heap mode's probes load.
fn features_of(text: &mut String) -> bool {
    let mut heap = false;
    for answer in features::ask() {
        match &answer.found {
            Ok(detail) => line(text, "ok", answer.name, detail),
            Err(reason) => {
                line(text, "no", answer.name, reason.lines().next().unwrap_or_default());
                let _ = writeln!(text, "       hint: {}", answer.cost);
            }
        }
        heap = answer.name == "probes of heap mode" && answer.found.is_ok() || heap;
    }
    heap
}

/// Returns whether a capability is missing.
fn rights(text: &mut String) -> bool {
    let _ = writeln!(text, "\nPrivileges:");
    let mut missing = false;
    for need in crate::rights::NEEDS {
        let name = need.capability.to_string();
        if caps::has_cap(None, CapSet::Effective, need.capability).unwrap_or(false) {
            line(text, "ok", &name, need.purpose);
        } else {
            missing = true;
            line(text, "no", &name, &format!("needed for {}", need.purpose));
        }
    }
    if missing {
        let _ =
            writeln!(text, "       hint: run with sudo, or once: sudo setcap {}=ep {}", names(), own_path().display());
    }
    missing
}

fn names() -> String {
    let names: Vec<String> =
        crate::rights::NEEDS.iter().map(|need| need.capability.to_string().to_lowercase()).collect();
    names.join(",")
}

fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "rmprof-bpf".into())
}

/// Returns whether at least one Python was measured and the numbers were right.
fn examine_pythons(text: &mut String, named: &[PathBuf], measure: bool) -> bool {
    let _ = writeln!(text, "\nPythons (layouts are known for {}):", crate::python::layout::supported_range());
    let found = if named.is_empty() { find_pythons() } else { named.to_vec() };
    let mut any = false;
    for python in &found {
        let name = python.display().to_string();
        let said = if measure { measured(python) } else { Err("not tried: see above".to_owned()) };
        match said {
            Ok(detail) => {
                any = true;
                line(text, "ok", &name, &detail);
            }
            Err(reason) => {
                let mut lines = reason.lines();
                line(text, "no", &name, lines.next().unwrap_or_default());
                lines.filter(|more| more.starts_with("hint: ")).for_each(|more| {
                    let _ = writeln!(text, "       {}", escape(more));
                });
            }
        }
    }
    if found.is_empty() {
        line(text, "no", "python3", "none found on PATH");
        let _ = writeln!(text, "       hint: name one: rmprof-bpf doctor /path/to/python3");
    }
    any
}

/// Every `python3`, `python3.N` and variant of that (`python3.Nt`) on PATH and every pyenv version of the user, each file once.
pub fn find_pythons() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let home = std::env::var_os("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
    let versions = home.and_then(|home| std::fs::read_dir(home.join("versions")).ok());
    directories.extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin")));
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for directory in directories {
        let names = (6..30).flat_map(|minor| ["", "t", "d", "td"].map(|variant| format!("python3.{minor}{variant}")));
        for name in std::iter::once("python3".to_owned()).chain(names) {
            let candidate = directory.join(name);
            let Ok(file) = candidate.canonicalize() else { continue };
            let is_program = std::fs::read(&file).is_ok_and(|content| content.starts_with(b"\x7fELF"));
            if is_program && seen.insert(file) {
                found.push(candidate);
            }
        }
    }
    found.sort();
    found
}

/// Runs the Python under ourselves with a program whose second line asks for a known number of bytes, and looks for them.
fn measured(python: &Path) -> Result<String, String> {
    let output = Command::new(own_path())
        .args(["run", "--format", "json", "--as-root", "--"])
        .arg(python)
        .args(["-c", &format!("pass\nkept = b'x' * {ASKED}\n")])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace("rmprof-bpf: ", "");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| said.clone())?;
    let process = &report["processes"][0];
    let Some(version) = process["python"].as_str() else {
        return Err(if said.is_empty() { "no Python was found in it".into() } else { said });
    };
    let lines = process["functions"].as_array().into_iter().flatten().flat_map(|function| function["lines"].as_array());
    // A page or two of arena may come with it; of a free-threaded build all is pages, some of which were touched before.
    let least = if version.ends_with('t') || version.ends_with("td") { EXPECTED - 131_072 } else { EXPECTED };
    let right = |bytes: i64| (least..EXPECTED + 131_072).contains(&bytes);
    let right = lines.flatten().any(|line| line["line"] == 2 && line["allocated_bytes"].as_i64().is_some_and(right));
    if right {
        Ok(format!("{version}: layout known and verified, {} bytes found on their line", EXPECTED))
    } else {
        Err(format!("{version}: {} bytes were asked for and not found on their line", EXPECTED))
    }
}
