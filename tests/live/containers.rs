//! Processes in another root with a C library of its own, in other PID and user namespaces, measured from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::{Run, Target, near, root, supported_pythons};

const SERVER: &str = "
import os, sys
kept = []

def handle():
    return bytearray(200_000)

def serve():
    print('ready', flush=True)
    for line in sys.stdin:
        kept.append(handle())
        exec(compile('kept.append(bytearray(300_000))', '/srv/escape.py', 'exec'))
        print('done', flush=True)
serve()
";

/// The tree that `scripts/pythons` unpacks, from one of its Pythons.
fn tree() -> Option<PathBuf> {
    let inside = |path: &Path| path.ancestors().find(|folder| folder.ends_with("pythons/tree")).map(Path::to_owned);
    supported_pythons().iter().find_map(|python| inside(&python.path))
}

/// A file of the tree by the start of its name, as seen from the tree.
fn find(tree: &Path, folders: &[&str], start: &str) -> Option<PathBuf> {
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(tree.join(folder)).ok()).flatten().flatten();
    let mut paths = entries.map(|entry| entry.path());
    let path = paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))?;
    Some(Path::new("/").join(path.strip_prefix(tree).unwrap()))
}

/// A root with places for programs and libraries, the server, and a link that leads out of it.
fn container() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for folder in ["usr", "proc", "srv", "etc"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    for folder in ["lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{folder}"), root.path().join(folder)).unwrap();
    }
    std::fs::write(root.path().join("srv/server.py"), SERVER.trim_start()).unwrap();
    // Seen from outside, that is a file with a line 1; in the container there is none.
    std::os::unix::fs::symlink("/etc/passwd", root.path().join("srv/escape.py")).unwrap();
    // Others than root may look for files in it.
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    root
}

#[test]
fn root_in_a_container_the_leak_is_the_first_line() {
    if !root() {
        return;
    }
    let Some(tree) = tree() else {
        println!("passed over: no Python of scripts/pythons on PATH");
        return;
    };
    let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"];
    let loader = find(&tree, &libraries, "ld-linux").unwrap();
    let program = find(&tree, &["usr/bin"], "python3.14").unwrap();
    for namespaces in [
        &["--mount"][..],
        &["--mount", "--pid", "--fork"],
        &["--user", "--map-root-user", "--mount", "--pid", "--fork"],
    ] {
        let container = container();
        let inside = "mount --rbind \"$1/usr\" \"$2/usr\" && exec chroot \"$2\" \"$3\" --library-path \"${3%/*}\" \"$4\" -S /srv/server.py";
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sh", "-c", inside, "sh"]).args([&tree, container.path(), &loader, &program]);
        let mut target = Target::below(&mut command);
        for session in ["attach", "system"] {
            let run = Run::json_of([session]);
            let run =
                if session == "attach" { run.word(target.pid()) } else { run.words(["--command", "*/srv/server.py"]) };
            let started = run.start_on(&target);
            for _ in 0..50 {
                target.step("request");
            }
            started.signal(Signal::SIGINT);
            let report = started.end().expect(0).report();
            let process = report.process(target.pid().parse().unwrap());
            let line = SERVER.trim_start().lines().position(|line| line.contains("200_000")).unwrap() as u32 + 1;
            near(process.line("handle", line).own(), 10_000_000, 1 << 20);
            assert_eq!(process.line("handle", line).source(), Some("    return bytearray(200_000)"), "{namespaces:?}");
            let escape = process.line("<module>", 1);
            near(escape.own(), 15_000_000, 1 << 20);
            assert_eq!(escape.source(), None, "a link was followed out of the container");
            if session == "system" {
                let first = &report.0["growth"][0];
                assert_eq!(first["filename"], "/srv/escape.py", "{report}");
                assert_eq!(report.0["growth"][1]["function"], "handle", "{report}");
            }
        }
        target.end();
    }
}
