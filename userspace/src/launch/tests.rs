//! Tests of the shim: its files, its end, and what it does in every Python found on this machine.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use object::{Object, ObjectSymbol};

use super::*;

/// Waits until `done` or ten seconds have passed.
fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn files_have_their_modes_and_go_with_the_shim() {
    let shim = Shim::create().unwrap();
    let path = shim.path().to_owned();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    for (name, content) in FILES {
        let file = path.join(name.to_str().unwrap());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o644, "{}", file.display());
        assert_eq!(&std::fs::read(&file).unwrap(), content);
    }
    assert!(shim.extension_path().is_file());
    drop(shim);
    assert!(!path.exists());
}

#[test]
fn the_debugger_is_there_when_asked_for_and_goes_with_the_shim() {
    let shim = Shim::create().unwrap();
    let path = shim.path().to_owned();
    let file = path.join("rmprof-debugger.py");
    assert!(!file.exists());
    shim.add_debugger(1 << 20).unwrap();
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("LIMIT = 1048576\n# "));
    drop(shim);
    assert!(!path.exists());
}

#[test]
fn the_script_from_outside_is_told_by_its_lines() {
    let [(_, script), (_, debugger)] = files_from_outside("/run/rmprof-bpf-1-2");
    let lines: Vec<&str> = script.lines().collect();
    assert!(lines[..SCRIPT_BEGINS as usize - 1].iter().all(|line| line.is_empty()));
    assert_eq!(lines[SCRIPT_BEGINS as usize - 1], "import sys");
    assert!(debugger.starts_with(DEBUGGER) && debugger.contains("\n_begin(FRAME)\n"));
}

#[test]
fn pythonpath_puts_the_shim_first() {
    let shim = Shim::create().unwrap();
    let own = shim.path().to_str().unwrap().to_owned();
    assert_eq!(shim.pythonpath(None), OsStr::new(&own));
    assert_eq!(shim.pythonpath(Some(OsStr::new(""))), OsStr::new(&own));
    assert_eq!(shim.pythonpath(Some(OsStr::new("/a::b"))), OsString::from(format!("{own}:/a::b")));
}

#[test]
fn the_directory_goes_even_when_the_janitor_was_killed() {
    let shim = Shim::create().unwrap();
    let path = shim.path().to_owned();
    nix::sys::signal::kill(shim.folder.janitor(), nix::sys::signal::SIGKILL).unwrap();
    drop(shim);
    assert!(!path.exists());
}

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "run by the_directory_goes_when_we_are_killed"]
#[allow(clippy::zombie_processes)] // this process is about to be killed
fn hold_a_shim() {
    if std::env::var_os("RMPROF_TEST_HOLD").is_none() {
        return; // `cargo test -- --ignored`
    }
    let shim = Shim::create().unwrap();
    // A program of ours, started while the janitor's pipe is open: it must not keep the janitor waiting.
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    if std::env::var_os("RMPROF_TEST_NOTICE").is_some() {
        use std::io::Write;
        let mut notice = std::fs::File::from(shim.notice().unwrap());
        notice.write_all(&i32::try_from(child.id()).unwrap().to_ne_bytes()).unwrap();
    }
    println!("\nSHIM {} {} {}", shim.folder.janitor(), child.id(), shim.path().display());
    std::thread::sleep(Duration::from_secs(60));
}

/// Once the janitor knows of a program, the directory stays until that has ended too.
#[test]
fn the_directory_stays_while_the_program_lives() {
    let mut holder = holder().env("RMPROF_TEST_NOTICE", "1").spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("SHIM ")).unwrap();
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let (janitor, sleeper, path) = (words[1], words[2], PathBuf::from(words[3]));
    holder.kill().unwrap();
    holder.wait().unwrap();
    // It has seen our end when it waits for the program: poll, not read.
    let waits = || std::fs::read_to_string(format!("/proc/{janitor}/wchan")).is_ok_and(|at| at.contains("poll"));
    assert!(eventually(waits));
    assert!(path.is_dir());
    // Its pipe, where the directory is, and the program: no terminal, no pipe of anybody else, no link on a probe.
    let descriptors = || std::fs::read_dir(format!("/proc/{janitor}/fd")).unwrap().count();
    assert!(eventually(|| descriptors() == 3), "{} descriptors", descriptors());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper.parse().unwrap()), nix::sys::signal::SIGKILL).unwrap();
    assert!(eventually(|| !path.exists()));
}

/// A copy of this program that holds a shim.
fn holder() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "launch::tests::hold_a_shim"]);
    command.env("RMPROF_TEST_HOLD", "1").stdout(Stdio::piped());
    command
}

