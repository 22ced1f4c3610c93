use super::*;
use crate::target::maps::mappings;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// Checks what a watcher is promised, and counts.
#[derive(Default)]
struct Recorder {
    alive: HashSet<Pid>,
    forks: usize,
    execs: usize,
    loads: usize,
    exits: usize,
    left: Vec<Pid>,
    ticks: usize,
    /// Base names of the programs loaded, in order.
    programs: Vec<String>,
    /// Between exec and load.
    loading: HashSet<Pid>,
    /// Whether processes may be killed at any instant: then they need not be found held.
    violent: bool,
}

impl Recorder {
    fn check_held(&self, pid: Pid) {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default().trim().chars().next();
        assert!(state == Some('t') || self.violent, "{pid} is not held: {state:?}");
    }
}

impl Watcher for Recorder {
    fn forked(&mut self, parent: Pid, child: Pid) {
        self.check_held(parent);
        assert!(self.alive.contains(&parent) || self.violent);
        assert!(self.alive.insert(child), "{child} announced twice");
        self.forks += 1;
    }

    fn executed(&mut self, pid: Pid) -> AfterExec {
        self.check_held(pid);
        self.alive.insert(pid);
        self.loading.insert(pid);
        self.execs += 1;
        AfterExec::HoldWhenLoaded
    }

    fn loaded(&mut self, pid: Pid, _: Option<Announcement>) {
        self.check_held(pid);
        assert!(self.loading.remove(&pid));
        self.loads += 1;
        if let Ok(path) = crate::target::maps::executable_path(pid) {
            self.programs.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }

    fn exited(&mut self, pid: Pid, _status: ExitStatus) {
        assert!(self.alive.remove(&pid), "{pid} ended unannounced");
        self.loading.remove(&pid);
        self.exits += 1;
    }

    fn left(&mut self, pid: Pid) {
        assert!(self.alive.remove(&pid));
        self.left.push(pid);
    }

    fn tick(&mut self) {
        self.ticks += 1;
    }
}

pub(super) fn command(program: &str, args: &[&str]) -> Command {
    let args = args.iter().map(OsString::from).collect();
    Command { program: program.into(), args, env: std::env::vars_os().collect(), credentials: None }
}

fn observe_with(mut recorder: Recorder, program: &str, args: &[&str]) -> (i32, Recorder) {
    let status = run(&command(program, args), None, &Ending::default(), &mut recorder).unwrap();
    (exit_code(status), recorder)
}

fn observe(program: &str, args: &[&str]) -> (i32, Recorder) {
    let (code, recorder) = observe_with(Recorder::default(), program, args);
    assert!(recorder.alive.is_empty(), "never heard the end of {:?}", recorder.alive);
    (code, recorder)
}

/// A Python without the shims of a version manager, which run a shell first.
pub(super) fn python() -> Option<&'static str> {
    ["/usr/bin/python3.11", "/usr/bin/python3"].into_iter().find(|path| Path::new(path).exists())
}

fn observe_python(script: &str) -> Option<(i32, Recorder)> {
    Some(observe(python()?, &["-c", script]))
}

#[test]
fn exit_statuses() {
    assert_eq!(observe("true", &[]).0, 0);
    assert_eq!(observe("sh", &["-c", "exit 3"]).0, 3);
    assert_eq!(observe("sh", &["-c", "kill -KILL $$"]).0, 137);
    assert_eq!(observe("sh", &["-c", "kill -SEGV $$"]).0, 139);
    assert_eq!(observe("sh", &["-c", "kill -TERM $$"]).0, 143);
    assert_eq!(exit_code(ExitStatus::from_raw(42 << 8)), 42);
    if python().is_some() {
        assert_eq!(observe_python("import os; os._exit(7)").unwrap().0, 7);
        assert_eq!(observe_python("import ctypes; ctypes.string_at(0)").unwrap().0, 139);
    }
}

#[test]
fn shells_pipelines_wrappers_and_scripts() {
    let (code, seen) = observe("sh", &["-c", "echo a | cat | wc -c >/dev/null; (exit 4); exit $?"]);
    assert_eq!((code, seen.forks, seen.execs), (4, 4, 3));
    let (code, seen) = observe("env", &["A=1", "sh", "-c", "exec sh -c 'exec true'"]);
    assert_eq!((code, seen.forks, seen.execs, seen.exits), (0, 0, 4, 1));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    for (text, programs) in [("#!/bin/bash\ntrue\nexit 5\n", "bash"), ("exit 5\n", "dash")] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let (code, seen) = observe(path.to_str().unwrap(), &[]);
        assert_eq!((code, seen.programs), (5, vec![programs.to_owned()]));
    }
}

