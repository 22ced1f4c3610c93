//! `attach --pdb-mmem`: pdb of a process that runs already, in our terminal.

use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};

use crate::common::{Python, Run, Script, Target, Terminal, eventually, every_build, root, script, supported_pythons};

const PROMPT: &str = "(Pdb) ";

/// It has some 10 MiB; each step is a loop of 20 times 10 MB.
const SERVER: &str = "
import sys
kept = []

def handle(size):
    kept.append(bytearray(size))  # grows
    count = len(kept)
    return count

def serve():
    print('ready', flush=True)
    for line in sys.stdin:
        answer = 0
        for number in range(int(line)):
            answer = handle(10_000_000)
            last = number
        print(answer, last, sys.gettrace(), flush=True)
        del kept[:]

serve()
";
const ANSWER: &str = "20 19 None";

/// Those that let a debugger in (PEP 768), debug builds too, and the server. Without root there is nothing to be done with them.
fn each() -> (Vec<Python>, Script) {
    let mut found = if root() { every_build() } else { Vec::new() };
    found.retain(|python| python.version.0 >= 14);
    (found, script("server.py", SERVER))
}

/// The newest of them, and this program. `None`: there is none on this machine, or we are not root.
fn newest_with(name: &str, text: &str) -> Option<(Python, Script)> {
    let found = supported_pythons().into_iter().rfind(|python| python.version.0 >= 14);
    if found.is_none() {
        println!("NOT RUN: there is no CPython 3.14 or later");
    }
    found.filter(|_| root()).map(|python| (python, script(name, text)))
}

fn newest() -> Option<(Python, Script)> {
    newest_with("server.py", SERVER)
}

fn attach(targets: &[&Target], options: &[&str]) -> Terminal {
    let pids = targets.iter().map(|target| target.pid());
    let mut terminal = Run::new(["attach", "--pdb-mmem", "60"]).words(options).words(pids).in_terminal();
    terminal.expect("Ctrl-C writes the report");
    terminal
}

/// A server that waits at a prompt of ours; with what was shown before it.
fn stopped(python: &Python, program: &Script, options: &[&str]) -> (Target, Terminal, String) {
    let mut target = Target::start(python, program);
    let mut terminal = attach(&[&target], options);
    target.send("20");
    let shown = terminal.expect(PROMPT);
    (target, terminal, shown)
}

#[track_caller]
fn ask(terminal: &mut Terminal, command: &str) -> String {
    terminal.send(command);
    let shown = terminal.expect(PROMPT);
    shown.split_once('\n').map(|(_, shown)| shown.to_owned()).unwrap_or_default()
}

