//! Under sudo the program is the caller's. What sudo does is its environment, as sudo(8) documents it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use nix::unistd::User;

use crate::common::{Run, any_python, near_blocks, root, script};

const WHO: &str = "
import os

@profile
def grow():
    return bytearray(3_000_000)  # here

kept = grow()
print(os.getresuid(), os.getresgid(), sorted(set(os.getgroups())))
print(os.environ['HOME'], os.environ.get('USER'), os.environ.get('LOGNAME'), sorted(n for n in os.environ if n.startswith('SUDO_')))
print([line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapPrm', 'CapInh', 'CapAmb'))])
";

/// A user of every Debian and Ubuntu.
fn daemon() -> User {
    User::from_name("daemon").unwrap().unwrap()
}

fn sudo(run: Run, user: &User) -> Run {
    run.env("SUDO_UID", user.uid.to_string())
        .env("SUDO_GID", user.gid.to_string())
        .env("SUDO_USER", &user.name)
        .env("SUDO_COMMAND", "x")
}

#[test]
fn root_the_program_is_the_callers() {
    if !root() {
        return;
    }
    let (program, user) = (script("who.py", WHO), daemon());
    let folder = program.directory();
    chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let words = ["--output", "report.json"];
    let run = Run::new(words)
        .words([&any_python().path, &program.path])
        .directory(folder)
        .env("HOME", "/root")
        .env("USER", "root");
    let ran = sudo(run, &user).run().expect(0).quiet();
    let (uid, gid) = (user.uid, user.gid);
    let none = "0000000000000000";
    let expected = format!(
        "({uid}, {uid}, {uid}) ({gid}, {gid}, {gid}) [{gid}]\n{} daemon daemon []\n['{none}', '{none}', '{none}', '{none}']\n",
        user.dir.display()
    );
    assert_eq!(ran.stdout_text(), expected);
    let file = folder.join("report.json");
    let about = file.metadata().unwrap();
    assert_eq!((about.uid(), about.gid()), (uid.as_raw(), gid.as_raw()), "whose the report is");
    assert_eq!(about.permissions().mode() & 0o022, 0, "others may write to the report");
    let report = crate::common::Report::read(&std::fs::read(file).unwrap());
    assert_eq!(report.only().marked(), ["grow"], "marks work for another user");
    near_blocks(report.only().line("grow", program.line("# here")).increment(), 3_000_001);
}

#[test]
fn root_as_root_keeps_root() {
    if !root() {
        return;
    }
    let program = script("who.py", WHO);
    let run = sudo(Run::new(["--as-root"]).words([&any_python().path, &program.path]), &daemon());
    let text = run.run().expect(0).quiet().stdout_text();
    assert!(text.starts_with("(0, 0, 0) (0, 0, 0) "), "{text}");
}

#[test]
fn root_a_caller_that_cannot_be_told_is_an_error_and_nothing_runs() {
    if !root() {
        return;
    }
    for (user, group, name, named) in [
        ("", "1", "daemon", "SUDO_UID"),
        ("-1", "1", "daemon", "SUDO_UID"),
        ("4294967295", "1", "daemon", "SUDO_UID"),
        ("1", "", "daemon", "SUDO_GID"),
        ("1", "1", "root", "SUDO_USER"),
        ("3999999999", "1", "", "3999999999"),
    ] {
        let run = Run::new(["echo", "it ran"]).env("SUDO_UID", user).env("SUDO_GID", group).env("SUDO_USER", name);
        let ran = run.run().expect(125);
        let said = ran.stderr_text();
        assert_eq!(ran.stdout_text(), "", "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 2, "one error, one hint: {said}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(named), "{said}");
        assert!(lines[1].starts_with("hint: ") && lines[1].contains("--as-root"), "{said}");
    }
}

/// The file is opened with the caller's rights: sudo is no way to overwrite what is not the caller's.
#[test]
fn root_the_report_is_written_with_the_callers_rights() {
    if !root() {
        return;
    }
    let program = script("who.py", WHO);
    let precious = program.beside("precious.json", "precious");
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o644)).unwrap();
    for target in [&precious, &program.directory().join("new.json")] {
        let run = sudo(
            Run::new(["--output".as_ref(), target.as_os_str()]).words([&any_python().path, &program.path]),
            &daemon(),
        );
        let ran = run.run().expect(125);
        assert_eq!(ran.stdout_text(), "");
        assert!(ran.stderr_text().contains("Permission denied"), "{ran}");
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert!(!program.directory().join("new.json").exists());
}

/// The program may not be executed by the caller though root could.
#[test]
fn root_the_program_is_executed_with_the_callers_rights() {
    if !root() {
        return;
    }
    let program = script("private", "#!/bin/sh\necho it ran\n");
    std::fs::set_permissions(&program.path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let ran = sudo(Run::new([&program.path]), &daemon()).run().expect(126);
    assert_eq!(ran.stdout_text(), "");
    Run::new([&program.path]).run().expect(0);
}

/// A source that only root may read is not shown to the caller of sudo.
#[test]
fn root_sources_are_not_read_for_somebody_who_may_not() {
    if !root() {
        return;
    }
    let program = script("compiles.py", "
import sys
@profile
def honest():
    return 1
code = compile('\\n' * 1 + 'def forged():\\n    return bytearray(3_000_000)\\nprofile(forged)\\nkept = forged()\\n', sys.argv[1], 'exec')
exec(code)
");
    let secret =
        program.beside("secret.py", "first secret\nsecond secret\nthird secret\nfourth secret\nfifth secret\n");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let run = sudo(Run::new([&any_python().path, &program.path, &secret]), &daemon());
    let text = run.run().expect(0).quiet().stdout_text();
    assert!(text.contains("2.861 MiB"), "{text}");
    assert!(!text.contains("secret\n"), "a file of root's was shown to another user:\n{text}");
}
