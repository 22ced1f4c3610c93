//! Processes in another root with a C library of its own, in other PID and user namespaces, measured from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::{Run, Target, any_python, near, root, script, supported_pythons};

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
    let pythons: Vec<PathBuf> =
        ["python3.14", "python3.15"].iter().filter_map(|name| find(&tree, &["usr/bin"], name)).collect();
    assert!(!pythons.is_empty());
    let namespaces = [
        &["--mount"][..],
        &["--mount", "--pid", "--fork"],
        &["--user", "--map-root-user", "--mount", "--pid", "--fork"],
    ];
    for (namespaces, program) in
        namespaces.iter().flat_map(|namespaces| pythons.iter().map(move |python| (namespaces, python)))
    {
        let container = container();
        let inside = "mount --rbind \"$1/usr\" \"$2/usr\" && exec chroot \"$2\" \"$3\" --library-path \"${3%/*}\" \"$4\" -S /srv/server.py";
        let mut command = Command::new("unshare");
        command.args(*namespaces).args(["sh", "-c", inside, "sh"]).args([
            tree.as_path(),
            container.path(),
            &loader,
            program,
        ]);
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

/// A control group of the name that a kubelet gives to a container of a pod, where one can be made.
struct Group {
    made: Vec<PathBuf>,
}

impl Group {
    fn new(parts: &[String]) -> Option<Self> {
        let base = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let base = base.into_iter().find(|base| base.join("cgroup.controllers").exists())?;
        let (mut group, mut path) = (Self { made: Vec::new() }, base.to_owned());
        for part in parts {
            path.push(part);
            if !path.exists() {
                std::fs::create_dir(&path).ok()?;
                group.made.push(path.clone());
            }
        }
        Some(group)
    }

    fn add(&self, pid: &str) {
        std::fs::write(self.made.last().unwrap().join("cgroup.procs"), pid).unwrap();
    }
}

/// The logs of a pod, where a kubelet would have them: removed again, and what was made for them.
struct Logs(Vec<PathBuf>);

impl Logs {
    fn of(uid: &str, namespace: &str, name: &str) -> Self {
        let mut made = Self(Vec::new());
        for path in [PathBuf::from("/var/log/pods"), format!("/var/log/pods/{namespace}_{name}_{uid}").into()] {
            if !path.exists() {
                std::fs::create_dir(&path).unwrap();
                made.0.push(path);
            }
        }
        made
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = std::fs::remove_dir(path); // not empty: somebody else has logs there by now
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in self.made.iter().rev() {
            let _ = std::fs::remove_dir(path);
        }
    }
}

#[test]
fn root_a_pod_is_named() {
    if !root() {
        return;
    }
    let (id, number) = ("0123456789abcdef".repeat(4), std::process::id());
    let uid = format!("{number:08x}-1c0a-4b8e-9d5a-0a1b2c3d4e5f");
    let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
    let parts = ["kubepods.slice", "kubepods-burstable.slice", &slice, &format!("cri-containerd-{id}.scope")];
    let Some(group) = Group::new(&parts.map(str::to_owned)) else {
        println!("NOT RUN: no control group of version 2 can be made here");
        return;
    };
    let program = script("server.py", SERVER);
    let host = nix::sys::utsname::uname().unwrap().nodename().to_string_lossy().into_owned();
    // Of a pod with the machine's own network `/etc/hostname` is the machine's. Before that, what the kubelet calls it.
    let web = "web-7d4b9c5f6-x2x5p";
    for (name, pod, logs) in [(web, Some(web), None), (&host, None, None), (&host, Some(web), Some("shop"))] {
        let _logs = logs.map(|namespace| Logs::of(&uid, namespace, web));
        let file = program.beside("hostname", name);
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "sh",
            "-c",
            "touch /etc/hostname; mount --bind \"$1\" /etc/hostname && exec \"$2\" \"$3\"",
            "sh",
        ]);
        command.args([&file, &any_python().path, &program.path]);
        let mut target = Target::of(&mut command);
        group.add(&target.pid());
        for by in [&id[..12], &slice, "kubepods.slice"] {
            let started = Run::json_of(["system"]).words(["--cgroup", by]).start_on(&target);
            target.step("request");
            started.signal(Signal::SIGINT);
            let report = started.end().expect(0).report();
            let container = &report.process(target.pid().parse().unwrap()).0["container"];
            assert_eq!(
                (container["id"].as_str(), container["pod_uid"].as_str()),
                (Some(&*id), Some(&*uid)),
                "{report}"
            );
            assert_eq!(container["pod"].as_str(), pod, "{report}");
            assert_eq!(container["pod_namespace"].as_str(), logs, "{report}");
        }
        // For people.
        let started = Run::new(["system", "--cgroup", &id[..12]]).start_on(&target);
        target.step("request");
        started.signal(Signal::SIGINT);
        let text = started.end().expect(0).stdout_text();
        let namespace = logs.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let words = format!("pod {namespace}{}, container {}", pod.unwrap_or(&uid), &id[..12]);
        assert!(text.lines().take(4).any(|line| line.ends_with(&words)), "{text}");
        target.end();
    }
}
