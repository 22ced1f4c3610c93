//! Who cares for processes that outlive their parent: the first process of the PID namespace. In containers it is often a program that
//! never heard of that, and then an orphan that has ended stays in the process table.

use procfs::process::Process;

use super::{identity, status};

/// So many may lie about before we take it that nobody collects them: some look for them on a clock.
const MOST_UNCOLLECTED: usize = 16;
/// SIGCHLD in the masks of `/proc/PID/status`.
const CHILD_SIGNAL: u64 = 1 << (libc::SIGCHLD - 1);

/// Are orphans collected, once they have ended? Either the first process heeds the signal that tells of them (it catches it, waits for it
/// blocked, or ignores it, which collects them too), or few of those with this name (`comm`) lie about.
pub fn are_collected(name: &str) -> bool {
    let heeded = Process::new(1)
        .and_then(|first| first.status())
        .map(|status| (status.sigcgt | status.sigblk | status.sigign) & CHILD_SIGNAL != 0);
    heeded.unwrap_or(false) || uncollected(name) < MOST_UNCOLLECTED
}

/// Processes of this name that have ended and are still in the table; counted no further than needed.
fn uncollected(name: &str) -> usize {
    let all = identity::processes().into_iter().flatten();
    all.filter(|process| status::is_uncollected(*process, name)).take(MOST_UNCOLLECTED).count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn what_has_ended_is_uncollected_until_somebody_waits_for_it() {
        let name = "rmprof-orphan";
        let copy = tempfile::tempdir().unwrap();
        let program = copy.path().join(name);
        std::fs::copy("/bin/true", &program).unwrap();
        let mut child = std::process::Command::new(&program).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert_eq!(uncollected(name), 1);
        child.wait().unwrap();
        assert_eq!(uncollected(name), 0);
        assert!(are_collected(name));
    }
}
