//! Files as a process sees them, under its root and working directory, and Python source text read the way Python reads it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use encoding_rs::Encoding;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::Pid;

use super::archive;

/// The most bytes of a source file; a longer one is not read.
const LONGEST_SOURCE: u64 = 16 << 20;

/// A process's root and working directory, held open: they can be read after the process has ended.
#[derive(Debug)]
pub struct Root {
    root: OwnedFd,
    working: OwnedFd,
    /// The working directory's path below the root, where opening it gives that very directory.
    working_path: Option<PathBuf>,
}

/// The text of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its lines, without their ends.
    pub lines: Vec<String>,
    /// When the file was last changed, or got its name (`st_ctime`).
    pub changed: SystemTime,
}

impl Root {
    /// Opens both directories of a process.
    ///
    /// # Errors
    /// Where the process is gone, or may not be looked at (another user's: CAP_SYS_PTRACE).
    pub fn of(pid: Pid) -> io::Result<Self> {
        let (root_link, working_link) = (format!("/proc/{pid}/root"), format!("/proc/{pid}/cwd"));
        let (root, working) = (open_directory(&root_link)?, open_directory(&working_link)?);
        let working_path = std::fs::read_link(root_link)
            .and_then(|root_path| Ok((root_path, std::fs::read_link(working_link)?)))
            .ok()
            .and_then(|(root_path, path)| Some(path.strip_prefix(root_path).ok()?.to_owned()))
            .filter(|path| {
                let found = open_below(root.as_fd(), path, OFlag::O_DIRECTORY, ResolveFlag::RESOLVE_IN_ROOT);
                found.is_ok_and(|found| same_file(found.as_fd(), working.as_fd()))
            });
        Ok(Self { root, working, working_path })
    }

    /// The absolute name that the working directory has for the process, where it has one.
    pub fn working_path(&self) -> Option<PathBuf> {
        self.working_path.as_ref().map(|path| Path::new("/").join(path))
    }

