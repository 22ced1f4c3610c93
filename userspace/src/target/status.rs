//! What the kernel says of a process: its command line, its family, its age and its resident memory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, SystemTime};

use nix::unistd::Pid;

/// The most bytes read of a command line; a longer one is cut.
const LONGEST_COMMAND_LINE: u64 = 1 << 20;
/// The most bytes read of any other file here, all of which the kernel writes.
const LONGEST_STATUS: u64 = 64 << 10;
/// Room for what such a file usually has: it is read in one call, where a vector that grows from nothing takes eight.
const USUAL_STATUS: usize = 4 << 10;

/// Resident memory by kind, bytes, as the kernel's own counters have it (`RssAnon`, `RssFile`, `RssShmem`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Anonymous memory: heap, stacks, private pages that were written.
    pub anonymous_bytes: u64,
    /// Pages of files.
    pub file_bytes: u64,
    /// Shared memory and tmpfs.
    pub shared_bytes: u64,
}

impl Resident {
    /// All three: what `VmRSS` says.
    pub fn total_bytes(&self) -> u64 {
        self.anonymous_bytes.saturating_add(self.file_bytes).saturating_add(self.shared_bytes)
    }
}

fn read_bounded(pid: Pid, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(USUAL_STATUS);
    File::open(format!("/proc/{pid}/{name}"))?.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

fn malformed(pid: Pid, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("process {pid}: its {name} is not as expected"))
}

/// The command line, one entry an argument; empty for a kernel thread or a zombie. The program may have overwritten it.
///
/// # Errors
/// `NotFound` (or `ESRCH`) where the process is gone.
pub fn command_line(pid: Pid) -> io::Result<Vec<OsString>> {
    Ok(split_command_line(&read_bounded(pid, "cmdline", LONGEST_COMMAND_LINE)?))
}

/// The words of a command line as the kernel has them, each with a NUL after it.
pub fn split_command_line(content: &[u8]) -> Vec<OsString> {
    let content = content.strip_suffix(b"\0").unwrap_or(content);
    if content.is_empty() {
        return Vec::new();
    }
    content.split(|&byte| byte == 0).map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// The fields of `stat` after the command name, which may itself hold spaces and parentheses. `[0]` is the state.
fn stat_fields(pid: Pid) -> io::Result<Vec<String>> {
    let content = read_bounded(pid, "stat", LONGEST_STATUS)?;
    fields_after_name(&content).ok_or_else(|| malformed(pid, "stat"))
}

fn fields_after_name(content: &[u8]) -> Option<Vec<String>> {
    let name_end = content.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&content[name_end + 1..]).ok()?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

fn stat_number(pid: Pid, index: usize) -> io::Result<u64> {
    let fields = stat_fields(pid)?;
    fields.get(index).and_then(|field| field.parse().ok()).ok_or_else(|| malformed(pid, "stat"))
}

/// The parent of a process; 0 where it is outside our PID namespace.
///
/// # Errors
/// Where the process is gone.
pub fn parent_pid(pid: Pid) -> io::Result<Pid> {
    let parent = stat_number(pid, 1)?;
    i32::try_from(parent).map(Pid::from_raw).map_err(|_| malformed(pid, "stat"))
}

/// Is a thread running, or about to?
pub fn is_running(thread: Pid) -> bool {
    stat_fields(thread).is_ok_and(|fields| fields.first().is_some_and(|state| state == "R"))
}

/// Has a process of this name ended, and is in the table still?
pub fn is_uncollected(pid: Pid, name: &str) -> bool {
    read_bounded(pid, "stat", LONGEST_STATUS)
        .is_ok_and(|content| content.starts_with(format!("{pid} ({name}) Z").as_bytes()))
}

/// When the process began, to the kernel's clock tick (10 ms).
///
/// # Errors
/// Where the process is gone.
pub fn started(pid: Pid) -> io::Result<SystemTime> {
    let ticks = stat_number(pid, 19)?;
    // SAFETY: no pointers; returns a number or -1.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    let after_boot = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    // Both clocks read together, so that a step of the wall clock since boot does not matter.
    let age = since_boot()?.saturating_sub(after_boot);
    Ok(SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH))
}

fn since_boot() -> io::Result<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing for the length of the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0)))
}

/// The control group of the process within the unified hierarchy (`/system.slice/…`); for version 1, and where it is in the root of
/// the unified one, that of the first hierarchy listed in which it is in another than the root; empty where there is none. As seen from our own cgroup namespace.
///
/// # Errors
/// Where the process is gone.
pub fn cgroup(pid: Pid) -> io::Result<String> {
    Ok(cgroup_path(&String::from_utf8_lossy(&read_bounded(pid, "cgroup", LONGEST_STATUS)?)))
}

fn cgroup_path(content: &str) -> String {
    let path = |line: &str| line.splitn(3, ':').nth(2).map(str::to_owned);
    let unified = content.lines().find(|line| line.starts_with("0::")).and_then(path);
    // Where both versions are mounted, containers may be groups of version 1 alone.
    let is_told = |path: &String| !path.is_empty() && path != "/";
    let first = || content.lines().filter_map(path).find(is_told).or_else(|| content.lines().next().and_then(path));
    unified.clone().filter(is_told).or_else(first).or(unified).unwrap_or_default()
}

