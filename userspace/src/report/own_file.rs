//! Whose code a file is.

/// Whether a file is the user's own: neither the standard library (a `python3…` directly under a `lib` or `lib64`), nor an
/// installed package, nor frozen or generated code, nor our own help. What is typed in (`<stdin>`) or given with `-c`
/// (`<string>`) is the user's own. `filename` is `co_filename`, the name as Python knows it.
pub fn is_own_file(filename: &str) -> bool {
    if filename.starts_with('<') && filename.ends_with('>') {
        return matches!(filename, "<string>" | "<stdin>");
    }
    let mut parent = "";
    for component in filename.split('/').filter(|component| !component.is_empty()) {
        let is_library = matches!(parent, "lib" | "lib64") && is_python_folder(component);
        if is_library || matches!(component, "site-packages" | "dist-packages") {
            return false;
        }
        parent = component;
    }
    !filename.is_empty()
}

/// Whether a file is of the import system, which is frozen into the interpreter (Python/frozen.c).
pub(super) fn is_import(filename: &str) -> bool {
    matches!(
        filename,
        "<frozen importlib._bootstrap>" | "<frozen importlib._bootstrap_external>" | "<frozen zipimport>"
    )
}

/// `python3`, `python3.11`, `python3.13t` (free-threaded), `python311.zip` (an embedded standard library).
fn is_python_folder(component: &str) -> bool {
    let Some(version) = component.strip_prefix("python3") else { return false };
    let version = version.strip_suffix(".zip").unwrap_or(version).trim_end_matches(['t', 'd']);
    version.chars().all(|c| c == '.' || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_s_own() {
        for own in [
            "copy.py",
            "/home/u/app/main.py",
            "./lib/thing.py",
            "/srv/python3.11/app.py",
            "<string>",
            "<stdin>",
            "lib/python3rc/x.py",
        ] {
            assert!(is_own_file(own), "{own}");
        }
    }

    #[test]
    fn not_the_user_s_own() {
        for other in [
            "/usr/lib/python3.11/copy.py",
            "/usr/lib64/python3.9/json/__init__.py",
            "/usr/lib/python3/dist-packages/apt.py",
            "/opt/lib/python3.13t/os.py",
            "/opt/lib/python311.zip/os.py",
            "/home/u/venv/lib/python3.12/site-packages/numpy/core.py",
            "/home/u/.vendor/site-packages/x.py",
            "<frozen importlib._bootstrap>",
            "<__array_function__ internals>",
            "<rmprof-bpf>",
            "",
        ] {
            assert!(!is_own_file(other), "{other}");
        }
    }
}