    /// Opens a directory of this absolute name, which has no link on its way.
    ///
    /// # Errors
    /// Those of opening.
    pub fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        open_below(self.root.as_fd(), path, OFlag::O_DIRECTORY, resolve)
    }

    /// Which directory the root is: its file system and inode.
    ///
    /// # Errors
    /// What the system says.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let data = File::from(self.root.try_clone()?).metadata()?;
        Ok((data.dev(), data.ino()))
    }

    /// Opens a regular file by the name the process would use: absolute names start at its root, relative ones at its
    /// working directory, and no link leads out of the root.
    ///
    /// # Errors
    /// Those of opening; `InvalidInput` where it is no regular file. `ENOSYS` before Linux 5.6.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let found = match &self.working_path {
            _ if path.is_absolute() => self.locate(path)?,
            Some(working) => self.locate(&working.join(path))?,
            // The working directory has no name under the root (deleted, or outside it): only what lies below it.
            None => open_below(self.working.as_fd(), path, OFlag::empty(), ResolveFlag::RESOLVE_BENEATH)?,
        };
        // Looked at before it is opened for reading: opening a device or a pipe can do something.
        let data = File::from(found.try_clone()?).metadata()?;
        if !data.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not a regular file", path.display())));
        }
        File::options()
            .read(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    fn locate(&self, path: &Path) -> io::Result<OwnedFd> {
        open_below(self.root.as_fd(), path, OFlag::empty(), ResolveFlag::RESOLVE_IN_ROOT)
    }

    /// Reads a Python source file; one of a zip archive by the name that `zipimport` gives it, `ARCHIVE/NAME`.
    ///
    /// # Errors
    /// As [`Root::open`]; `FileTooLarge` above 16 MiB.
    pub fn read_source(&self, path: &Path) -> io::Result<Source> {
        let (file, within) = self.open_or_archive(path)?;
        let about = file.metadata()?;
        let since = Duration::new(about.ctime().try_into().unwrap_or(0), about.ctime_nsec().try_into().unwrap_or(0));
        // The file system is the target's: it may name a time that has no value here.
        let changed = UNIX_EPOCH.checked_add(since).unwrap_or_else(SystemTime::now);
        let read = |file: &mut dyn Read| {
            let mut content = Vec::new();
            file.take(LONGEST_SOURCE + 1).read_to_end(&mut content).map(|_| content)
        };
        let content = match within {
            None => read(&mut &file)?,
            Some(name) => archive::read_within(file, name, read)?,
        };
        if content.len() as u64 > LONGEST_SOURCE {
            let message = format!("{}: more than {} MiB of source", path.display(), LONGEST_SOURCE >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(Source { lines: lines(&decode(&content)), changed })
    }

    /// The file, or the one that is taken for a folder by the name, and what the name goes on with.
    fn open_or_archive<'p>(&self, path: &'p Path) -> io::Result<(File, Option<&'p str>)> {
        let is_in_file = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTDIR);
        let mut refused = match self.open(path) {
            Ok(file) => return Ok((file, None)),
            Err(error) => error,
        };
        for archive in path.ancestors().skip(1) {
            if !is_in_file(&refused) {
                break;
            }
            match self.open(archive) {
                Ok(file) => return Ok((file, path.strip_prefix(archive).ok().and_then(Path::to_str))),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    Ok(File::options().read(true).custom_flags(flags).open(path)?.into())
}

fn open_below(directory: BorrowedFd<'_>, path: &Path, flags: OFlag, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(directory, path, how)?)
}

fn same_file(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let identity = |fd: BorrowedFd<'_>| {
        let data = File::from(fd.try_clone_to_owned().ok()?).metadata().ok()?;
        Some((data.dev(), data.ino()))
    };
    identity(one).is_some_and(|found| identity(other) == Some(found))
}

/// Source bytes to text by PEP 263: a byte order mark or the coding cookie in the first two lines, UTF-8 without either.
/// An encoding unknown here (DOS code pages) is read as UTF-8; what does not fit becomes U+FFFD.
fn decode(content: &[u8]) -> String {
    if let Some(rest) = content.strip_prefix(b"\xef\xbb\xbf") {
        return String::from_utf8_lossy(rest).into_owned();
    }
    let name = normalize(&cookie(content).unwrap_or_default());
    match name.as_str() {
        "latin-1" => content.iter().map(|&byte| char::from(byte)).collect(),
        "ascii" => content
            .iter()
            .map(|&byte| if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER })
            .collect(),
        _ => encoding(&name).decode_without_bom_handling(content).0.into_owned(),
    }
}

/// An encoding by the name it has in Python; UTF-8 where it is none of the encoding standard's that leave ASCII as it is, which
/// source text of Python must.
fn encoding(name: &str) -> &'static Encoding {
    // Names of Python (Lib/encodings/aliases.py) that the standard has not.
    const ALIASES: &[(&str, &str)] = &[
        ("cp932", "windows-31j"),
        ("ms-kanji", "windows-31j"),
        ("cp936", "gbk"),
        ("cp949", "windows-949"),
        ("uhc", "windows-949"),
        ("cp950", "big5"),
        ("eucjp", "euc-jp"),
        ("euckr", "euc-kr"),
        ("latin7", "iso-8859-13"),
        ("latin8", "iso-8859-14"),
        ("latin9", "iso-8859-15"),
        ("latin10", "iso-8859-16"),
        ("mac-roman", "macintosh"),
        ("mac-cyrillic", "x-mac-cyrillic"),
    ];
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    // `iso8859-2` and `iso8859_2` are Python's own spelling.
    let spelled = alias.strip_prefix("iso8859-").map_or_else(|| alias.to_owned(), |rest| format!("iso-8859-{rest}"));
    let known = [spelled.clone(), spelled.replace('-', "_")];
    let found = known.iter().find_map(|label| Encoding::for_label_no_replacement(label.as_bytes()));
    found.filter(|encoding| encoding.is_ascii_compatible()).unwrap_or(encoding_rs::UTF_8)
}

/// The name in `# -*- coding: NAME -*-`; the second line counts only where the first is blank or a comment.
fn cookie(content: &[u8]) -> Option<String> {
    for line in content.split(|&byte| byte == b'\n').take(2) {
        let text = line.trim_ascii_start();
        let text = text.strip_prefix(b"\x0c").unwrap_or(text).trim_ascii();
        if !text.starts_with(b"#") {
            if text.is_empty() {
                continue;
            }
            return None;
        }
        if let Some(name) = cookie_of_comment(text) {
            return Some(name);
        }
    }
    None
}

