//! What `doctor` says, whoever asks.

use crate::common::{Ran, Run, any_python, is_root, root};

const NOBODY: u32 = 65534;

fn as_nobody(words: &[&str]) -> Ran {
    let run = Run::new(words).directory("/");
    if is_root() { run.user(NOBODY).run() } else { run.run() }
}

/// A line of the answer that speaks of `name`: its mark and its text.
fn answer<'t>(text: &'t str, name: &str) -> (&'t str, &'t str) {
    let line = text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("nothing of {name} in\n{text}"));
    let (mark, rest) = line.trim_start().split_once(' ').unwrap();
    (mark, rest)
}

#[test]
fn without_rights_each_missing_one_is_named_with_what_to_do() {
    let ran = as_nobody(&["doctor"]).expect(1).quiet();
    let text = ran.stdout_text();
    assert!(text.starts_with("Kernel: "), "{text}");
    for name in ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"] {
        assert_eq!(answer(&text, name).0, "no", "{text}");
    }
    for name in ["BTF", "ring buffer", "user probes", "multi-probes", "tracepoint rss_stat", "lockdown"] {
        assert!(matches!(answer(&text, name).0, "ok" | "no"), "{text}");
    }
    assert!(text.contains("hint: run with sudo, or once: sudo setcap cap_bpf,"), "{text}");
    check_marks(&text);
}

/// Every line is a heading, an answer, a hint that follows a `no`, or empty.
fn check_marks(text: &str) {
    let mut refused = false;
    for line in text.lines() {
        let answered = line.trim_start();
        assert!(!line.contains("\\x0a"), "two lines in one: {line}");
        if answered.starts_with("hint: ") {
            assert!(refused, "a hint for nothing: {line}\n{text}");
        } else if line.starts_with("  ") {
            assert!(answered.starts_with("ok ") || answered.starts_with("no "), "neither yes nor no: {line}\n{text}");
            refused |= answered.starts_with("no ");
        } else {
            refused = false;
            assert!(line.is_empty() || line.contains(':'), "{line}\n{text}");
        }
    }
}

#[test]
fn root_a_known_python_is_measured() {
    if !root() {
        return;
    }
    let python = any_python();
    let path = python.path.to_str().unwrap();
    let ran = Run::new(["doctor", path]).run();
    let text = ran.stdout_text();
    let (mark, said) = answer(&text, path);
    assert!(mark == "ok" && said.contains(&python.version_text()), "{ran}");
    check_marks(&text);
    ran.expect(0).quiet();
}

#[test]
fn root_what_is_no_python_is_said_to_be_none() {
    if !root() {
        return;
    }
    for path in ["/bin/sh", "/no/such/python"] {
        let ran = Run::new(["doctor", path]).run().expect(1);
        let text = ran.stdout_text();
        assert_eq!(answer(&text, path).0, "no", "{text}");
        check_marks(&text);
    }
}