/// The increment of a line in the table, MiB.
fn increment(shown: &str, text: &str) -> f64 {
    let row = shown.lines().find(|row| row.contains(text)).unwrap_or_else(|| panic!("{text}: {shown}"));
    row.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn root_it_stops_on_the_users_own_line_and_goes_on() {
    let (pythons, program) = each();
    // pdb must not load these.
    for name in ["pdb.py", "bdb.py", "socket.py", "asyncio.py", "_socket.py"] {
        program.beside(name, "raise SystemExit('the wrong module')\n");
    }
    for python in pythons {
        let (mut target, mut terminal, shown) = stopped(&python, &program, &[]);
        let version = python.version_text();
        assert!(shown.contains(&format!("Process {}: ", target.pid())), "{version}: {shown}");
        assert!(shown.contains(" MiB exceeded the maximum of 60.00 MiB\nStepping into the debugger\n> "), "{shown}");
        // Asked while the program runs: it may be some lines further on, in the same loop.
        assert!(shown.contains("server.py(") && !shown.contains("rmprof-bpf debugger"), "{version}: {shown}");
        let frames = ask(&mut terminal, "where");
        let functions: Vec<&str> = frames.lines().filter(|line| line.contains(".py(")).collect();
        assert!(functions.iter().all(|line| line.contains("/server.py(")), "{version}: {frames}");
        assert!(functions[0].ends_with("<module>()") && functions[1].ends_with("serve()"), "{version}: {frames}");
        let count: usize = ask(&mut terminal, "p len(kept)").lines().next().unwrap().parse().unwrap();
        assert!((5..20).contains(&count), "{version}: {count}");
        for _ in 0..6 {
            ask(&mut terminal, "n");
        }
        let locals = ask(&mut terminal, "p answer, number, line");
        assert!(locals.contains(", '20\\n')"), "{version}: {locals}");
        for (command, answer) in [
            ("run", "*** run and restart are not possible"),
            ("restart x", "*** run and restart are not possible"),
            ("interact", "*** interact is not possible"),
            ("p '\\x1b[2J'", "'\\x1b[2J'"),
            ("!sys.stdout.write('\\x1b[31m') and None", "\\x1b[31m"),
        ] {
            let said = ask(&mut terminal, command);
            assert!(said.starts_with(answer), "{version}: {command}: {said}");
        }
        // At a breakpoint it comes back by itself.
        ask(&mut terminal, &format!("b {}", program.line("last = number")));
        ask(&mut terminal, "c");
        let there = ask(&mut terminal, "p number - answer + 1, sys.gettrace() is None");
        assert!(there.starts_with("(0, "), "{version}: {there}");
        ask(&mut terminal, "cl 1");
        terminal.send("c");
        assert_eq!(target.line(), ANSWER, "{version}");
        target.end();
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{version}: {shown}");
        // What pdb takes is in none of its lines.
        assert!((increment(&shown, "# grows") - 190.77).abs() < 1.0, "{version}: {shown}");
        assert!(shown.contains("(rmprof-bpf's own help)") && !shown.contains("<string>"), "{version}: {shown}");
    }
}

/// A service is not ended by a debugger that was looked in with.
#[test]
fn root_however_the_talk_ends_the_program_goes_on() {
    let (pythons, program) = each();
    for python in pythons {
        for how in ["quit", "Ctrl-D", "Ctrl-C", "kill", "hang up"] {
            let (mut target, mut terminal, _) = stopped(&python, &program, &["--pdb-mmem-step", "20000"]);
            let what = format!("{how} {}", python.version_text());
            // One level up from where it stopped, and a breakpoint in the loop: both leave trace functions in frames.
            ask(&mut terminal, &format!("b {}", program.line("count = len")));
            ask(&mut terminal, "n");
            match how {
                "quit" => terminal.send("q"),
                "Ctrl-D" => terminal.press(4),
                "Ctrl-C" => terminal.press(3),
                "kill" => kill(terminal.pid(), Signal::SIGKILL).unwrap(),
                _ => kill(terminal.pid(), Signal::SIGHUP).unwrap(),
            }
            assert_eq!(target.line(), ANSWER, "{what}");
            assert_eq!(target.step("3"), "3 2 None", "{what}");
            target.end();
            let (status, shown) = terminal.end();
            assert_eq!(status.code(), (how != "kill").then_some(0), "{what}: {shown}");
            assert_eq!(shown.contains("The debugger lets go: the program goes on\n"), how == "quit", "{what}: {shown}");
            assert!(how == "kill" || shown.contains("# grows"), "{what}: {shown}");
        }
    }
}

#[test]
fn root_its_folder_is_there_for_as_long_as_we_are() {
    let Some((python, program)) = newest() else { return };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let target = Target::start(&python, &program);
        let terminal = attach(&[&target], &[]);
        let prefix = format!("rmprof-bpf-{}-", terminal.pid());
        let folders = || {
            let found = std::fs::read_dir("/run").unwrap().flatten();
            found.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
        };
        assert_eq!(folders(), 1);
        kill(terminal.pid(), signal).unwrap();
        terminal.end();
        eventually("the folder has gone", || folders() == 0);
        target.end();
    }
}

#[test]
fn root_it_opens_again_after_a_step() {
    let Some((python, program)) = newest() else { return };
    // 200 MB in all: there is room for one more stop.
    let (mut target, mut terminal, _) = stopped(&python, &program, &["--pdb-mmem-step", "100"]);
    let mut counts: Vec<i32> = Vec::new();
    for more in [true, false] {
        counts.push(ask(&mut terminal, "p len(kept)").lines().next().unwrap().parse().unwrap());
        terminal.send("c");
        if more {
            terminal.expect(PROMPT);
        }
    }
    assert_eq!(target.line(), ANSWER);
    assert!(counts[1] - counts[0] >= 10, "{counts:?}");
    target.end();
    assert_eq!(terminal.end().0.code(), Some(0));
}

/// The second has stopped too, and waits for its turn.
#[test]
fn root_one_at_a_time() {
    let Some((python, program)) = newest() else { return };
    let mut targets = [Target::start(&python, &program), Target::start(&python, &program)];
    let mut terminal = attach(&[&targets[0], &targets[1]], &[]);
    targets[0].send("20");
    let shown = terminal.expect(PROMPT);
    assert!(shown.contains(&format!("Process {}: ", targets[0].pid())), "{shown}");
    targets[1].send("20");
    let connected = format!("{}/", targets[1].pid());
    eventually("the second has stopped", || is_connected(&connected));
    assert!(ask(&mut terminal, "p sys.argv").contains("server.py"));
    terminal.send("c");
    let shown = terminal.expect(PROMPT);
    assert!(shown.contains(&format!("Process {}: ", targets[1].pid())), "{shown}");
    assert_eq!(targets[0].line(), ANSWER);
    terminal.send("c");
    assert_eq!(targets[1].line(), ANSWER);
    for target in targets {
        target.end();
    }
    assert_eq!(terminal.end().0.code(), Some(0));
}