/// One value of `status`, with the key's colon and the white space around it gone.
fn status_value(pid: Pid, keys: &[&str]) -> io::Result<Vec<Option<String>>> {
    let content = read_bounded(pid, "status", LONGEST_STATUS)?;
    let content = String::from_utf8_lossy(&content);
    Ok(keys
        .iter()
        .map(|key| content.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned())))
        .collect())
}

/// Resident memory of the process; all zero for a zombie, which has none.
///
/// # Errors
/// Where the process is gone.
pub fn resident(pid: Pid) -> io::Result<Resident> {
    let values = status_value(pid, &["RssAnon", "RssFile", "RssShmem"])?;
    let bytes = |index: usize| {
        let value = values.get(index).cloned().flatten();
        value.and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
    };
    Ok(Resident { anonymous_bytes: bytes(0), file_bytes: bytes(1), shared_bytes: bytes(2) })
}

/// User, group and supplementary groups by which the process's access to files is judged (the last of the four numbers of `Uid` and
/// `Gid`), as our user namespace has them.
///
/// # Errors
/// Where the process is gone.
pub fn file_rights(pid: Pid) -> io::Result<(u32, u32, Vec<u32>)> {
    let values = status_value(pid, &["Uid", "Gid", "Groups"])?;
    let numbers = |index: usize| -> Vec<u32> {
        let text = values.get(index).cloned().flatten().unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect()
    };
    match (numbers(0).get(3), numbers(1).get(3)) {
        (Some(user), Some(group)) => Ok((*user, *group, numbers(2))),
        _ => Err(malformed(pid, "status")),
    }
}

/// Who traces a thread by ptrace, if anybody does.
///
/// # Errors
/// Where the thread is gone.
pub fn tracer(thread: Pid) -> io::Result<Option<Pid>> {
    let values = status_value(thread, &["TracerPid"])?;
    let number = values.into_iter().flatten().next().and_then(|text| text.parse().ok());
    Ok(number.filter(|number| *number > 0).map(Pid::from_raw))
}

/// The process (thread group) a thread belongs to.
///
/// # Errors
/// Where the thread is gone.
pub fn process_of_thread(thread: Pid) -> io::Result<Pid> {
    let values = status_value(thread, &["Tgid"])?;
    let process = values.into_iter().flatten().next().and_then(|text| text.parse().ok());
    process.map(Pid::from_raw).ok_or_else(|| malformed(thread, "status"))
}

/// The process's number in its own, innermost PID namespace: what the program's own `getpid` says.
///
/// # Errors
/// Where the process is gone.
pub fn innermost_pid(pid: Pid) -> io::Result<Pid> {
    let values = status_value(pid, &["NSpid"])?;
    let numbers = values.into_iter().flatten().next().unwrap_or_default();
    Ok(numbers.split_ascii_whitespace().last().and_then(|text| text.parse().ok()).map_or(pid, Pid::from_raw))
}

/// The short name of the process (`comm`), at most 15 bytes, as bytes: the program may set it to anything.
///
/// # Errors
/// Where the process is gone.
pub fn name(pid: Pid) -> io::Result<OsString> {
    let content = read_bounded(pid, "comm", 64)?;
    let content = content.strip_suffix(b"\n").unwrap_or(&content);
    Ok(std::ffi::OsStr::from_bytes(content).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_status() {
        let me = Pid::this();
        assert!(!command_line(me).unwrap().is_empty());
        assert_eq!(parent_pid(me).unwrap(), Pid::parent());
        let age = SystemTime::now().duration_since(started(me).unwrap()).unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        let resident = resident(me).unwrap();
        assert!(resident.anonymous_bytes > 100_000 && resident.file_bytes > 100_000, "{resident:?}");
        assert!(resident.total_bytes() > resident.anonymous_bytes);
        assert_eq!(process_of_thread(nix::unistd::gettid()).unwrap(), me);
        assert!(!name(me).unwrap().is_empty());
        cgroup(me).unwrap();
        innermost_pid(me).unwrap();
    }

    #[test]
    fn gone_process_is_an_error() {
        let nobody = Pid::from_raw(0x3fff_fff0);
        assert!(resident(nobody).is_err() && command_line(nobody).is_err() && parent_pid(nobody).is_err());
    }

    #[test]
    fn hostile_texts() {
        let fields = fields_after_name(b"7 (a) S 1 (b)) R 42 1 1\n").unwrap();
        assert_eq!(fields[..2], ["R", "42"]);
        assert!(fields_after_name(b"no name").is_none());
        assert_eq!(split_command_line(b"a\0\0b\0"), ["a", "", "b"]);
        assert!(split_command_line(b"").is_empty());
        assert_eq!(cgroup_path("12:cpu:/old\n0::/a:b\n"), "/a:b");
        assert_eq!(cgroup_path("1:name=systemd:/x\n"), "/x");
        assert_eq!(cgroup_path("3:cpu:/\n2:memory:/kubepods/x\n0::/\n"), "/kubepods/x");
        assert_eq!(cgroup_path("3:cpu:/\n0::/\n"), "/");
        assert_eq!(cgroup_path(""), "");
    }
}