#[test]
fn what_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    let error =
        |program: &str| run(&command(program, &[]), None, &Ending::default(), &mut Recorder::default()).unwrap_err();
    for name in ["no-such-program-at-all", "./no-such-program", ""] {
        assert!(matches!(error(name), SpawnError::NotFound { .. }), "{name}");
        assert_eq!(error(name).exit_code(), 127);
    }
    std::fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    let error = |program: &Path| error(program.to_str().unwrap());
    assert!(matches!(error(&path), SpawnError::NotExecutable { errno: nix::errno::Errno::EACCES, .. }));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let missing = error(&path);
    assert!(missing.hint().contains("#!") && missing.exit_code() == 126, "{missing}");
    assert_eq!(error(folder.path()).exit_code(), 126);
    let nul = Command { args: vec!["a\0b".into()], ..command("true", &[]) };
    assert_eq!(run(&nul, None, &Ending::default(), &mut Recorder::default()).unwrap_err().exit_code(), 125);
}

#[test]
fn python_processes_and_threads() {
    for (method, forks) in [("fork", 3), ("spawn", 0), ("forkserver", 3)] {
        let script = format!(
            "import multiprocessing as m\nif __name__ == '__main__':\n c = m.get_context('{method}')\n \
             p = [c.Process(target=print, args=('',), kwargs={{'end': ''}}) for _ in range(3)]\n \
             [x.start() for x in p]; [x.join() for x in p]\n raise SystemExit(sum(x.exitcode for x in p) + 9)"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program.py");
        std::fs::write(&path, script).unwrap();
        let Some(python) = python() else { return };
        let (code, seen) = observe_with(Recorder::default(), python, &[path.to_str().unwrap()]);
        assert_eq!(code, 9, "{method}");
        assert!(seen.forks >= forks, "{method}: {}", seen.forks);
    }
    let script = "import subprocess as s, threading as t\n\
                  def f():\n for _ in range(5): s.run(['true'], check=True)\n\
                  x = [t.Thread(target=f) for _ in range(8)]\n[y.start() for y in x]; [y.join() for y in x]";
    let (code, seen) = observe_python(script).unwrap();
    // vfork: each child is heard of first at its exec.
    assert_eq!((code, seen.execs, seen.exits), (0, 41, 41));
}

#[test]
fn threads_that_exec_and_leaders_that_end_first() {
    let script = "import os, threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n\
                  threading.Thread(target=lambda: os.execvp('sh', ['sh', '-c', 'exit 6'])).start()\ntime.sleep(60)";
    let Some((code, seen)) = observe_python(script) else { return };
    assert_eq!((code, seen.execs, seen.exits), (6, 2, 1));
    // SYS_exit ends the first thread alone; the process lives until the other one ends it.
    let number = libc::SYS_exit;
    let script = format!(
        "import ctypes, os, threading, time\n\
         def f():\n time.sleep(0.2)\n if os.fork() == 0: os._exit(0)\n os._exit(8)\n\
         threading.Thread(target=f).start()\nctypes.CDLL(None).syscall({number}, 0)"
    );
    // The first thread is a zombie when the other one forks: the process is held all the same.
    let recorder = Recorder { violent: true, ..Recorder::default() };
    let (code, seen) = observe_with(recorder, python().unwrap(), &["-c", &script]);
    assert_eq!((code, seen.forks), (8, 1));
}

#[test]
fn job_control_and_signals_pass_unchanged() {
    let script = "import os, signal, time\n\
        got = []\n\
        for n in (signal.SIGUSR1, signal.SIGTRAP, signal.SIGRTMIN + 3, signal.SIGINT): signal.signal(n, lambda s, f: got.append(s))\n\
        for n in (signal.SIGUSR1, signal.SIGTRAP, signal.SIGRTMIN + 3, signal.SIGINT): os.kill(os.getpid(), n)\n\
        assert len(got) == 4, got\n\
        for how in (signal.SIGSTOP, signal.SIGTSTP):\n \
        pid = os.fork()\n \
        if pid == 0:\n  os.setpgid(0, 0); os.kill(os.getpid(), how); os._exit(3)\n \
        _, status = os.waitpid(pid, os.WUNTRACED)\n \
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == how, status\n \
        time.sleep(0.1)\n \
        assert os.waitpid(pid, os.WNOHANG | os.WUNTRACED) == (0, 0)\n \
        os.kill(pid, signal.SIGCONT)\n \
        _, status = os.waitpid(pid, os.WCONTINUED)\n \
        assert os.WIFCONTINUED(status) or os.WEXITSTATUS(status) == 3, status\n \
        if os.WIFCONTINUED(status): assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 3";
    let Some((code, seen)) = observe_python(script) else { return };
    assert_eq!((code, seen.forks), (0, 2));
    // Stopped and never continued, then killed.
    let script = "import os, signal\npid = os.fork()\nif pid == 0: os.kill(os.getpid(), signal.SIGSTOP)\n\
        os.waitpid(pid, os.WUNTRACED); os.kill(pid, signal.SIGKILL)\n\
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9";
    assert_eq!(observe_python(script).unwrap().0, 0);
}

#[test]
fn a_daemon_is_left_running() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("done");
    let script = format!("setsid sh -c 'sleep 0.7; echo x > {}' >/dev/null 2>&1 & exit 2", path.display());
    let begun = Instant::now();
    let (code, seen) = observe_with(Recorder::default(), "sh", &["-c", &script]);
    assert!(code == 2 && begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
    assert!(!seen.left.is_empty() && seen.alive.is_empty());
    let status = std::fs::read_to_string(format!("/proc/{}/status", seen.left[0])).unwrap();
    assert!(status.contains("TracerPid:\t0\n") && !status.contains("State:\tT"), "{status}");
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the daemon did not get to its end");
        std::thread::sleep(Duration::from_millis(10));
    }
    // One that is stopped stays stopped.
    let script = "sh -c 'kill -STOP $$; exit' & sleep 0.2; exit 0";
    let (_, seen) = observe_with(Recorder::default(), "sh", &["-c", script]);
    // It wakes for an instant to stop again, untraced.
    let stopped = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", seen.left[0])).unwrap();
        status.contains("TracerPid:\t0\n") && status.contains("State:\tT")
    };
    let begun = Instant::now();
    while !stopped() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it was stopped and runs");
        std::thread::yield_now();
    }
    nix::sys::signal::kill(seen.left[0], nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Processes and threads killed at every instant of their making: nothing may hang, panic or stay behind.
#[test]
fn a_massacre() {
    let script = "import os, signal, subprocess, threading, time\n\
        for i in range(150):\n \
        pid = os.fork()\n \
        if pid == 0:\n  \
        [threading.Thread(target=time.sleep, args=(5,)).start() for _ in range(i % 4)]\n  \
        while True:\n   \
        if os.fork() == 0: os.execvp('true', ['true'])\n   \
        os.wait()\n \
        time.sleep(i % 10 / 1000)\n \
        os.kill(pid, signal.SIGKILL)\n \
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9";
    let Some(python) = python() else { return };
    let recorder = Recorder { violent: true, ..Recorder::default() };
    let (code, seen) = observe_with(recorder, python, &["-c", script]);
    assert_eq!(code, 0);
    assert!(seen.forks > 150 && seen.alive.is_empty(), "{} {:?}", seen.forks, seen.alive);
}

/// Asked for by itself, in the middle of a program that makes processes all the time, some in sessions of their own.
#[test]
fn all_end_that_were_started_where_that_is_asked_for() {
    struct Asks(Recorder, Ending);
    impl Watcher for Asks {
        fn forked(&mut self, parent: Pid, child: Pid) {
            self.0.forked(parent, child);
        }
        fn executed(&mut self, pid: Pid) -> AfterExec {
            let after = self.0.executed(pid);
            if self.0.execs == 60 {
                self.1.ask();
            }
            after
        }
        fn loaded(&mut self, pid: Pid, said: Option<Announcement>) {
            self.0.loaded(pid, said);
        }
        fn exited(&mut self, pid: Pid, status: ExitStatus) {
            self.0.exited(pid, status);
        }
        fn left(&mut self, pid: Pid) {
            self.0.left(pid);
        }
    }
    let worker = "(trap '' TERM INT HUP; while :; do setsid sleep 0.01 & true; done)";
    let all = format!("for i in 1 2 3 4 5 6; do {worker} & done; sleep 100");
    for _ in 0..5 {
        let recorder = Recorder { violent: true, ..Recorder::default() };
        let mut watcher = Asks(recorder, Ending::default());
        let ending = watcher.1.clone();
        let status = run(&command("sh", &["-c", &all]), None, &ending, &mut watcher).unwrap();
        assert_eq!(exit_code(status), 137);
        assert!(watcher.0.alive.is_empty() && watcher.0.left.is_empty(), "{:?}", watcher.0.alive);
    }
}

#[test]
fn ticks_come_while_nothing_happens() {
    let (_, seen) = observe("sleep", &["0.6"]);
    assert!((6..=14).contains(&seen.ticks), "{}", seen.ticks);
}

#[test]
fn everything_is_mapped_when_loaded() {
    struct Maps(Vec<String>);
    impl Watcher for Maps {
        fn forked(&mut self, _: Pid, _: Pid) {}
        fn executed(&mut self, pid: Pid) -> AfterExec {
            let libraries =
                mappings(pid).unwrap().into_iter().filter(|mapping| mapping.permissions.execute && mapping.is_file());
            assert!(libraries.count() <= 2);
            AfterExec::HoldWhenLoaded
        }
        fn loaded(&mut self, pid: Pid, _: Option<Announcement>) {
            let libraries =
                mappings(pid).unwrap().into_iter().filter(|mapping| mapping.permissions.execute && mapping.is_file());
            self.0 = libraries.map(|mapping| mapping.file_name().to_string_lossy().into_owned()).collect();
        }
        fn exited(&mut self, _: Pid, _: ExitStatus) {}
    }
    let libraries = |program: &str, args: &[&str]| {
        let mut watcher = Maps(Vec::new());
        run(&command(program, args), None, &Ending::default(), &mut watcher).unwrap();
        watcher.0
    };
    let has = |found: &[String], start: &str| found.iter().any(|name| name.starts_with(start));
    if let Some(python) = python() {
        let found = libraries(python, &["-c", ""]);
        assert!(has(&found, "libc.so") && has(&found, "libm.so") && has(&found, "libexpat"), "{found:?}");
        let program = std::fs::canonicalize(python).unwrap();
        let loader =
            crate::target::elf::ElfFile::parse(std::fs::File::open(&program).unwrap()).unwrap().interpreter().unwrap();
        let direct = libraries(&loader, &[program.to_str().unwrap(), "-c", ""]);
        assert!(has(&direct, "libc.so") && has(&direct, "libexpat"), "{direct:?}");
    }
    // Where a compiler is: a static program, and one of musl's, whose loader is its C library.
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("a.c"), folder.path().join("a"));
    std::fs::write(
        &source,
        "#include <unistd.h>\n#include <zlib.h>\nint main(void) { getppid(); return 0; }\n"
            .replace("#include <zlib.h>\n", ""),
    )
    .unwrap();
    for (compiler, option, expected) in
        [("gcc", "-static", "a"), ("musl-gcc", "-O1", "libc.so"), ("musl-gcc", "-static", "a")]
    {
        let build = std::process::Command::new(compiler).arg(option).arg("-o").args([&program, &source]).output();
        if build.is_ok_and(|output| output.status.success()) {
            let found = libraries(program.to_str().unwrap(), &[]);
            println!("{compiler} {option}: {found:?}");
            assert!(has(&found, expected) || has(&found, "ld-musl"), "{compiler} {option}: {found:?}");
        }
    }
}

/// Needs root: the program runs as another user, with that user's groups and nothing of ours.
#[test]
fn root_credentials() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let who = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let credentials = crate::target::credentials::Credentials {
        user: who.uid,
        group: who.gid,
        groups: vec![who.gid, nix::unistd::Gid::from_raw(4)],
        name: who.name,
        home: who.dir,
        shell: who.shell,
    };
    let (uid, gid) = (who.uid, who.gid);
    let test = format!(
        "test \"$(id -ru) $(id -u) $(id -g)\" = '{uid} {uid} {gid}' && id -G | grep -qw 4 && ! id -G | grep -qw 0 && grep -q 'CapEff:.0000000000000000' /proc/self/status"
    );
    let command = Command { credentials: Some(credentials), ..command("sh", &["-c", &test]) };
    let status = run(&command, None, &Ending::default(), &mut Recorder::default()).unwrap();
    assert_eq!(exit_code(status), 0);
    let refused = Command { program: "/root/no".into(), ..command };
    assert_eq!(run(&refused, None, &Ending::default(), &mut Recorder::default()).unwrap_err().exit_code(), 126);
}
