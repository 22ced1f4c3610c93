//! Whose rights a started program gets. Probes need root, the program does not: under `sudo` it runs as the user who called it.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, User};

/// The variables `sudo` honours rather than sets: they are the person's own.
const PERSONS_OWN: [&str; 3] = ["SUDO_ASKPASS", "SUDO_EDITOR", "SUDO_PROMPT"];

/// The identity a program is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User number.
    pub user: Uid,
    /// Primary group.
    pub group: Gid,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<Gid>,
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// Why it cannot be told who called `sudo`. Never answered by running as root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A variable is missing or is no number.
    #[error("{variable}={value:?}: not a number of a user or group")]
    NotANumber {
        /// `SUDO_UID` or `SUDO_GID`.
        variable: &'static str,
        /// What stands there; empty where it is missing.
        value: String,
    },
    /// The user database has no such user.
    #[error("SUDO_UID={0}: no such user")]
    NoSuchUser(Uid),
    /// `SUDO_USER` and `SUDO_UID` name two different users.
    #[error("SUDO_USER={name:?} is user {found}, SUDO_UID says {user}")]
    Contradiction {
        /// What `SUDO_USER` says.
        name: String,
        /// That user's number.
        found: Uid,
        /// What `SUDO_UID` says.
        user: Uid,
    },
    /// The user or group database could not be read.
    #[error("user {0}: cannot read the user and group databases: {1}")]
    Database(String, nix::errno::Errno),
}

impl CredentialsError {
    /// What the person can do.
    pub fn hint(&self) -> &'static str {
        "the program would run as the user who called sudo; use `--as-root` to run it as root, or call rmprof-bpf through sudo itself"
    }
}

/// Whose rights the program gets, from our own environment: those of the user who called `sudo`, `None` to keep ours (we are
/// not root, were not called through `sudo`, root called it, or `as_root`).
///
/// # Errors
/// [`CredentialsError`] where the environment says `sudo` but not, believably, who.
pub fn of_caller(as_root: bool) -> Result<Option<Credentials>, CredentialsError> {
    if as_root || !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let variable = |name: &str| std::env::var_os(name);
    choose(variable("SUDO_UID"), variable("SUDO_GID"), variable("SUDO_USER"))
}

/// Whose rights over files process `pid` has; `None` where it has root's, or it is gone.
pub fn of_process(pid: nix::unistd::Pid) -> Option<Credentials> {
    let (user, group, groups) = super::status::file_rights(pid).ok()?;
    let none = Credentials {
        user: Uid::from_raw(user),
        group: Gid::from_raw(group),
        groups: groups.into_iter().map(Gid::from_raw).collect(),
        name: String::new(),
        home: PathBuf::new(),
        shell: PathBuf::new(),
    };
    (!none.user.is_root()).then_some(none)
}

/// The environment of what is started with the rights of `credentials`; ours where there are none.
pub fn environment(credentials: Option<&Credentials>) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    if let Some(credentials) = credentials {
        credentials.apply_to(&mut environment);
    }
    environment
}

fn choose(
    user: Option<OsString>,
    group: Option<OsString>,
    name: Option<OsString>,
) -> Result<Option<Credentials>, CredentialsError> {
    if user.is_none() && name.is_none() {
        return Ok(None);
    }
    let uid = Uid::from_raw(number("SUDO_UID", user)?);
    let gid = Gid::from_raw(number("SUDO_GID", group)?);
    if uid.is_root() {
        return Ok(None);
    }
    let entry = user_entry(uid, name)?;
    let c_name = CString::new(entry.name.as_str()).map_err(|_| CredentialsError::NoSuchUser(uid))?;
    let groups = nix::unistd::getgrouplist(&c_name, gid)
        .map_err(|errno| CredentialsError::Database(entry.name.clone(), errno))?;
    Ok(Some(Credentials { user: uid, group: gid, groups, name: entry.name, home: entry.dir, shell: entry.shell }))
}

/// A user or group number. `u32::MAX` is none: to the kernel it says "leave as it is", which here would be root.
fn number(variable: &'static str, value: Option<OsString>) -> Result<u32, CredentialsError> {
    let value = value.unwrap_or_default().to_string_lossy().into_owned();
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(number) if digits && number != u32::MAX => Ok(number),
        _ => Err(CredentialsError::NotANumber { variable, value }),
    }
}

/// The database's entry. Several names may share a number: the one `SUDO_USER` gives goes first.
fn user_entry(uid: Uid, name: Option<OsString>) -> Result<User, CredentialsError> {
    if let Some(name) = name.as_deref().and_then(OsStr::to_str).filter(|name| !name.is_empty()) {
        let found = User::from_name(name).map_err(|errno| CredentialsError::Database(name.to_owned(), errno))?;
        match found {
            Some(entry) if entry.uid == uid => return Ok(entry),
            Some(entry) => {
                return Err(CredentialsError::Contradiction { name: name.to_owned(), found: entry.uid, user: uid });
            }
            None => {}
        }
    }
    let found = User::from_uid(uid).map_err(|errno| CredentialsError::Database(uid.to_string(), errno))?;
    found.ok_or(CredentialsError::NoSuchUser(uid))
}

