//! What differs from run to run, machine to machine and release to release, made the same for snapshots.

use std::path::Path;

use super::run::Ran;

/// The whole of what a run said, in one text for an inline snapshot: status, standard output, standard error.
pub fn snapshot(ran: &Ran) -> String {
    let text = format!(
        "status: {}\n----- stdout -----\n{}\n----- stderr -----\n{}",
        ran.code(),
        ran.stdout_text(),
        ran.stderr_text()
    );
    filtered(&text)
}

/// Versions, paths, process numbers and measured sizes replaced by their names.
pub fn filtered(text: &str) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_rmprof-bpf")).display().to_string();
    let text = text.replace(&binary, "[BINARY]").replace(env!("CARGO_PKG_VERSION"), "[VERSION]");
    let text = number_after(&text, "process ", "[PID]");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Replaces the number that follows each `word`.
fn number_after(text: &str, word: &str, name: &str) -> String {
    let mut parts = text.split(word);
    let mut filtered = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|character: char| character.is_ascii_digit());
        filtered.push_str(word);
        filtered.push_str(if rest.len() < part.len() { name } else { "" });
        filtered.push_str(rest);
    }
    filtered
}

#[test]
fn filters_replace_what_varies() {
    let text = format!("process 12: rmprof-bpf {} of process x  \nend", env!("CARGO_PKG_VERSION"));
    assert_eq!(filtered(&text), "process [PID]: rmprof-bpf [VERSION] of process x\nend");
}
