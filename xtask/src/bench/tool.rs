//! Who watches the workloads: ourselves in each of our modes, and the peers that `scripts/peers` installs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::workload;

/// One way to run a program.
#[derive(Debug)]
pub struct Tool {
    /// What it is called in `--tools` and in the tables.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// rmprof-bpf with these options.
    Ours(&'static [&'static str]),
    /// What stands between the Python and the program; `OUTPUT` stands for a path in a folder of this run.
    Peer(&'static [&'static str]),
    /// bpftrace with this script of tests/bench: what a memory profiler made of the usual parts costs, which knows no Python.
    Script(&'static str),
}

/// Stands for a path that the peer may write to.
const OUTPUT: &str = "OUTPUT";

/// All of them, in the order of the tables. A peer's options keep it from opening a browser or asking, and change nothing of what it
/// measures.
pub const TOOLS: &[Tool] = &[
    Tool { name: "pages", kind: Kind::Ours(&["--mode", "pages"]) },
    Tool { name: "heap", kind: Kind::Ours(&["--mode", "heap"]) },
    Tool { name: "sampled", kind: Kind::Ours(&["--mode", "heap", "--sample", "512K"]) },
    Tool { name: "objects", kind: Kind::Ours(&["--mode", "objects"]) },
    Tool { name: "memray", kind: Kind::Peer(&["-m", "memray", "run", "--quiet", "--force", "--output", OUTPUT]) },
    Tool {
        name: "memray-objects",
        kind: Kind::Peer(&[
            "-m",
            "memray",
            "run",
            "--quiet",
            "--force",
            "--trace-python-allocators",
            "--output",
            OUTPUT,
        ]),
    },
    Tool { name: "scalene", kind: Kind::Peer(&["-m", "scalene", "run", "--outfile", OUTPUT]) },
    Tool { name: "fil", kind: Kind::Peer(&["-m", "filprofiler", "--no-browser", "-o", OUTPUT, "run"]) },
    Tool { name: "tracemalloc", kind: Kind::Peer(&["-X", "tracemalloc=1"]) },
    Tool { name: "bpftrace", kind: Kind::Script("blocks.bt") },
    Tool { name: "memory_profiler", kind: Kind::Peer(&["-m", "memory_profiler", "-o", OUTPUT]) },
];

impl Tool {
    /// One of those that `scripts/peers` installs.
    pub fn is_peer(&self) -> bool {
        !matches!(self.kind, Kind::Ours(_))
    }

    /// Whether it sees lines of marked functions alone, so that there is nothing for it to do in a program without.
    pub fn wants_marks(&self) -> bool {
        self.name == "memory_profiler"
    }

    /// The program's command under this tool. What the tool writes goes into `folder`.
    pub fn command<'a>(
        &self,
        binary: &Path,
        python: &'a Path,
        program: impl IntoIterator<Item = &'a OsStr>,
        folder: &Path,
    ) -> Command {
        let mut command = match self.kind {
            Kind::Script(script) => {
                // It takes the program as one word, which it splits at blanks.
                let words: Vec<&OsStr> = std::iter::once(python.as_os_str()).chain(program).collect();
                let mut command = Command::new("bpftrace");
                command.env("BPFTRACE_MAP_KEYS_MAX", "524288").arg("-o").arg(folder.join(self.name));
                command.arg("-c").arg(words.join(OsStr::new(" "))).arg(workload::folder().join(script));
                return command;
            }
            Kind::Ours(options) => {
                let mut command = Command::new(binary);
                command.args(["--as-root", "--format", "json"]).args(options).arg("--output").arg(report(folder));
                command.arg(python);
                command
            }
            Kind::Peer(words) => {
                let mut command = Command::new(python);
                for word in words {
                    if *word == OUTPUT {
                        command.arg(folder.join(self.name));
                    } else {
                        command.arg(word);
                    }
                }
                command
            }
        };
        command.args(program);
        command
    }
}

/// Where our report is written.
pub fn report(folder: &Path) -> PathBuf {
    folder.join("report.json")
}

/// A Python that has the peers, and what the workloads import: made where it is not there yet. What is no package of Python's is
/// installed where one of the tools is that.
///
/// # Errors
/// No network, or no `venv`; the script has said which.
pub fn peers(python: &Path, tools: &[&Tool]) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers");
    let beside = tools.iter().any(|tool| matches!(tool.kind, Kind::Script(_))).then_some("bpftrace");
    let output = Command::new(&script).arg(python).args(beside).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| script.display().to_string())?;
    ensure!(output.status.success(), "{} failed", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_comes_last_and_its_options_are_its_own() {
        let program = [OsStr::new("x.py"), OsStr::new("--flag")];
        for tool in TOOLS {
            let command = tool.command(Path::new("/us"), Path::new("/py"), program, Path::new("/out"));
            let words: Vec<&str> = command.get_args().map(|word| word.to_str().unwrap()).collect();
            assert!(!words.contains(&OUTPUT));
            if let Kind::Script(_) = tool.kind {
                assert!(words.contains(&"/py x.py --flag"), "{words:?}");
                continue;
            }
            assert!(words.ends_with(&["x.py", "--flag"]), "{words:?}");
            assert_eq!(command.get_program() == "/py", tool.is_peer());
        }
    }
}
