//! Our own terminal, in which the debugger of another process is talked to. It stays as it is: a line is edited by the terminal itself, and
//! Ctrl-C is a signal to us.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::report::escape;

/// Opened anew, so that reading it without waiting is nothing that others notice who have it.
const PATH: &str = "/dev/tty";

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// There is none.
    #[error("rmprof-bpf has no terminal to open the debugger in ({0})")]
    None(io::Error),
    /// Another job has it.
    #[error("rmprof-bpf is not in the foreground of its terminal: nobody could answer the debugger")]
    Background,
}

impl TerminalError {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::None(_) => {
                "run it in a terminal (`ssh -t`, `docker exec -it`), or take --on-limit MIB=report, stop or exec CMD, which ask nobody"
            }
            Self::Background => {
                "run it in the foreground (`fg`), or take --on-limit MIB=report, stop or exec CMD, which ask nobody"
            }
        }
    }
}

/// See the module.
pub struct Terminal {
    file: AsyncFd<File>,
    /// What has not been shown yet.
    waiting: Vec<u8>,
    /// Bytes of a character that is not whole yet.
    part: Vec<u8>,
    /// What was shown last ended a line.
    at_begin: bool,
}

/// Is there one, and have we got it?
///
/// # Errors
/// Why not.
pub fn check() -> Result<(), TerminalError> {
    let file = File::options().read(true).write(true).open(PATH).map_err(TerminalError::None)?;
    if is_ours(&file) { Ok(()) } else { Err(TerminalError::Background) }
}

fn is_ours(file: &File) -> bool {
    nix::unistd::tcgetpgrp(file).is_ok_and(|group| group == nix::unistd::getpgrp())
}

impl Terminal {
    /// Opens it. To be called within the runtime that will wait.
    ///
    /// # Errors
    /// There is none.
    pub fn open() -> Result<Self, TerminalError> {
        let mut options = File::options();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(PATH);
        // SAFETY: the descriptor is owned by what is registered, and open for as long.
        let file = file.and_then(|file| Ok(unsafe { AsyncFd::register(file) }?)).map_err(TerminalError::None)?;
        Ok(Self { file, waiting: Vec::new(), part: Vec::new(), at_begin: true })
    }

    /// Would somebody who types be typing to us?
    pub fn is_ours(&self) -> bool {
        is_ours(self.file.get_ref())
    }

    /// Forgets what was typed before there was anything to answer.
    pub fn forget_typed(&self) {
        // SAFETY: a descriptor of ours.
        unsafe { libc::tcflush(self.file.get_ref().as_raw_fd(), libc::TCIFLUSH) };
    }

    /// Shows text of ours, in a line of its own.
    pub fn say(&mut self, text: &str) {
        self.end_line();
        self.waiting.extend_from_slice(text.as_bytes());
        self.waiting.push(b'\n');
    }

    /// Begins a new line, unless at the begin of one.
    pub fn end_line(&mut self) {
        if !std::mem::replace(&mut self.at_begin, true) {
            self.waiting.push(b'\n');
        }
    }

    /// A line was typed: the terminal itself has shown that it ended.
    pub fn typed(&mut self) {
        self.at_begin = true;
    }

    /// Shows what a process wrote: nothing of it does more to the terminal than end a line.
    pub fn show(&mut self, bytes: &[u8]) {
        self.part.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.part) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.part.len(),
        };
        let part = self.part.split_off(whole);
        let text = std::mem::replace(&mut self.part, part);
        for (number, line) in String::from_utf8_lossy(&text).split('\n').enumerate() {
            if number > 0 {
                self.waiting.push(b'\n');
                self.at_begin = true;
            }
            if !line.is_empty() {
                self.waiting.extend_from_slice(escape(line).as_bytes());
                self.at_begin = false;
            }
        }
    }

    /// Shows what is left at the end, as far as the terminal takes it without waiting.
    pub fn finish(mut self) {
        let mut file = self.file.get_ref();
        // Nobody to tell is no reason to stop.
        let _ = file.write_all(&std::mem::take(&mut self.waiting));
    }

    /// Is all shown?
    pub fn poll_shown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let mut guard = ready!(self.file.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|file| file.get_ref().write(&self.waiting)) {
                match written {
                    Ok(written) => drop(self.waiting.drain(..written)),
                    Err(error) => {
                        self.waiting.clear();
                        return Poll::Ready(Err(error));
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What was typed; none: the end of input.
    pub fn poll_typed(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.file.poll_read_ready(context))?;
            if let Ok(read) = guard.try_io(|file| file.get_ref().read(buffer)) {
                return Poll::Ready(read);
            }
        }
    }
}