/// Has the process a socket, beside its standard streams?
fn is_connected(pid: &str) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}fd")).unwrap().flatten();
    files
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|link| link.to_string_lossy().starts_with("socket:"))
}

/// Passes the limit within one call, which then waits for more.
const RECEIVER: &str = "
import mmap, os, socket, sys
one, two = socket.socketpair()
if os.fork() == 0:
    one.close()
    for line in sys.stdin:
        for _ in range(100):
            two.sendall(b'x' * (1 << 20))
    os._exit(0)
two.close()
room = mmap.mmap(-1, 200 << 20)
print('ready', flush=True)
got = one.recv_into(room, 0, socket.MSG_WAITALL)
print(got >> 20, sys.gettrace(), flush=True)
";

/// What a thread was asked that does not look is taken back.
#[test]
fn root_a_thread_that_never_looks_is_left_as_it_was() {
    let Some((python, program)) = newest_with("receiver.py", RECEIVER) else { return };
    for waits in [true, false] {
        let mut target = Target::of(Command::new(&python.path).arg(&program.path).stderr(Stdio::piped()));
        let mut terminal = attach(&[&target], &["--no-children", "--on-limit", "95=report"]);
        target.send("once");
        // By then it has long been asked.
        terminal.expect("the report is written");
        if waits {
            target.send("again");
            let shown = terminal.expect(PROMPT);
            assert!(shown.contains("receiver.py("), "{shown}");
            terminal.send("c");
        } else {
            terminal.press(3);
            let (status, shown) = terminal.end();
            assert_eq!(status.code(), Some(0), "{shown}");
            assert!(shown.contains("no line of its own code has begun in that thread since"), "{shown}");
            target.send("again");
        }
        assert_eq!(target.line(), "200 None");
        assert_eq!(target.errors(), "");
    }
}

#[test]
fn root_what_is_not_possible_is_refused_at_once() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let refused = |target: &Target, why: &str| {
        let (status, shown) = Run::new(["attach", "--pdb-mmem", "60", &target.pid()]).in_terminal().end();
        assert_eq!(status.code(), Some(125), "{shown}");
        assert!(shown.contains(why) && shown.contains("hint: "), "{shown}");
        shown
    };
    for python in supported_pythons() {
        let (minor, mut target) = (python.version.0, Target::start(&python, &program));
        if minor < 14 {
            let shown =
                refused(&target, &format!("CPython 3.{minor}, and debugging from outside (PEP 768) begins with 3.14"));
            assert!(shown.contains("--on-limit MIB=report, stop, exec CMD"), "{shown}");
            assert_eq!(target.step("3"), "3 2 None");
            target.end();
            continue;
        }
        let mut option = Command::new(&python.path);
        option.args(["-X", "disable-remote-debug", program.name()]);
        let mut variable = Command::new(&python.path);
        variable.arg(program.name()).env("PYTHON_DISABLE_REMOTE_DEBUG", "1");
        for command in [&mut option, &mut variable] {
            let mut target = Target::of(command);
            refused(&target, "remote debugging is switched off in its Python: started with -X disable-remote-debug or");
            assert_eq!(target.step("3"), "3 2 None");
            target.end();
        }
        // Without a terminal: a session of its own that has none.
        let output = Command::new("setsid")
            .args(["--wait", env!("CARGO_BIN_EXE_rmprof-bpf"), "attach", "--pdb-mmem", "60", &target.pid()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(125) && said.contains("has no terminal to open the debugger in"),
            "{said}"
        );
        assert_eq!(target.step("3"), "3 2 None");
        target.end();
    }
}

/// The script is put where the process itself sees it, and read with its rights.
#[test]
fn root_in_other_namespaces_and_of_other_users() {
    let Some((python, program)) = newest() else { return };
    let hidden = "mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && mount -t proc proc /proc && exec \"$@\"";
    let shell = ["sh", "-c", hidden, "sh"];
    for before in [
        &["setpriv", "--clear-groups", "--reuid=65534", "--regid=65534", "--"][..],
        &[&["unshare", "--mount", "--net", "--pid", "--fork"][..], &shell].concat(),
        &[&["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"][..], &shell].concat(),
    ] {
        let mut command = Command::new(before[0]);
        command.args(&before[1..]).arg(&python.path).arg(&program.path);
        let mut target = Target::below(&mut command);
        let mut terminal = attach(&[&target], &[]);
        target.send("20");
        terminal.expect(PROMPT);
        assert!(ask(&mut terminal, "where").contains("server.py("), "{before:?}");
        terminal.send("c");
        assert_eq!(target.line(), ANSWER, "{before:?}");
        target.end();
        assert_eq!(terminal.end().0.code(), Some(0));
    }
}
