//! Servers as people run them, from PyPI (`scripts/servers`): under load, measured from outside, and right all the while.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::common::{Report, Run, Script, Started, Target, eventually, is_watched, near, root, script, watches};

/// What each request or task keeps, and what that takes of the C allocator: a `bytearray` has a byte more.
const LEAK: i64 = 200_000;
/// Beside the blocks on their line: the list that keeps them, and pages of Python's arenas.
const BESIDE: i64 = 4 * 4096;
/// Pages that a server has resident already, and free: they are used first.
const FREE: i64 = 640 << 10;

/// The folder with the programs of the servers' environment; `None`: said.
pub(super) fn programs() -> Option<PathBuf> {
    if let Some(python) = std::env::var_os("RMPROF_SERVERS") {
        return Some(Path::new(&python).parent().unwrap().to_owned());
    }
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/servers");
    let output = Command::new(scripts).arg("--offline").output().unwrap();
    if !output.status.success() {
        println!("NOT RUN: no servers to measure: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        return None;
    }
    Some(Path::new(String::from_utf8(output.stdout).unwrap().trim_end()).parent().unwrap().to_owned())
}

/// A server under way, in a process group of its own, that writes into a file.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(command: &mut Command, directory: &Path) -> Self {
        let log = directory.join("log");
        let output = std::fs::File::create(&log).unwrap();
        command.current_dir(directory).env("HOME", directory).stdin(Stdio::null());
        command.stdout(output.try_clone().unwrap()).stderr(output).process_group(0);
        Self { child: command.spawn().unwrap(), log }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The port that it says it listens at.
    fn port(&self) -> u16 {
        let port = || {
            let said = self.said();
            let (_, rest) = said.split_once("http://127.0.0.1:")?;
            rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
        };
        eventually("it listens", || port().is_some());
        port().unwrap()
    }

    /// The processes that it has started, and those they have.
    fn workers(&self) -> BTreeSet<i64> {
        let children = |pid: i64| -> Vec<i64> {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            text.split_whitespace().map(|word| word.parse().unwrap()).collect()
        };
        children(self.pid().as_raw().into()).into_iter().collect()
    }

    /// Waits until it has two that are measured, and which are not these.
    fn await_watch(&self, started: &Started, not: &BTreeSet<i64>) -> BTreeSet<i64> {
        let measured = |pid: &i64| is_watched(started, u32::try_from(*pid).unwrap());
        eventually("its workers are measured", || {
            let now = self.workers();
            now.len() == 2 && now.is_disjoint(not) && now.iter().all(measured)
        });
        self.workers()
    }

    /// Ended as its owner would.
    fn end(mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The body of an answer, which must be right.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer:?}");
    body.to_owned()
}

/// Requests to a worker, at most, before its probes are on it.
const UNSEEN: i64 = 3;
/// Blocks, at most, whose release was missed while workers were probed.
const REPLACED: i64 = 16;

/// How many were answered, by process.
type Served = BTreeMap<i64, i64>;

/// So many requests, each of which leaks, and as many that do not.
fn load(port: u16, requests: usize, served: &mut Served) {
    for _ in 0..requests {
        assert_eq!(get(port, "/plain").len(), 10_000);
        *served.entry(get(port, "/leak").parse().unwrap()).or_default() += 1;
    }
}

fn stop(started: Started) -> Report {
    started.signal(Signal::SIGINT);
    started.end().expect(0).report()
}

/// The line that leaks is the first of the report, and each process has its bytes on it.
fn check(report: &Report, mode: &str, program: &Script, function: &str, served: &Served) {
    check_first(report, program);
    check_each(report, mode, program, function, served);
    // A fork that is probed while it runs may have released in between what it was seen to ask for.
    let replaced = report.0["health"]["counters"]["block_replaced"].as_i64().unwrap_or(0);
    assert_eq!(report.health("lost"), replaced, "{mode}: {}", report.0["health"]);
    assert!(replaced <= REPLACED, "{mode}: {}", report.0["health"]);
}

fn check_first(report: &Report, program: &Script) {
    let first = &report.0["growth"][0];
    let line = u64::from(program.line("# leaks"));
    assert_eq!((first["filename"].as_str(), first["line"].as_u64()), (Some(program.name()), Some(line)), "{first}");
}

fn check_each(report: &Report, mode: &str, program: &Script, function: &str, served: &Served) {
    for (pid, count) in served {
        let own = report.process(*pid).line(function, program.line("# leaks")).own();
        let (expected, tolerance) =
            if mode == "heap" { (count * (LEAK + 1), BESIDE) } else { (count * LEAK, count * LEAK / 20 + FREE) };
        // A worker that is forked under load may answer before its probes are on it.
        let unseen = if mode == "heap" { UNSEEN * (LEAK + 1) } else { 0 };
        assert!(
            own <= expected + tolerance && own >= expected - tolerance - unseen,
            "{mode}: {own} is not {expected} in process {pid}: {report}"
        );
    }
}

