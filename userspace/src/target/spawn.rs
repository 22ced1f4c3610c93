//! Starting the program: a child that waits until it is traced, takes the user's rights, and executes.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::unistd::{Pid, pipe2};

use super::credentials::Credentials;
use super::tracee;

/// Where `execvp` looks without a `PATH` (glibc's `_CS_PATH`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// A program to be started.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its name, searched for in the `PATH` of `env` where it has no slash.
    pub program: OsString,
    /// Its arguments, the name not among them.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Whose rights it gets; `None`: ours.
    pub credentials: Option<Credentials>,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No such program.
    #[error("{}: program not found", program.display())]
    NotFound {
        /// As it was given.
        program: OsString,
    },
    /// It is there and cannot be executed.
    #[error("{}: cannot be executed: {}", program.display(), errno.desc())]
    NotExecutable {
        /// As it was given.
        program: OsString,
        /// What the kernel said.
        errno: Errno,
    },
    /// The rights of the user could not be taken.
    #[error("cannot start the program as user {user}: {}", errno.desc())]
    Credentials {
        /// Login name.
        user: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// It could not be traced.
    #[error("cannot trace {}: {}", program.display(), errno.desc())]
    Trace {
        /// As it was given.
        program: OsString,
        /// What the kernel said.
        errno: Errno,
    },
    /// A NUL byte in the name, an argument or the environment.
    #[error("{}: a NUL byte in the command or its environment", program.display())]
    NulByte {
        /// As it was given.
        program: OsString,
    },
    /// No process, pipe or timer could be made.
    #[error("cannot start {}: {source}", program.display())]
    System {
        /// As it was given.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended before it was executed, by no error of its own.
    #[error("{}: ended before it was executed ({status})", program.display())]
    Ended {
        /// As it was given.
        program: OsString,
        /// How.
        status: ExitStatus,
    },
}

impl SpawnError {
    /// The exit status that tells this error: 127 not found, 126 not executable, 125 ours.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 125,
        }
    }

    /// What the person can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFound { program } if program.as_bytes().contains(&b'/') => "check the path",
            Self::NotFound { .. } => {
                "check the spelling and PATH (sudo replaces PATH), or give the program's path: ./PROGRAM for one in this folder"
            }
            Self::NotExecutable { errno: Errno::EACCES, .. } => {
                "it needs execute permission for the user it runs as (chmod +x); a Python script runs as `python SCRIPT`"
            }
            Self::NotExecutable { errno: Errno::ENOENT, .. } => {
                "the interpreter its first line (#!) or its ELF header names is not there"
            }
            Self::NotExecutable { errno: Errno::E2BIG, .. } => {
                "the arguments and the environment are too long together"
            }
            Self::NotExecutable { .. } => "check that it is a program for this machine",
            Self::Credentials { .. } => "use `--as-root` to run it as root",
            Self::Trace { .. } => {
                "another tracer, a seccomp filter or /proc/sys/kernel/yama/ptrace_scope = 3 forbids it"
            }
            Self::NulByte { .. } => "remove the NUL byte",
            Self::System { .. } => "check the limits on processes and open files (ulimit -u, ulimit -n)",
            Self::Ended { .. } => "something killed it; try again",
        }
    }
}

/// Everything the child needs, made before the fork: after it, only system calls are allowed.
struct Prepared {
    /// The files to try, in order.
    candidates: Vec<CString>,
    _strings: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    /// `sh CANDIDATE ARGS…`, with the candidate left open, for a script without `#!`.
    shell_arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    credentials: Option<Rights>,
    mask: SigSet,
}

struct Rights {
    user: libc::uid_t,
    group: libc::gid_t,
    groups: Vec<libc::gid_t>,
}

impl Rights {
    fn of(credentials: &Credentials) -> Self {
        Self {
            user: credentials.user.as_raw(),
            group: credentials.group.as_raw(),
            groups: credentials.groups.iter().map(|group| group.as_raw()).collect(),
        }
    }
}

