//! Compiles the native half of the launch shim (`src/launch/line_events.c`) with clang.
//!
//! Freestanding and without debug information or paths, so the same clang makes the same bytes from any directory.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// How the extension is compiled. The unit tests of `launch` read this list for their test build of the same file.
const FLAGS: &str = include_str!("src/launch/line_events.flags");

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("line_events.so");
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("src/launch/line_events.c");
    for file in ["line_events.c", "every.h", "marked.h", "stop.h", "system_call.h"] {
        println!("cargo::rerun-if-changed=src/launch/{file}");
    }
    println!("cargo::rerun-if-changed=../probes/bpf/rmprof.h");
    println!("cargo::rerun-if-changed=src/launch/line_events.flags");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let mut command = Command::new(&clang);
    command.args(FLAGS.split_whitespace());
    match arch.as_str() {
        // A site must start with its nop, not with endbr64 or bti.
        "x86_64" => command.arg("-fcf-protection=none"),
        "aarch64" => command.args(["-mbranch-protection=none", "-mno-outline-atomics"]),
        other => return Err(format!("no launch extension for {other}: x86_64 and aarch64 are known").into()),
    };
    if !env::var("HOST")?.starts_with(&arch) {
        command.arg(format!("--target={arch}-unknown-linux-gnu")).arg("-fuse-ld=lld");
    }
    let status = command.arg(&source).arg("-o").arg(&out).status().map_err(|e| {
        format!("cannot run {clang}: {e}\nhint: install clang 14 or newer (Debian, Ubuntu: apt-get install clang), or set CLANG")
    })?;
    if !status.success() {
        return Err(format!("{clang} did not compile src/launch/line_events.c").into());
    }
    Ok(())
}
