//! Runs in a terminal of their own, for programs that talk to a person.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::unistd::Pid;

/// Nothing heard for so long is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session whose controlling terminal is ours to type in.
pub struct Terminal {
    child: Child,
    master: File,
    /// All that was shown, without what only moves the cursor.
    shown: String,
    /// How much of it was waited for.
    heard: usize,
    raw: Vec<u8>,
}

impl Terminal {
    /// Runs the command as the foreground job of a new terminal.
    pub fn start(command: &mut Command) -> Self {
        let pair = openpty(None, None).unwrap();
        let slave = File::from(pair.slave);
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio()).env("TERM", "dumb");
        // SAFETY: two system calls.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        // The command holds copies of the other end, which would keep it from hanging up.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child, master: File::from(pair.master), shown: String::new(), heard: 0, raw: Vec::new() }
    }

    /// Reads some; false: everybody has hung up.
    fn read(&mut self) -> bool {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        if poll(&mut ready, patience).unwrap() == 0 {
            let _ = self.child.kill();
            panic!("nothing was heard for {PATIENCE:?} after:\n{}", self.shown);
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(count) if count > 0 => {
                self.raw.extend_from_slice(&buffer[..count]);
                self.shown = plain(&String::from_utf8_lossy(&self.raw));
                true
            }
            _ => false,
        }
    }

    /// Waits until the text is shown, from what was waited for on; gives what stood before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(place) = self.shown.get(self.heard..).and_then(|rest| rest.find(text)) {
                let before = self.shown[self.heard..self.heard + place].to_owned();
                self.heard += place + text.len();
                return before;
            }
            assert!(self.read() && begun.elapsed() < PATIENCE, "{text:?} is not shown:\n{}", self.shown);
        }
    }

    /// Waits for the text or for the end. True: the text.
    pub fn expect_or_end(&mut self, text: &str) -> bool {
        loop {
            if let Some(place) = self.shown.get(self.heard..).and_then(|rest| rest.find(text)) {
                self.heard += place + text.len();
                return true;
            }
            if !self.read() {
                return false;
            }
        }
    }

    /// The process that was started in it.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Presses a key: Ctrl-C is 3, Ctrl-D is 4.
    pub fn press(&mut self, key: u8) {
        self.master.write_all(&[key]).unwrap();
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) {
        self.master.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Waits for the end; gives the status and all that was shown.
    pub fn end(mut self) -> (ExitStatus, String) {
        while self.read() {}
        (self.child.wait().unwrap(), self.shown.clone())
    }
}

/// Without escape sequences (ECMA-48: ESC [ parameters, final byte) and carriage returns.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\r' => {}
            '\x1b' => {
                if characters.next() == Some('[') {
                    let _ = characters.find(|character| matches!(character, '\x40'..='\x7e'));
                }
            }
            other => plain.push(other),
        }
    }
    plain
}