/// Has a command that is not measured run with the rights of `credentials`; it is not started where it cannot have them.
pub fn with_rights(command: &mut std::process::Command, credentials: &Credentials) {
    let rights = Rights::of(credentials);
    // SAFETY: system calls alone, on memory that is allocated before the fork; nothing is allocated after it.
    unsafe { command.pre_exec(move || take_rights(&rights).map_err(io::Error::from)) };
}

/// What the child says when it fails: the stage, the error number.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Stage {
    Rights = 1,
    Execute = 2,
}

/// A child seized and let go, on its way to its exec.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: Pid,
    report: File,
    program: OsString,
    /// The files that were tried.
    candidates: Vec<CString>,
    user: String,
}

/// Forks the child, seizes it and lets it go, after `before_go`. `mask` is the signal mask the program gets.
pub(super) fn start(command: &Command, mask: SigSet, before_go: impl FnOnce(Pid)) -> Result<Started, SpawnError> {
    let program = command.program.clone();
    let system = |source: io::Error| SpawnError::System { program: program.clone(), source };
    let mut prepared = prepare(command, mask)?;
    let (go_read, go_write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| system(errno.into()))?;
    let (report_read, report_write) =
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| system(errno.into()))?;
    // SAFETY: the child makes system calls only, on memory made before the fork.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(system(io::Error::last_os_error())),
        0 => {
            // SAFETY: closing one's own copy. Else the child would not see the other end close, should we die.
            unsafe { libc::close(go_write.as_raw_fd()) };
            run_child(&mut prepared, go_read.as_raw_fd(), report_write.as_raw_fd())
        }
        pid => Pid::from_raw(pid),
    };
    drop((go_read, report_write));
    if let Err(errno) = tracee::seize(pid) {
        let _ = kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(SpawnError::Trace { program, errno });
    }
    before_go(pid);
    // Should the child be gone already, its end is reported by waitpid.
    let _ = File::from(go_write).write_all(b"!");
    let user = command.credentials.as_ref().map(|rights| rights.name.clone()).unwrap_or_default();
    Ok(Started { pid, report: File::from(report_read), program, candidates: prepared.candidates, user })
}

impl Started {
    /// Why the child ended without an exec.
    pub(super) fn failure(mut self, status: ExitStatus) -> SpawnError {
        let mut message = [0; 5];
        if self.report.read_exact(&mut message).is_err() {
            return SpawnError::Ended { program: self.program, status };
        }
        let [stage, number @ ..] = message;
        let errno = Errno::from_raw(i32::from_ne_bytes(number));
        if stage == Stage::Rights as u8 {
            return SpawnError::Credentials { user: self.user, errno };
        }
        // A script whose interpreter is missing is there itself.
        let is_there = |path: &CString| std::path::Path::new(OsStr::from_bytes(path.as_bytes())).is_file();
        let is_found = self.candidates.iter().any(is_there);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if !is_found => SpawnError::NotFound { program: self.program },
            _ => SpawnError::NotExecutable { program: self.program, errno },
        }
    }
}

fn prepare(command: &Command, mask: SigSet) -> Result<Prepared, SpawnError> {
    let nul = |_| SpawnError::NulByte { program: command.program.clone() };
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(nul);
    let path = command.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let candidates: Vec<CString> =
        candidates(&command.program, path).iter().map(|candidate| c_string(candidate)).collect::<Result<_, _>>()?;
    let mut strings = vec![c_string(&command.program)?];
    for argument in &command.args {
        strings.push(c_string(argument)?);
    }
    let arguments_end = strings.len();
    for (name, value) in &command.env {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        strings.push(c_string(&pair)?);
    }
    // The pointers stay good when the vector moves: each string has its own allocation.
    let terminated = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let arguments = terminated(&strings[..arguments_end]);
    let mut shell_arguments = vec![SHELL.as_ptr(), std::ptr::null()];
    shell_arguments.extend_from_slice(&arguments[1..]);
    let credentials = command.credentials.as_ref().map(Rights::of);
    let environment = terminated(&strings[arguments_end..]);
    Ok(Prepared { candidates, _strings: strings, arguments, shell_arguments, environment, credentials, mask })
}

