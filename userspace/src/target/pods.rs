//! Names of pods by their numbers, as the kubelet of this machine has them: it keeps the logs of each below
//! `/var/log/pods/NAMESPACE_NAME_UID` (Kubernetes, pkg/kubelet/kuberuntime/helpers.go: BuildPodLogsDirectory), and makes that directory
//! before the pod's first container. Nothing of the pod's own is asked for, which could say what it likes.

use std::collections::HashMap;
use std::path::PathBuf;

/// Where a kubelet keeps the logs, unless it is configured otherwise (`podLogsDir`).
const DIRECTORY: &str = "/var/log/pods";
/// Entries that are looked at, and names that are kept: many times the pods that a machine may have (110, `maxPods`).
const MOST: usize = 4096;
/// The longest name of a pod, and of a namespace (DNS-1123 subdomain and label).
const LONGEST: [usize; 2] = [253, 63];

/// A pod as people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace in the cluster.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// The pods of this machine.
#[derive(Debug)]
pub struct Pods {
    directory: PathBuf,
    /// By number; `None`: it was looked for.
    known: HashMap<String, Option<PodName>>,
}

impl Default for Pods {
    fn default() -> Self {
        Self::of(DIRECTORY.into())
    }
}

impl Pods {
    /// Those whose logs are in a directory.
    pub fn of(directory: PathBuf) -> Self {
        Self { directory, known: HashMap::new() }
    }

    /// The name of a pod. The directory is read once for each number that is not known.
    pub fn name(&mut self, uid: &str) -> Option<&PodName> {
        if !self.known.contains_key(uid) {
            self.read();
            if self.known.len() >= MOST {
                self.known.retain(|known, _| known == uid);
            }
            self.known.entry(uid.to_owned()).or_insert(None);
        }
        self.known.get(uid)?.as_ref()
    }

    fn read(&mut self) {
        // Where there is no kubelet there is no directory.
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.take(MOST).flatten() {
            if let Some((uid, name)) = entry.file_name().to_str().and_then(parse) {
                self.known.insert(uid, Some(name));
            }
        }
    }
}

/// `NAMESPACE_NAME_UID`: none of the three may have an underscore.
fn parse(name: &str) -> Option<(String, PodName)> {
    let parts: Vec<&str> = name.split('_').collect();
    let [namespace, name, uid] = parts[..] else { return None };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let is_name = |text: &str, longest| !text.is_empty() && text.len() <= longest && text.bytes().all(plain);
    let [longest_name, longest_namespace] = LONGEST;
    (is_name(namespace, longest_namespace) && is_name(name, longest_name) && !uid.is_empty())
        .then(|| (uid.to_owned(), PodName { namespace: namespace.to_owned(), name: name.to_owned() }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UID: &str = "6f8e8a6b-1c0a-4b8e-9d5a-0a1b2c3d4e5f";

    fn pods(names: &[&str]) -> (tempfile::TempDir, Pods) {
        let directory = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::create_dir(directory.path().join(name)).unwrap());
        let pods = Pods::of(directory.path().to_owned());
        (directory, pods)
    }

    #[test]
    fn a_pod_has_the_name_of_its_logs() {
        let of_a_file = "0123456789abcdef0123456789abcdef"; // the kubelet's own (static) pods have a hash for a number
        let (_directory, mut pods) =
            pods(&[&format!("shop_web-7d4b9c5f6-x2x5p_{UID}"), &format!("kube-system_etcd-node.one_{of_a_file}")]);
        let named = |namespace: &str, name: &str| PodName { namespace: namespace.into(), name: name.into() };
        assert_eq!(pods.name(UID), Some(&named("shop", "web-7d4b9c5f6-x2x5p")));
        assert_eq!(pods.name(of_a_file), Some(&named("kube-system", "etcd-node.one")));
        assert_eq!(pods.name("another"), None);
    }

    #[test]
    fn it_is_looked_for_once() {
        let (directory, mut pods) = pods(&[]);
        let made = |uid: &str| std::fs::create_dir(directory.path().join(format!("shop_web_{uid}"))).unwrap();
        assert_eq!(pods.name(UID), None);
        made(UID);
        assert_eq!(pods.name(UID), None, "the directory was read again");
        made("later");
        assert!(pods.name("later").is_some());
        assert_eq!(Pods::of("/no/such/directory".into()).name(UID), None);
    }

    #[test]
    fn what_is_no_name_is_not_taken_for_one() {
        for name in [
            format!("shop_web\u{1b}[31m_{UID}"),
            format!("shop_web x_{UID}"),
            format!("shop_Web_{UID}"),
            format!("shop_\u{202e}bew_{UID}"),
            format!("shop_a_b_{UID}"),
            format!("shop__{UID}"),
            format!("_web_{UID}"),
            format!("{}_web_{UID}", "n".repeat(64)),
            format!("web_{UID}"),
            UID.to_owned(),
        ] {
            let (_directory, mut pods) = pods(&[&name]);
            assert_eq!(pods.name(UID), None, "{name:?}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (_directory, mut pods) = pods(&[&format!("shop_web_{UID}")]);
        for number in 0..2 * MOST {
            assert_eq!(pods.name(&number.to_string()), None);
            assert!(pods.known.len() <= MOST);
        }
        assert!(pods.name(UID).is_some());
    }
}
