//! Tests that need root say so in their name (`root_…`) and begin with [`root`].

/// Are we root?
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a test that loads probes can go on. Where it cannot it says so; in CI that is a failure, never a silent skip.
pub fn root() -> bool {
    if is_root() {
        return true;
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "CI=true: the tests named root_… must be run as root");
    println!("not run: it loads BPF probes, which needs root");
    false
}