/// The files `execvp` would try, in order.
fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<OsString> {
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let folders = path.as_bytes().split(|&byte| byte == b':');
    folders
        .map(|folder| {
            let mut candidate = OsStr::from_bytes(folder).to_owned();
            if !folder.is_empty() {
                candidate.push("/");
            }
            candidate.push(program);
            candidate
        })
        .collect()
}

/// The child's life between fork and exec. Only async-signal-safe calls from here on, and no allocation.
fn run_child(prepared: &mut Prepared, go: RawFd, report: RawFd) -> ! {
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte into one byte. End of file says that the supervisor has died: the program never began.
        match unsafe { libc::read(go, (&raw mut byte).cast(), 1) } {
            1 => break,
            -1 if Errno::last() == Errno::EINTR => {}
            // SAFETY: ends the child without running the parent's exit handlers.
            _ => unsafe { libc::_exit(125) },
        }
    }
    let (stage, errno) = match prepared.credentials.as_ref().map_or(Ok(()), take_rights) {
        Err(errno) => (Stage::Rights, errno),
        Ok(()) => {
            // SAFETY: SIGPIPE back to what programs expect (the Rust runtime ignores it, and that would be inherited).
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&prepared.mask), None);
            (Stage::Execute, execute(prepared))
        }
    };
    let mut message = [stage as u8; 5];
    message[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
    // SAFETY: writes the message's bytes to our own pipe, then ends the child without the parent's exit handlers.
    unsafe {
        libc::write(report, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

/// Groups first, while it is still allowed; the user last; then a look whether it is so. By system calls: the C library's
/// functions of these names speak to all threads, of which a forked child has one.
fn take_rights(rights: &Rights) -> Result<(), Errno> {
    let (user, group, groups) = (rights.user, rights.group, &rights.groups);
    // SAFETY: the pointers are of live values, the lengths are theirs.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, group, group, group))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, user, user, user))?;
        let (mut users, mut groups) = ([0u32; 3], [0u32; 3]);
        let [real, effective, saved] = &mut users;
        libc::syscall(libc::SYS_getresuid, &raw mut *real, &raw mut *effective, &raw mut *saved);
        let [real, effective, saved] = &mut groups;
        libc::syscall(libc::SYS_getresgid, &raw mut *real, &raw mut *effective, &raw mut *saved);
        if users != [user; 3] || groups != [group; 3] {
            return Err(Errno::EPERM);
        }
    }
    Ok(())
}

/// What `execvp` does: goes on to the next folder where there is nothing, remembers a refusal, runs a script without `#!`
/// by the shell. Returns only to say why nothing could be executed.
fn execute(prepared: &mut Prepared) -> Errno {
    let mut refused = None;
    for candidate in &prepared.candidates {
        let environment = prepared.environment.as_ptr();
        // SAFETY: NUL-terminated strings in arrays that end with a null pointer, all alive.
        unsafe { libc::execve(candidate.as_ptr(), prepared.arguments.as_ptr(), environment) };
        let mut errno = Errno::last();
        if errno == Errno::ENOEXEC {
            prepared.shell_arguments[1] = candidate.as_ptr();
            // SAFETY: as above.
            unsafe { libc::execve(SHELL.as_ptr(), prepared.shell_arguments.as_ptr(), environment) };
            errno = Errno::last();
        }
        match errno {
            Errno::EACCES => refused = Some(errno),
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ESTALE | Errno::ETIMEDOUT => {}
            _ => return errno,
        }
    }
    refused.unwrap_or(match Errno::last() {
        Errno::ENOTDIR => Errno::ENOTDIR,
        _ => Errno::ENOENT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_as_execvp_does() {
        let of = |program: &str, path: Option<&str>| candidates(program.as_ref(), path.map(OsStr::new));
        assert_eq!(of("a", Some("/x::/y/")), ["/x/a", "a", "/y//a"]);
        assert_eq!(of("./a", Some("/x")), ["./a"]);
        assert_eq!(of("a", None), ["/bin/a", "/usr/bin/a"]);
        assert_eq!(of("", Some("/x")), [""]);
    }
}