impl Credentials {
    /// Does `action` with this user's rights over files: what it creates is the user's, and what the user may not write it may not.
    /// For the calling thread alone (setfsuid(2)), and undone afterwards.
    pub fn open_files_as<T>(&self, action: impl FnOnce() -> T) -> T {
        let group = nix::unistd::setfsgid(self.group);
        let user = nix::unistd::setfsuid(self.user);
        let result = action();
        nix::unistd::setfsuid(user);
        nix::unistd::setfsgid(group);
        result
    }

    /// Changes an environment to the user's: as if the program had been started without `sudo`, as far as that can be told.
    /// `PATH` stays what `sudo` made of it: the user's own is not known any more.
    pub fn apply_to(&self, environment: &mut Vec<(OsString, OsString)>) {
        environment.retain(|(name, _)| {
            !name.as_bytes().starts_with(b"SUDO_") || PERSONS_OWN.iter().any(|own| name.as_os_str() == *own)
        });
        set(environment, "HOME", self.home.as_os_str());
        set(environment, "USER", OsStr::new(&self.name));
        set(environment, "LOGNAME", OsStr::new(&self.name));
        set(environment, "SHELL", self.shell.as_os_str());
        // sudo points it at root's mailbox.
        if let Some((_, mail)) = environment.iter_mut().find(|(name, _)| name == "MAIL") {
            let mut path = PathBuf::from(std::mem::take(mail));
            path.set_file_name(&self.name);
            *mail = path.into_os_string();
        }
    }
}

fn set(environment: &mut Vec<(OsString, OsString)>, name: &str, value: &OsStr) {
    environment.retain(|(known, _)| known != name);
    environment.push((name.into(), value.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(user: &str, group: &str, name: &str) -> Result<Option<Credentials>, CredentialsError> {
        let value = |text: &str| (text != "-").then(|| OsString::from(text));
        choose(value(user), value(group), value(name))
    }

    #[test]
    fn without_sudo_nothing_changes() {
        assert_eq!(ask("-", "-", "-"), Ok(None));
        assert_eq!(ask("0", "0", "root"), Ok(None));
        assert_eq!(of_caller(true), Ok(None));
    }

    #[test]
    fn the_caller_of_sudo() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let (user, group) = (nobody.uid.to_string(), nobody.gid.to_string());
        let found = ask(&user, &group, "nobody").unwrap().unwrap();
        assert_eq!((found.user, found.group, found.home), (nobody.uid, nobody.gid, nobody.dir));
        assert!(found.groups.contains(&nobody.gid));
        assert_eq!(ask(&user, &group, "-").unwrap().unwrap().name, "nobody");
        assert_eq!(ask(&user, &group, "no-such-name").unwrap().unwrap().name, "nobody");
    }

    #[test]
    fn what_cannot_be_believed_is_an_error() {
        for bad in ["", "x", "-1", "+1", "4294967295", "4294967296", " 1"] {
            assert!(matches!(ask(bad, "1", "daemon"), Err(CredentialsError::NotANumber { .. })), "{bad:?}");
            assert!(matches!(ask("1", bad, "daemon"), Err(CredentialsError::NotANumber { .. })), "{bad:?}");
        }
        assert!(matches!(ask("-", "1", "daemon"), Err(CredentialsError::NotANumber { .. })));
        assert!(matches!(ask("1", "-", "daemon"), Err(CredentialsError::NotANumber { .. })));
        assert!(matches!(ask("1", "1", "root"), Err(CredentialsError::Contradiction { .. })));
        let nobody_has = Uid::from_raw(3_999_999_999);
        assert_eq!(ask("3999999999", "1", "-"), Err(CredentialsError::NoSuchUser(nobody_has)));
        assert!(CredentialsError::NoSuchUser(nobody_has).hint().contains("--as-root"));
    }

    #[test]
    fn the_environment_becomes_the_users() {
        let who = Credentials {
            user: Uid::from_raw(1000),
            group: Gid::from_raw(1000),
            groups: vec![],
            name: "ann".into(),
            home: "/home/ann".into(),
            shell: "/bin/zsh".into(),
        };
        let pairs = |text: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            text.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
        };
        let mut environment = pairs(&[
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("SUDO_UID", "1000"),
            ("SUDO_COMMAND", "x"),
            ("SUDO_EDITOR", "vi"),
            ("MAIL", "/var/mail/root"),
            ("USER", "root"),
        ]);
        who.apply_to(&mut environment);
        let mut expected = pairs(&[
            ("PATH", "/bin"),
            ("SUDO_EDITOR", "vi"),
            ("MAIL", "/var/mail/ann"),
            ("HOME", "/home/ann"),
            ("USER", "ann"),
            ("LOGNAME", "ann"),
            ("SHELL", "/bin/zsh"),
        ]);
        environment.sort();
        expected.sort();
        assert_eq!(environment, expected);
    }
}
