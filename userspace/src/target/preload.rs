//! What an image finds in its environment: giving a program a preloaded library without its noticing. At its exec, before its loader has
//! run an instruction, the list of its environment that lies on its stack is replaced by one with `LD_PRELOAD` in it. Nothing is
//! inherited by what it starts: each image is given its own, or none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::Pid;

use super::elf::{ElfFile, Machine};
use super::maps::{self, executable_path, open_executable};
use super::{memory, tracee};

const AT_NULL: u64 = 0;
const AT_SECURE: u64 = 23;

const VARIABLE: &[u8] = b"LD_PRELOAD=";
/// The kernel takes at most so many bytes of arguments and environment, and lists of them (fs/exec.c).
const MOST_WORDS: u64 = 6 << 20;
/// A longer value of the variable is left alone.
const LONGEST_VALUE: usize = 64 << 10;
/// So much of the stack stays free below the new list: the kernel has made 128 KiB of it (fs/exec.c, setup_arg_pages).
const ROOM_BELOW: u64 = 64 << 10;

/// Adds `library` to what the image that was just executed preloads. The process is held at its exec. False: it is as it was, for it
/// takes no such library (static, privileged, another C library than glibc, another machine), or its stack is not as expected.
pub fn give(pid: Pid, library: &Path) -> bool {
    cfg!(target_arch = "x86_64") && takes_glibc_library(pid) && try_give(pid, library.as_os_str()).is_some()
}

/// Makes the value of a variable empty that the image that was just executed has as `assignment`, `NAME=value`. False: it has not, or
/// its stack is not as expected.
pub fn empty_variable(pid: Pid, assignment: &str) -> bool {
    let emptied = || {
        let stack = tracee::position(pid)?.stack;
        let mapping = maps::mappings(pid).ok()?.into_iter().find(|mapping| mapping.contains(stack))?;
        let start = Start::parse(words(pid, stack, mapping.end)?)?;
        let is_it = |at: u64| {
            memory::read_c_string(pid, at, assignment.len() + 1).is_ok_and(|text| text == assignment.as_bytes())
        };
        let at = *start.words.get(start.environment..start.environment_end)?.iter().find(|at| is_it(**at))?;
        let name = u64::try_from(assignment.find('=')?).ok()? + 1;
        memory::write_exact_at(pid, at.checked_add(name)?, b"\0").ok()
    };
    emptied().is_some()
}

/// Is it glibc's loader that will run first?
fn takes_glibc_library(pid: Pid) -> bool {
    let is_glibc = |name: Option<&OsStr>| name.is_some_and(|name| name.as_bytes().starts_with(b"ld-linux"));
    let Some(elf) = open_executable(pid).ok().and_then(|file| ElfFile::parse(file).ok()) else { return false };
    if elf.machine() != Machine::X86_64 {
        return false;
    }
    match elf.interpreter() {
        Some(interpreter) => is_glibc(Path::new(OsStr::from_bytes(interpreter.as_bytes())).file_name()),
        None => is_glibc(executable_path(pid).ok().as_deref().and_then(Path::file_name)),
    }
}

/// What the kernel put on the stack for the loader: words up to the end of the auxiliary vector.
struct Start {
    words: Vec<u64>,
    /// Index of the first pointer to a variable.
    environment: usize,
    /// Index of the zero after the last.
    environment_end: usize,
}

fn try_give(pid: Pid, library: &OsStr) -> Option<()> {
    let stack = tracee::position(pid)?.stack;
    let mapping = maps::mappings(pid).ok()?.into_iter().find(|mapping| mapping.contains(stack))?;
    let start = Start::parse(words(pid, stack, mapping.end)?)?;
    if start.is_privileged() {
        return None;
    }
    let given = start.variable(pid);
    let text = match given {
        Some(at) => {
            let value = memory::read_c_string(pid, *start.words.get(at)?, LONGEST_VALUE).ok()?;
            if value.len() >= LONGEST_VALUE {
                return None;
            }
            joined(value.strip_prefix(VARIABLE)?, library)
        }
        None => joined(b"", library),
    };
    let (image, lowest) = start.with(given, &text, stack);
    if lowest < mapping.start.checked_add(ROOM_BELOW)? {
        return None;
    }
    memory::write_exact_at(pid, lowest, &image).ok()?;
    tracee::move_stack(pid, lowest).then_some(())
}

/// The variable, NUL included: the program's own libraries come first.
fn joined(value: &[u8], library: &OsStr) -> Vec<u8> {
    let separator: &[u8] = if value.is_empty() { b"" } else { b":" };
    [VARIABLE, value, separator, library.as_bytes(), b"\0"].concat()
}

