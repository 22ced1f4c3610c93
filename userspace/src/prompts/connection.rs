//! What a process in which the debugger opens says first: one line, ours; all that follows is pdb's.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use super::Asked;

/// Longer than any first line.
const MOST_FIRST: usize = 32;

/// What the first line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// pdb is open, and waits.
    Stopped,
    /// It is not, for this `rm_limit_refusal`.
    Refused(u32),
}

/// See the module.
pub(super) struct Connection {
    /// What it was asked.
    pub asked: Asked,
    stream: AsyncFd<UnixStream>,
    /// Read, and not taken yet.
    pub heard: Vec<u8>,
    /// What its first line was.
    pub first: Option<First>,
}

impl Connection {
    /// Takes a stream that does not block. To be called within the runtime that will wait.
    pub fn new(stream: UnixStream, asked: Asked) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what is registered, and open for as long.
        let stream = unsafe { AsyncFd::register(stream) }?;
        Ok(Self { asked, stream, heard: Vec::new(), first: None })
    }

    /// Its first line; `None`: it has ended without, or with something else.
    pub fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<Option<First>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Poll::Ready(parse(&line));
            }
            let mut buffer = [0; MOST_FIRST];
            match ready!(self.poll_read(context, &mut buffer)) {
                Ok(read) if read > 0 && self.heard.len() < MOST_FIRST => {
                    self.heard.extend_from_slice(buffer.get(..read).unwrap_or_default());
                }
                _ => return Poll::Ready(None),
            }
        }
    }

    /// What pdb writes; none: it is over.
    pub fn poll_read(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.stream.poll_read_ready(context))?;
            if let Ok(read) = guard.try_io(|stream| stream.get_ref().read(buffer)) {
                return Poll::Ready(read);
            }
        }
    }

    /// Hands on what was typed. As a terminal's, the buffer takes some thousand bytes that nobody reads: more is an error.
    pub fn send(&self, typed: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.get_ref();
        stream.write_all(typed)
    }

    /// Nothing more will be typed.
    pub fn end_input(&self) {
        // Where it is over already, that is as good.
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
    }
}

fn parse(line: &[u8]) -> Option<First> {
    match std::str::from_utf8(line).ok()?.trim_end().split_once(' ') {
        None if line == b"STOPPED\n" => Some(First::Stopped),
        Some(("REFUSED", reason)) => reason.parse().ok().map(First::Refused),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        assert_eq!(parse(b"STOPPED\n"), Some(First::Stopped));
        assert_eq!(parse(b"REFUSED 5\n"), Some(First::Refused(5)));
        for other in [&b"STOPPED 1\n"[..], b"REFUSED x\n", b"\n", b"(Pdb) \n", b"\xff\n"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