const FLASK: &str = "
import os
from flask import Flask

app = Flask(__name__)
kept = []

def remember(size):
    kept.append(bytearray(size))  # leaks

@app.route('/leak')
def leak():
    remember(200_000)
    return str(os.getpid())

@app.route('/plain')
def plain():
    return 'x' * 10_000
";

/// With two workers that are replaced after so many requests.
fn gunicorn(programs: &Path, program: &Script, requests: u32) -> Server {
    let mut command = Command::new(programs.join("gunicorn"));
    command.args(["--preload", "--workers", "2", "--bind", "127.0.0.1:0"]);
    command.args(["--max-requests", &requests.to_string(), "--chdir"]);
    command.arg(program.directory()).arg("leaky:app");
    Server::start(&mut command, program.directory())
}

/// Workers from before, workers that replace them because they have served enough, and a whole new set of them.
#[test]
fn root_gunicorn_with_a_flask_app_that_leaks() {
    let Some(programs) = programs().filter(|_| root()) else { return };
    for mode in ["pages", "heap"] {
        let program = script("leaky.py", FLASK);
        let server = gunicorn(&programs, &program, 48);
        let port = server.port();
        load(port, 10, &mut Served::new());
        let started = Run::json_of(["attach"]).words(["--mode", mode, &server.pid().to_string()]).start();
        server.await_watch(&started, &BTreeSet::new());
        let mut served = Served::new();
        load(port, 60, &mut served);
        let before = server.await_watch(&started, &BTreeSet::new());
        kill(server.pid(), Signal::SIGHUP).unwrap();
        server.await_watch(&started, &before);
        load(port, 15, &mut served);
        assert!(served.len() > 4, "no worker was replaced: {served:?}");
        let report = stop(started);
        check(&report, mode, &program, "remember", &served);
        load(port, 5, &mut Served::new());
        server.end();
    }
}

/// A worker that is killed is reported at once; the others, and the one in its place, go on.
#[test]
fn root_a_worker_of_gunicorn_that_is_killed_has_its_table() {
    let Some(programs) = programs().filter(|_| root()) else { return };
    let program = script("leaky.py", FLASK);
    let server = gunicorn(&programs, &program, 1000);
    let port = server.port();
    let pattern = format!("*{}*", program.directory().display());
    let started = Run::json_of(["system"]).words(["--command", &pattern]).start();
    let workers = server.await_watch(&started, &BTreeSet::new());
    let mut served = Served::new();
    load(port, 60, &mut served);
    let (victim, count) = served.iter().max_by_key(|(_, count)| **count).map(|(pid, count)| (*pid, *count)).unwrap();
    assert!(workers.contains(&victim));
    kill(Pid::from_raw(i32::try_from(victim).unwrap()), Signal::SIGKILL).unwrap();
    eventually("there is a report", || started.snapshot(1).is_some());
    server.await_watch(&started, &BTreeSet::from([victim]));
    load(port, 5, &mut served);
    started.signal(Signal::SIGINT);
    let ran = started.end().expect(0);
    assert!(ran.stderr_text().contains(&format!("process {victim} was killed (SIGKILL)\n")), "{ran}");
    let at_once = &ran.snapshots()[0];
    assert_eq!(at_once.0["snapshot"]["cause"], "death");
    assert_eq!(at_once.only().0["ended_by"], "was killed (SIGKILL)");
    check(at_once, "pages", &program, "remember", &Served::from([(victim, count)]));
    check(&ran.report(), "pages", &program, "remember", &served);
    server.end();
}

const TASKS: &str = "
import os
from celery import Celery

here = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(here, 'queue')
os.makedirs(folder, exist_ok=True)
app = Celery('tasks', broker='filesystem://', backend='file://' + folder)
app.conf.broker_transport_options = {
    'data_folder_in': folder, 'data_folder_out': folder, 'control_folder': os.path.join(here, 'control'),
}
kept = []

@app.task
def handle(size):
    kept.append(bytearray(size))  # leaks
    return os.getpid()
";

const SENDER: &str = "
import sys
from tasks import handle
print('ready', flush=True)
for line in sys.stdin:
    results = [handle.delay(200_000) for _ in range(int(line))]
    print(*[result.get(timeout=30, interval=0.01) for result in results], flush=True)
";

