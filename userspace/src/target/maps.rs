//! The mappings of a process, and the files behind them as the process itself sees them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::source::Root;

/// The most bytes of the list of mappings that are read; the kernel's default limit of 65,530 mappings fits.
const LONGEST_LIST: u64 = 64 << 20;
/// Room for the list of a small Python.
const USUAL_LIST: usize = 16 << 10;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Writes go to the file and to other processes.
    pub shared: bool,
}

/// One mapping, a line of the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Where in the file `start` is, bytes.
    pub offset: u64,
    /// Device of the file (major, minor), as the kernel's list gives it. On btrfs and overlayfs it is not the one `stat` gives.
    pub device: (u32, u32),
    /// Inode of the file; 0 for anonymous memory.
    pub inode: u64,
    /// Path as the process's mount namespace names it, or a `[name]`, or empty.
    pub path: PathBuf,
    /// The file has no name any more.
    pub deleted: bool,
    /// What it allows.
    pub permissions: Permissions,
}

impl Mapping {
    /// Whether a file stands behind it.
    pub fn is_file(&self) -> bool {
        self.inode != 0 && self.path.as_os_str().as_bytes().first() == Some(&b'/')
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// Whether two mappings are of one file.
    pub fn same_file(&self, other: &Mapping) -> bool {
        self.is_file() && (self.device, self.inode) == (other.device, other.inode)
    }

    /// The last part of the path: `libc.so.6`.
    pub fn file_name(&self) -> &std::ffi::OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

/// The mappings of a process in the order of their addresses.
///
/// # Errors
/// Where the process is gone or may not be looked at. A zombie has none.
pub fn mappings(pid: Pid) -> io::Result<Vec<Mapping>> {
    // In few calls: each takes the lock of the process's mappings.
    let mut content = Vec::with_capacity(USUAL_LIST);
    File::open(format!("/proc/{pid}/maps"))?.take(LONGEST_LIST).read_to_end(&mut content)?;
    Ok(content.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// `start-end rwxp offset major:minor inode   path`, the path being bytes with `\n` written as `\012`.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || -> Option<&str> {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        rest = after.strip_prefix(b" ").unwrap_or(after);
        std::str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let flags = field()?.as_bytes();
    let offset = u64::from_str_radix(field()?, 16).ok()?;
    let (major, minor) = field()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = field()?.parse().ok()?;
    let (path, deleted) = parse_path(rest.trim_ascii_start());
    let flag = |index: usize, letter: u8| flags.get(index) == Some(&letter);
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset,
        device,
        inode,
        path,
        deleted,
        permissions: Permissions {
            read: flag(0, b'r'),
            write: flag(1, b'w'),
            execute: flag(2, b'x'),
            shared: flag(3, b's'),
        },
    })
}

fn parse_path(text: &[u8]) -> (PathBuf, bool) {
    let (text, deleted) = match text.strip_suffix(b" (deleted)") {
        Some(name) if name.first() == Some(&b'/') => (name, true),
        _ => (text, false),
    };
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            path.push(b'\n');
            rest = after;
        } else {
            path.push(byte);
            rest = after;
        }
    }
    (PathBuf::from(OsString::from_vec(path)), deleted)
}

/// Opens the very file a mapping shows, even if its name is gone or lies in another mount namespace.
///
/// # Errors
/// Where the process or mapping is gone, or where only another file has that name now.
pub fn open_file(pid: Pid, mapping: &Mapping) -> io::Result<File> {
    if !mapping.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the mapping is of no file"));
    }
    // Needs CAP_SYS_ADMIN before 5.9 and CAP_CHECKPOINT_RESTORE after (fs/proc/base.c, proc_map_files_get_link).
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    if let Ok(file) = File::open(&link)
        && file.metadata().is_ok_and(|data| data.is_file())
    {
        return Ok(file);
    }
    let file = Root::of(pid)?.open(&mapping.path)?;
    let data = file.metadata()?;
    let device = (libc::major(data.dev()), libc::minor(data.dev()));
    if (device, data.ino()) == (mapping.device, mapping.inode) {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("{}: not the file process {pid} has mapped", mapping.path.display()),
    ))
}

/// Opens the program a process runs.
///
/// # Errors
/// Where the process is gone or may not be looked at.
pub fn open_executable(pid: Pid) -> io::Result<File> {
    File::open(format!("/proc/{pid}/exe"))
}

/// The path of the program a process runs, as our own mount namespace would name it; a trailing ` (deleted)` is the kernel's.
///
/// # Errors
/// Where the process is gone or may not be looked at.
pub fn executable_path(pid: Pid) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// The first mapping of a file whose last path component satisfies a test.
pub fn find_file(mappings: &[Mapping], test: impl Fn(&Path) -> bool) -> Option<&Mapping> {
    mappings.iter().find(|mapping| mapping.is_file() && test(Path::new(mapping.file_name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = b"7f10-7f20 r-xp 00001000 fe:0a 1234                       /opt/a b/lib\\012x.so (deleted)";
        let mapping = parse_line(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.offset), (0x7f10, 0x7f20, 0x1000));
        assert_eq!((mapping.device, mapping.inode, mapping.deleted), ((0xfe, 10), 1234, true));
        assert_eq!(mapping.path, Path::new("/opt/a b/lib\nx.so"));
        assert!(mapping.permissions.read && mapping.permissions.execute);
        assert!(!mapping.permissions.write && !mapping.permissions.shared);
        let anonymous = parse_line(b"1000-2000 rw-s 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.is_file() && anonymous.permissions.shared && anonymous.path.as_os_str().is_empty());
        for bad in [&b""[..], b"x-y rwxp 0 0:0 0", b"10-20", b"10-20 r 0 0 0", b"\xff\xff-\xff"] {
            assert_eq!(parse_line(bad), None);
        }
    }

    #[test]
    fn own_mappings_and_their_files() {
        let me = Pid::this();
        let mappings = mappings(me).unwrap();
        let here = own_mappings_and_their_files as *const () as u64;
        let mine = mappings.iter().find(|mapping| mapping.contains(here)).unwrap();
        assert!(mine.permissions.execute && mine.is_file());
        let file = open_file(me, mine).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), mine.inode);
        assert!(find_file(&mappings, |name| name.to_string_lossy().starts_with("libc.so")).is_some());
        assert!(open_file(me, &Mapping { inode: 0, ..mine.clone() }).is_err());
        let elsewhere = Mapping { start: 0x10, end: 0x20, inode: mine.inode + 1, ..mine.clone() };
        assert!(open_file(me, &elsewhere).is_err());
        assert_eq!(executable_path(me).unwrap(), std::env::current_exe().unwrap());
        open_executable(me).unwrap();
    }
}