/// PEP 263's `coding[:=][ \t]*([-_.a-zA-Z0-9]+)` within a comment.
fn cookie_of_comment(comment: &[u8]) -> Option<String> {
    const WORD: &[u8] = b"coding";
    comment.windows(WORD.len()).enumerate().filter(|(_, window)| *window == WORD).find_map(|(start, _)| {
        let after = &comment[start + WORD.len()..];
        let name = after.strip_prefix(b":").or_else(|| after.strip_prefix(b"="))?.trim_ascii_start();
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let name: Vec<u8> = name.iter().copied().take_while(allowed).take(64).collect();
        (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
    })
}

/// Python's `get_normal_name`, and the other names of the two encodings that the encoding standard knows as larger ones.
fn normalize(encoding: &str) -> String {
    let name = encoding.to_ascii_lowercase().replace('_', "-");
    let begins = |head: &str| name.strip_prefix(head).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    if ["latin-1", "iso-8859-1", "iso-latin-1"].into_iter().any(begins) {
        return "latin-1".to_owned();
    }
    match name.as_str() {
        "iso8859-1" | "iso8859" | "latin1" | "latin" | "l1" | "cp819" | "8859" => "latin-1".to_owned(),
        "ascii" | "us-ascii" | "646" => "ascii".to_owned(),
        _ => name,
    }
}

/// Splits at `\n`, `\r\n` and `\r`, as Python's tokenizer does; a form feed or U+2028 ends no line.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.replace("\r\n", "\n").split(['\n', '\r']).map(str::to_owned).collect();
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::{Command, Stdio};

    #[test]
    fn decodes_as_pep_263_says() {
        assert_eq!(decode(b"\xef\xbb\xbfx = 1"), "x = 1");
        assert_eq!(decode("é".as_bytes()), "é");
        assert_eq!(decode(b"# -*- coding: latin-1 -*-\n\xe9"), "# -*- coding: latin-1 -*-\né");
        assert_eq!(
            decode(b"#!/usr/bin/python\n# vim: set fileencoding=iso-8859-15 :\n\xe9"),
            "#!/usr/bin/python\n# vim: set fileencoding=iso-8859-15 :\né"
        );
        assert_eq!(decode(b"\n# coding=Latin_1\n\xe9"), "\n# coding=Latin_1\né");
        assert_eq!(decode(b"x = 1\n# coding=latin-1\n\xe9"), "x = 1\n# coding=latin-1\n\u{fffd}");
        assert_eq!(decode(b"\n\n# coding=latin-1\n\xe9"), "\n\n# coding=latin-1\n\u{fffd}");
        assert_eq!(decode(b"# coding: us-ascii\n\xe9"), "# coding: us-ascii\n\u{fffd}");
        assert_eq!(decode(b"# coding coding: latin-1\n\xe9"), "# coding coding: latin-1\né");
        assert_eq!(decode(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn decodes_what_python_does_by_the_names_it_has() {
        for (names, bytes, text) in [
            (&["cp1251", "CP1251", "windows-1251", "windows_1251"][..], &b"\xef\xf0\xe8"[..], "при"),
            (&["koi8-r", "KOI8_R"], b"\xd0\xd2\xc9", "при"),
            (&["shift_jis", "shift-jis", "sjis", "cp932", "ms_kanji"], b"\x93\xfa\x96\x7b", "日本"),
            (&["euc-jp", "euc_jp", "eucjp"], b"\xc6\xfc\xcb\xdc", "日本"),
            (&["euc-kr", "euc_kr", "cp949"], b"\xc7\xd1", "한"),
            (&["gb2312", "gbk", "cp936", "gb18030"], b"\xd6\xd0\xce\xc4", "中文"),
            (&["big5", "cp950"], b"\xa4\xa4", "中"),
            (&["iso-8859-2", "iso8859-2", "iso8859_2", "latin2"], b"\xb3", "ł"),
            (&["iso-8859-15", "latin9", "l9"], b"\xa4", "€"),
            (&["cp866"], b"\xaf", "п"),
            (&["mac-roman"], b"\x8e", "é"),
            (&["latin-1", "latin1", "iso-8859-1-unix", "L1"], b"\x80", "\u{80}"),
            // What is known to nobody, or leaves ASCII not as it is, is read as UTF-8.
            (&["cp437", "utf-16", "iso2022_jp", "hz"], b"\xe9", "\u{fffd}"),
        ] {
            for name in names {
                let content = [b"# coding: ", name.as_bytes(), b"\n", bytes].concat();
                assert_eq!(decode(&content), format!("# coding: {name}\n{text}"), "{name}");
            }
        }
    }

    #[test]
    fn splits_as_python_does() {
        assert_eq!(lines("a\nb\r\nc\rd\n"), ["a", "b", "c", "d"]);
        assert_eq!(lines("a\x0cb\u{2028}c"), ["a\x0cb\u{2028}c"]);
        assert_eq!(lines("\n\nx"), ["", "", "x"]);
        assert!(lines("").is_empty());
    }

    #[test]
    fn reads_under_the_working_directory_even_when_the_process_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.py"), "x = 1\ny = 2\n").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        symlink(folder.path().join("a.py"), folder.path().join("sub/link.py")).unwrap();
        symlink("/proc/self/root/etc", folder.path().join("magic")).unwrap();
        let mut child =
            Command::new("cat").current_dir(folder.path().join("sub")).stdin(Stdio::piped()).spawn().unwrap();
        let root = Root::of(Pid::from_raw(child.id() as i32)).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(root.read_source(Path::new("../a.py")).unwrap().lines, ["x = 1", "y = 2"]);
        assert_eq!(root.read_source(Path::new("link.py")).unwrap().lines.len(), 2);
        assert_eq!(root.read_source(&folder.path().join("a.py")).unwrap().lines.len(), 2);
        let archive = File::create(folder.path().join("a.zip")).unwrap();
        let mut writer = zip::ZipWriter::new(archive);
        writer.start_file("deep/b.py", zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut writer, b"z = 3\r\n").unwrap();
        writer.finish().unwrap();
        assert_eq!(root.read_source(Path::new("../a.zip/deep/b.py")).unwrap().lines, ["z = 3"]);
        for missing in ["../a.zip/b.py", "../a.zip/deep", "../a.py/b.py", "../b.zip/deep/b.py"] {
            assert!(root.read_source(Path::new(missing)).is_err(), "{missing}");
        }
        assert!(root.open(Path::new("missing.py")).is_err());
        assert!(root.open(Path::new("../magic/passwd")).is_err());
        for special in ["/dev/null", "/", "../sub"] {
            assert!(root.open(Path::new(special)).is_err(), "{special}");
        }
    }

    #[test]
    fn a_long_file_and_a_pipe_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (long, pipe) = (folder.path().join("long.py"), folder.path().join("pipe"));
        File::create(&long).unwrap().set_len(LONGEST_SOURCE + 1).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let root = Root::of(Pid::this()).unwrap();
        assert_eq!(root.read_source(&long).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(root.read_source(&pipe).is_err());
    }

    /// Needs root: a process in a `chroot` sees its own `/etc`.
    #[test]
    fn root_chroot() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("etc/deep")).unwrap();
        std::fs::write(folder.path().join("etc/only-here.py"), "1\n").unwrap();
        symlink("/etc/only-here.py", folder.path().join("etc/deep/absolute.py")).unwrap();
        symlink("../../../../../../etc/passwd", folder.path().join("etc/deep/escape")).unwrap();
        // SAFETY: the child makes system calls only, then waits to be killed.
        let child = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => {
                nix::unistd::chroot(folder.path()).ok();
                nix::unistd::chdir("/etc/deep").ok();
                nix::unistd::pause();
                // SAFETY: ends the child without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
        };
        let in_place = || std::fs::read_link(format!("/proc/{child}/cwd")).is_ok_and(|path| path.ends_with("etc/deep"));
        while !in_place() {
            std::thread::yield_now();
        }
        let root = Root::of(child).unwrap();
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
        for path in ["/etc/only-here.py", "../only-here.py", "absolute.py", "/etc/deep/absolute.py"] {
            assert_eq!(root.read_source(Path::new(path)).unwrap().lines, ["1"], "{path}");
        }
        assert!(root.open(Path::new("escape")).is_err());
    }
}