/// A pool whose processes are replaced after a number of tasks.
#[test]
fn root_a_pool_of_celery_whose_tasks_leak() {
    let Some(programs) = programs().filter(|_| root()) else { return };
    for mode in ["pages", "heap"] {
        let program = script("tasks.py", TASKS);
        let sender = program.beside("send.py", SENDER);
        let mut command = Command::new(programs.join("celery"));
        command.args([
            "-A",
            "tasks",
            "worker",
            "--pool",
            "prefork",
            "--concurrency",
            "2",
            "--max-tasks-per-child",
            "15",
        ]);
        command.args(["--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]);
        let server = Server::start(&mut command, program.directory());
        let mut queue = Target::of(Command::new(programs.join("python")).arg(sender));
        queue.step("4");
        let started = Run::json_of(["attach"]).words(["--mode", mode, &server.pid().to_string()]).start();
        let before = server.await_watch(&started, &BTreeSet::new());
        let mut served = Served::new();
        for _ in 0..3 {
            for pid in queue.step("20").split_whitespace() {
                *served.entry(pid.parse().unwrap()).or_default() += 1;
            }
        }
        assert!(served.len() > 2 && served.values().sum::<i64>() == 60, "{served:?}");
        let report = stop(started);
        if mode == "heap" {
            // A process of the pool begins with a task before the probes are on it, and may have ended by then.
            served.retain(|pid, _| before.contains(pid));
            check_first(&report, &program);
            check_each(&report, mode, &program, "handle", &served);
        } else {
            check(&report, mode, &program, "handle", &served);
        }
        queue.end();
        // Killed: its own end may wait for ever for a lock of its queue that a process it has replaced held (billiard 4.3,
        // Pool._help_stuff_finish).
        drop(server);
    }
}

const AIOHTTP: &str = "
import os, socket
from aiohttp import web

kept = []

async def leak(request):
    kept.append(bytearray(200_000))  # leaks
    return web.Response(text=str(os.getpid()))

async def plain(request):
    return web.Response(text='x' * 10_000)

app = web.Application()
app.add_routes([web.get('/leak', leak), web.get('/plain', plain)])
listener = socket.socket()
listener.bind(('127.0.0.1', 0))
print('http://127.0.0.1:%d' % listener.getsockname()[1], flush=True)
web.run_app(app, sock=listener, print=None)
";

#[test]
fn root_a_server_of_coroutines() {
    let Some(programs) = programs().filter(|_| root()) else { return };
    let program = script("served.py", AIOHTTP);
    let server = Server::start(Command::new(programs.join("python")).arg(&program.path), program.directory());
    let port = server.port();
    eventually("it answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    load(port, 5, &mut Served::new());
    for mode in ["pages", "heap"] {
        let started = Run::json_of(["attach"]).words(["--mode", mode, &server.pid().to_string()]).start();
        eventually("it is measured", || is_watched(&started, server.child.id()));
        let mut served = Served::new();
        load(port, 50, &mut served);
        check(&stop(started), mode, &program, "leak", &served);
    }
    server.end();
}

const PANDAS: &str = "
import sys
import numpy as np, pandas as pd

tables = []

def read(rows):
    return pd.DataFrame({'key': np.arange(rows) % 7, 'value': np.ones(rows)})  # leaks

def work():
    print('ready', flush=True)
    for line in sys.stdin:
        table = read(500_000)
        tables.append(table)
        print(int(table.groupby('key')['value'].sum().sum()), flush=True)

work()
";

#[test]
fn root_a_job_of_numpy_and_pandas() {
    let Some(programs) = programs().filter(|_| root()) else { return };
    /// Two columns of eight bytes a row.
    const TABLE: i64 = 500_000 * 16;
    let program = script("job.py", PANDAS);
    let mut target = Target::of(Command::new(programs.join("python")).arg(&program.path));
    assert_eq!(target.step("warm up"), "500000");
    for mode in ["pages", "heap"] {
        let started = Run::json_of(["attach"]).words(["--mode", mode, &target.pid()]).start();
        eventually("it is measured", || watches(&started, &target));
        for _ in 0..5 {
            assert_eq!(target.step("table"), "500000");
        }
        let report = stop(started);
        let first = &report.0["growth"][0];
        assert_eq!(first["line"].as_u64(), Some(program.line("# leaks").into()), "{mode}: {report}");
        let grown = report.only().line("read", program.line("# leaks")).increment();
        near(grown, 5 * TABLE, if mode == "heap" { TABLE / 50 } else { TABLE / 2 });
        // A fork that is probed while it runs may have released in between what it was seen to ask for.
        let replaced = report.0["health"]["counters"]["block_replaced"].as_i64().unwrap_or(0);
        assert_eq!(report.health("lost"), replaced, "{mode}: {}", report.0["health"]);
        assert!(replaced <= REPLACED, "{mode}: {}", report.0["health"]);
    }
    target.end();
}
