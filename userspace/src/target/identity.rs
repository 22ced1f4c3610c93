//! Whose a process is: which there are, its user's name, and its container by its control group.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use nix::unistd::{Pid, Uid, User};

use super::pods::Pods;
use super::source::Root;
use super::status;

/// Hexadecimal digits of a container's number (OCI runtimes).
const DIGITS: usize = 64;
/// The longest name of a host (Linux's HOST_NAME_MAX).
const LONGEST_HOST: u64 = 64;

/// The container that a process is in, as far as its control group tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its number.
    pub id: Option<String>,
    /// The number of its pod.
    pub pod_uid: Option<String>,
    /// The name of its pod.
    pub pod: Option<String>,
    /// And of the namespace that the pod has in its cluster.
    pub pod_namespace: Option<String>,
}

impl Container {
    /// What a control group's path says: `/docker/NUMBER`, `docker-NUMBER.scope`, `kubepods/podUID/NUMBER`,
    /// `kubepods-podUID.slice/cri-containerd-NUMBER.scope`, `libpod-NUMBER.scope`.
    pub fn of_path(path: &str) -> Self {
        let mut found = Self::default();
        for part in path.split('/') {
            let part = part.split_once('.').map_or(part, |(name, _)| name);
            let last = part.rsplit(['-', ':']).next().unwrap_or(part);
            if last.len() == DIGITS && last.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                found.id = Some(last.to_owned());
            } else if let Some((_, uid)) =
                part.rsplit_once("pod").filter(|(before, _)| before.is_empty() || before.ends_with('-'))
            {
                let uid = uid.replace('_', "-");
                if uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
                    found.pod_uid = Some(uid);
                }
            }
        }
        found
    }

    /// The container of a process in a control group; `None` where it is in none that is known. A pod's name is what the kubelet calls
    /// it; where that is not to be seen, the name of its host, unless it was given another: `/etc/hostname` in the container. One with the
    /// machine's own network has the machine's name.
    pub fn of(path: &str, root: Option<&Root>, pods: &mut Pods) -> Option<Self> {
        let mut found = Self::of_path(path);
        let named = found.pod_uid.as_deref().and_then(|uid| pods.name(uid));
        if let Some(named) = named {
            (found.pod, found.pod_namespace) = (Some(named.name.clone()), Some(named.namespace.clone()));
        } else if found.pod_uid.is_some() {
            let name = root.and_then(|root| host_of(root).ok().flatten());
            found.pod = name.filter(|name| *name != our_host());
        }
        (found != Self::default()).then_some(found)
    }
}

fn our_host() -> String {
    nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}

fn host_of(root: &Root) -> io::Result<Option<String>> {
    let mut name = String::new();
    root.open(Path::new("/etc/hostname"))?.take(LONGEST_HOST + 1).read_to_string(&mut name)?;
    let name = name.trim_end();
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    Ok(is_name.then(|| name.to_owned()))
}

/// The user who is root in a process's user namespace, where that is not our own root.
pub fn root_of_namespace(pid: Pid) -> Option<u32> {
    // user_namespaces(7): inside, outside, how many.
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).ok()?;
    let first = map.lines().find(|line| line.split_ascii_whitespace().next() == Some("0"))?;
    first.split_ascii_whitespace().nth(1)?.parse().ok().filter(|user| *user != 0)
}

/// The name of a user of this machine.
pub fn user_name(user: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(user)).ok().flatten().map(|user| user.name)
}

/// The processes there are now.
///
/// # Errors
/// Where there is no `/proc`.
pub fn processes() -> io::Result<Vec<Pid>> {
    let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.to_str()?.parse().ok()).map(Pid::from_raw).collect())
}

/// The processes that these have started, and those have, that run now.
///
/// # Errors
/// Where there is no `/proc`.
pub fn descendants(of: &[Pid]) -> io::Result<Vec<Pid>> {
    let parents = processes()?.into_iter().filter_map(|pid| Some((pid, status::parent_pid(pid).ok()?)));
    let parents: Vec<(Pid, Pid)> = parents.collect();
    let (mut family, mut generation): (HashSet<Pid>, Vec<Pid>) = (of.iter().copied().collect(), of.to_vec());
    let mut found = Vec::new();
    while !generation.is_empty() {
        let children = parents.iter().filter(|(_, parent)| generation.contains(parent)).map(|(pid, _)| *pid);
        generation = children.filter(|pid| family.insert(*pid)).collect();
        found.extend(&generation);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_pods_by_their_groups() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "6f8e8a6b-1c0a-4b8e-9d5a-0a1b2c3d4e5f";
        let paths = [
            (format!("/docker/{id}"), None),
            (format!("/system.slice/docker-{id}.scope"), None),
            (format!("/machine.slice/libpod-{id}.scope/container"), None),
            (format!("/kubepods/burstable/pod{uid}/{id}"), Some(uid)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable-pod{}.slice/cri-containerd-{id}.scope",
                    uid.replace('-', "_")
                ),
                Some(uid),
            ),
        ];
        for (path, pod) in &paths {
            let found = Container::of_path(path);
            assert_eq!((found.id.as_deref(), found.pod_uid.as_deref()), (Some(id.as_str()), *pod), "{path}");
        }
        for path in ["", "/", "/user.slice/user-0.slice/session-1.scope", "/podium/x", "/docker/short"] {
            assert_eq!(Container::of_path(path), Container::default(), "{path}");
        }
    }

    #[test]
    fn a_pod_has_the_name_that_the_kubelet_gives_it() {
        let uid = "6f8e8a6b-1c0a-4b8e-9d5a-0a1b2c3d4e5f";
        let logs = tempfile::tempdir().unwrap();
        std::fs::create_dir(logs.path().join(format!("shop_web-x2x5p_{uid}"))).unwrap();
        let mut pods = Pods::of(logs.path().to_owned());
        let group = format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_"));
        // What stands in our own `/etc/hostname` is then not asked for.
        let root = Root::of(Pid::this()).unwrap();
        let found = Container::of(&group, Some(&root), &mut pods).unwrap();
        let Container { id, pod, pod_namespace, pod_uid } = found;
        assert_eq!((id, pod.as_deref(), pod_namespace.as_deref()), (None, Some("web-x2x5p"), Some("shop")));
        assert_eq!(pod_uid.as_deref(), Some(uid));
        let elsewhere = Container::of(&group.replace("6f8e", "0000"), None, &mut pods).unwrap();
        assert_eq!((elsewhere.pod, elsewhere.pod_namespace), (None, None));
    }

    #[test]
    fn we_are_among_the_processes() {
        assert!(processes().unwrap().contains(&Pid::this()));
        assert!(descendants(&[Pid::parent()]).unwrap().contains(&Pid::this()));
        assert!(!descendants(&[Pid::this()]).unwrap().contains(&Pid::this()));
    }
}