#[test]
fn the_directory_goes_when_we_are_killed() {
    let mut holder = holder().spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("SHIM ")).unwrap();
    let mut words = line.splitn(4, ' ').skip(1);
    let janitor: i32 = words.next().unwrap().parse().unwrap();
    let sleeper: i32 = words.next().unwrap().parse().unwrap();
    let path = PathBuf::from(words.next().unwrap());
    assert!(path.is_dir());
    let comm = format!("/proc/{janitor}/comm");
    assert!(eventually(|| std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "rmprof-janitor")));
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM, nix::sys::signal::SIGHUP] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(janitor), signal).unwrap();
    }
    assert!(path.is_dir());
    holder.kill().unwrap();
    assert_eq!(holder.wait().unwrap().signal(), Some(9));
    assert!(eventually(|| !path.exists()));
    assert!(Path::new(&format!("/proc/{sleeper}")).exists(), "the janitor waited for the program");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper), nix::sys::signal::SIGKILL).unwrap();
}

#[test]
fn sites_are_a_nop_and_a_return() {
    let places = site_places().unwrap();
    assert_eq!(places.len(), SITES.len());
    let body: &[u8] =
        if cfg!(target_arch = "x86_64") { &[0x90, 0xc3] } else { &[0x1f, 0x20, 0x03, 0xd5, 0xc0, 0x03, 0x5f, 0xd6] };
    for place in places {
        let start = usize::try_from(place.file_offset).unwrap();
        assert_eq!(&EXTENSION[start..start + body.len()], body, "{}", place.symbol);
    }
}

#[test]
fn the_extension_needs_nothing_but_python() {
    let elf = object::File::parse(EXTENSION).unwrap();
    for symbol in elf.dynamic_symbols().filter(|symbol| symbol.is_undefined()) {
        let name = symbol.name().unwrap();
        let of_ours = name == "rmprof_tally_line" && symbol.is_weak();
        assert!(name.is_empty() || name.starts_with("Py") || name.starts_with("_Py") || of_ours, "{name}");
    }
}

/// CPythons of this machine from 3.6 to 3.15: RMPROF_TEST_PYTHONS (separated by colons), else PATH and pyenv's.
fn pythons() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("RMPROF_TEST_PYTHONS") {
        return std::env::split_paths(&list).collect();
    }
    let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    if let Some(home) = std::env::var_os("HOME") {
        let versions = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten();
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let names = (6..=15).map(|minor| format!("python3.{minor}"));
    let found = names.flat_map(|name| folders.iter().map(move |folder| folder.join(&name)).collect::<Vec<_>>());
    let script = "import sys; sys.exit(sys.implementation.name != 'cpython')";
    found
        .filter(|path| !path.components().any(|part| part.as_os_str() == "shims"))
        .filter_map(|path| path.canonicalize().ok())
        .filter(|path| Command::new(path).args(["-c", script]).status().is_ok_and(|status| status.success()))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// A shim whose extension remembers what the sites were given.
fn test_shim() -> Shim {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/launch");
    let folder = tempfile::tempdir().unwrap(); // tests that run side by side each make one
    let object = folder.path().join("line_events.so");
    let status = Command::new(std::env::var("CLANG").unwrap_or_else(|_| "clang".into()))
        .args(include_str!("line_events.flags").split_whitespace())
        .arg("-DRMPROF_TEST")
        .arg(root.join("line_events.c"))
        .arg("-o")
        .arg(&object)
        .status()
        .unwrap();
    assert!(status.success());
    let shim = Shim::create().unwrap();
    std::fs::copy(&object, shim.extension_path()).unwrap();
    shim
}

#[test]
fn line_events_agree_with_the_interpreter() {
    let shim = test_shim();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/launch/check/line_events.py");
    for python in pythons() {
        let output = Command::new(&python).arg(&script).env("PYTHONPATH", shim.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{}: {said}", python.display());
        assert!(output.status.success(), "{}: {said}{}", python.display(), String::from_utf8_lossy(&output.stderr));
    }
}

/// The same of functions that nobody marked: all files are asked for, as the scenarios' have names of their own.
#[test]
fn line_events_of_every_function_agree_with_the_interpreter() {
    let shim = test_shim();
    shim.add_every(true, &[]).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/launch/check/line_events.py");
    for python in pythons() {
        let output = Command::new(&python).arg(&script).arg("every").env("PYTHONPATH", shim.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{}: {said}", python.display());
        assert!(output.status.success(), "{}: {said}{}", python.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn programs_behave_as_without_the_shim() {
    let shim = Shim::create().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/launch/check/behaviour.py");
    for python in pythons() {
        let output: Output = Command::new(&python).arg("-IS").arg(&script).arg(shim.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{}: {said}", python.display());
        assert!(output.status.success(), "{}: {said}{}", python.display(), String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(std::fs::read_dir(shim.path()).unwrap().count(), FILES.len(), "a Python left a file in the shim");
}
