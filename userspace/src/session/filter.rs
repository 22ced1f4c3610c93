//! Which processes of the machine are asked for.

use super::hold::command_of as command_line;
use crate::kernel::event::Command;
use crate::plan::Filter;
use crate::report::Globs;
use crate::target::identity::{self, Container};
use crate::target::{Pid, status};

impl Filter {
    /// Is this process one of them, as it is now? `words`: its command line, where it is known.
    pub(super) fn admits(&self, pid: Pid, words: Option<&[String]>) -> bool {
        let runs = |globs| words.map_or_else(|| runs(globs, &command_line(pid)), |words| runs(globs, words));
        self.cgroup.as_ref().is_none_or(|globs| in_group(globs, &status::cgroup(pid).unwrap_or_default()))
            && self.user.as_ref().is_none_or(|globs| of_user(globs, pid))
            && self.command.as_ref().is_none_or(runs)
    }

    /// May a process have been one of them that nobody could look at? Only its command line is known, perhaps.
    pub(super) fn may_admit(&self, command: &Command) -> bool {
        !command.whole || self.command.as_ref().is_none_or(|globs| runs(globs, &command.words))
    }
}

/// The whole path, a part of it, or the number of the container, which is often cut to twelve digits.
fn in_group(globs: &Globs, path: &str) -> bool {
    let container = Container::of_path(path);
    let number = container.id.as_deref().unwrap_or_default();
    globs.matches(path)
        || path.split('/').any(|part| !part.is_empty() && globs.matches(part))
        || (!number.is_empty() && (globs.matches(number) || globs.matches(number.get(..12).unwrap_or(number))))
}

fn of_user(globs: &Globs, pid: Pid) -> bool {
    let Ok((user, ..)) = status::file_rights(pid) else { return false };
    globs.matches(&user.to_string()) || identity::user_name(user).is_some_and(|name| globs.matches(&name))
}

/// The whole command line, or the name of its program, or that of its script or module.
fn runs(globs: &Globs, words: &[String]) -> bool {
    let script = crate::report::program_word(words);
    globs.matches(&words.join(" ")) || words.first().into_iter().chain(script).any(|word| globs.matches(word))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn globs(pattern: &str) -> Globs {
        Globs::new(&[pattern.to_owned()]).unwrap().unwrap()
    }

    #[test]
    fn a_group_is_known_by_path_part_or_container() {
        let number = "0123456789abcdef".repeat(4);
        let path = format!("/system.slice/docker-{number}.scope");
        for pattern in ["/system.slice/*", "system.slice", "docker-*", "0123456789ab", &number, "0123*"] {
            assert!(in_group(&globs(pattern), &path), "{pattern}");
        }
        for pattern in ["/user.slice/*", "slice", "123*"] {
            assert!(!in_group(&globs(pattern), &path), "{pattern}");
        }
    }

    #[test]
    fn ourselves_by_user_and_command() {
        let me = Pid::this();
        let user = nix::unistd::geteuid();
        assert!(of_user(&globs(&user.to_string()), me));
        let name = nix::unistd::User::from_uid(user).unwrap().map(|user| user.name);
        assert!(name.is_none_or(|name| of_user(&globs(&name), me)));
        let words = command_line(me);
        assert!(runs(&globs("rmprof_bpf-*"), &words) && !runs(&globs("python*"), &words));
    }

    #[test]
    fn what_ended_unseen_may_have_been_asked_for_unless_its_command_says_no() {
        let filter = |command: Option<&str>| Filter { cgroup: None, user: None, command: command.map(globs) };
        let of = |text: &str, whole| Command { words: text.split(' ').map(str::to_owned).collect(), whole };
        assert!(filter(Some("*job*")).may_admit(&of("python3 job.py", true)));
        assert!(!filter(Some("*job*")).may_admit(&of("python3 other.py", true)));
        assert!(filter(Some("*job*")).may_admit(&of("python3 oth", false)), "cut");
        assert!(filter(None).may_admit(&of("python3 other.py", true)));
    }
}