/// The words from `stack` to the end of the auxiliary vector, in pieces: how many there are is found out on the way.
fn words(pid: Pid, stack: u64, end: u64) -> Option<Vec<u64>> {
    const PIECE: u64 = 4096;
    let mut bytes = Vec::new();
    loop {
        let from = stack + bytes.len() as u64;
        let length = PIECE.min(end.checked_sub(from)?);
        if length < 8 || bytes.len() as u64 / 8 > MOST_WORDS {
            return None;
        }
        bytes.extend(memory::read_bytes(pid, from, length as usize).ok()?);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
        if let Some(length) = length_of(&words) {
            return Some(words[..length].to_vec());
        }
    }
}

/// How many words there are up to and with the end of the auxiliary vector; `None`: more than these.
fn length_of(words: &[u64]) -> Option<usize> {
    let arguments = usize::try_from(*words.first()?).ok()?;
    let environment = arguments.checked_add(2)?;
    let auxiliary = environment + words.get(environment..)?.iter().position(|&word| word == 0)? + 1;
    let pairs = words.get(auxiliary..)?.chunks_exact(2).position(|pair| pair[0] == AT_NULL)?;
    Some(auxiliary + 2 * (pairs + 1))
}

impl Start {
    fn parse(words: Vec<u64>) -> Option<Self> {
        let environment = usize::try_from(*words.first()?).ok()?.checked_add(2)?;
        let environment_end = environment + words.get(environment..)?.iter().position(|&word| word == 0)?;
        Some(Self { words, environment, environment_end })
    }

    /// Does the loader mistrust the environment? Then it would ignore the variable, and the program would see it.
    fn is_privileged(&self) -> bool {
        self.words[self.environment_end + 1..].chunks_exact(2).any(|pair| pair[0] == AT_SECURE && pair[1] != 0)
    }

    /// Index of the pointer to the variable, where it is set.
    fn variable(&self, pid: Pid) -> Option<usize> {
        (self.environment..self.environment_end)
            .find(|&at| memory::read_c_string(pid, self.words[at], VARIABLE.len()).is_ok_and(|start| start == VARIABLE))
    }

    /// The new list, to be written to the address that is returned, with `text` after it. It ends below `stack`.
    fn with(&self, given: Option<usize>, text: &[u8], stack: u64) -> (Vec<u8>, u64) {
        let text_at = (stack - text.len() as u64) & !15;
        let mut words = self.words.clone();
        match given {
            Some(at) => words[at] = text_at,
            None => words.insert(self.environment_end, text_at),
        }
        // The System V ABI has the stack pointer at a multiple of 16 here.
        let lowest = (text_at - 8 * words.len() as u64) & !15;
        let mut image: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        image.resize((text_at - lowest) as usize, 0);
        image.extend_from_slice(text);
        (image, lowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(environment: &[u64], auxiliary: &[u64]) -> Vec<u64> {
        [&[2, 0x100, 0x108, 0][..], environment, &[0], auxiliary, &[AT_NULL, 0]].concat()
    }

    #[test]
    fn the_list_is_as_long_as_its_parts_say() {
        let words = start(&[0x200, 0x210], &[3, 64, AT_SECURE, 0]);
        let whole = words.len();
        assert_eq!(length_of(&words), Some(whole));
        for cut in 0..whole {
            assert_eq!(length_of(&words[..cut]), None, "{cut}");
        }
        assert_eq!(length_of(&[u64::MAX, 0, 0]), None);
        let longer = [words, vec![7; 9]].concat();
        assert_eq!(length_of(&longer), Some(whole));
    }

    #[test]
    fn a_variable_is_added_or_replaced_and_the_rest_stays() {
        let stack = 0x7ffc_0000_1230;
        for (given, environment) in [(None, vec![0x200, 0x210]), (Some(5), vec![0x200, 0x210])] {
            let old = Start::parse(start(&environment, &[3, 64])).unwrap();
            let text = joined(if given.is_some() { b"a.so" } else { b"" }, OsStr::new("/run/x/lib.so"));
            let (image, lowest) = old.with(given, &text, stack);
            assert_eq!(lowest % 16, 0);
            assert!(lowest + image.len() as u64 <= stack);
            let words: Vec<u64> =
                image.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            let new = Start::parse(words[..length_of(&words).unwrap()].to_vec()).unwrap();
            let at = given.unwrap_or(old.environment_end);
            let text_at = (new.words[at] - lowest) as usize;
            assert_eq!(&image[text_at..], text);
            assert_eq!(new.words[..at], old.words[..at]);
            let skip = usize::from(given.is_some());
            assert_eq!(new.words[at + 1..], old.words[at + skip..]);
        }
        assert_eq!(joined(b"a.so", OsStr::new("/b.so")), b"LD_PRELOAD=a.so:/b.so\0");
        assert_eq!(joined(b"", OsStr::new("/b.so")), b"LD_PRELOAD=/b.so\0");
    }

    #[test]
    fn privileged_programs_are_told() {
        assert!(Start::parse(start(&[1], &[AT_SECURE, 1])).unwrap().is_privileged());
        assert!(!Start::parse(start(&[], &[AT_SECURE, 0])).unwrap().is_privileged());
    }
}
