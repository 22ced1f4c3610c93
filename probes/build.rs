//! Compiles the probes with clang and generates the Rust side of their ABI.
//!
//! The objects are hermetic (`-nostdinc`: libbpf's own headers and the two stubs under `bpf/include`) and reproducible
//! (path maps), so the same clang makes the same bytes from any directory.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The objects: the feature that asks for it, its name, and what is defined for it.
const OBJECTS: &[(&str, &str, &[&str])] =
    &[("LIBBPF", "rmprof", &[]), ("SINGLE", "single", &["-DRM_SINGLE"]), ("PIECES", "pieces", &["-DRM_PIECES"])];

/// The source of them all.
const SOURCE: &str = "bpf/rmprof.bpf.c";

/// The header by which libbpf's are known.
const HEADER: &str = "bpf/bpf_helpers.h";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=preload");
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-env-changed=LIBBPF_INCLUDE");
    let headers = headers()?;
    for (_, name, defined) in OBJECTS.iter().filter(|(feature, _, _)| asked_for(feature)) {
        compile(&root, &headers, name, defined, &out)?;
    }
    compile_library(&root, &out)?;
    bindgen::Builder::default()
        .header(root.join("bpf/rmprof.h").to_string_lossy())
        .use_core()
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(false)
        .derive_copy(true)
        .generate_cstr(true)
        .allowlist_item("(rm|RM)_.*")
        .generate()?
        .write_to_file(out.join("abi.rs"))?;
    Ok(())
}

fn asked_for(feature: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{feature}")).is_some()
}

/// Where libbpf's headers for programs are (they are text: no libbpf is needed to have them).
fn headers() -> Result<PathBuf, Box<dyn Error>> {
    // libbpf-sys (links = "bpf") tells where it put the headers of the libbpf it is. Without it, those of the distribution.
    let places = ["DEP_BPF_INCLUDE", "LIBBPF_INCLUDE"];
    let named = places.iter().find_map(env::var_os).map_or_else(|| PathBuf::from("/usr/include"), PathBuf::from);
    if !named.join(HEADER).exists() {
        return Err(format!(
            "{} is not there\nhint: install libbpf's headers (Debian, Ubuntu, Alpine: libbpf-dev), or set LIBBPF_INCLUDE",
            named.join(HEADER).display()
        )
        .into());
    }
    Ok(named)
}

fn compile(root: &Path, headers: &Path, name: &str, defined: &[&str], out: &Path) -> Result<(), Box<dyn Error>> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => return Err(format!("no probes for {other}: x86_64 and aarch64 are known").into()),
    };
    let object = out.join(format!("{name}.bpf.o"));
    let status = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-std=gnu11", "-nostdinc"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"])
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        .args(defined)
        .arg("-I").arg(root.join("bpf/include"))
        .arg("-I").arg(headers)
        .arg("-I").arg(root.join("bpf"))
        .arg(format!("-ffile-prefix-map={}=.", root.display()))
        .arg(format!("-ffile-prefix-map={}=.", out.display()))
        .arg("-fdebug-compilation-dir=.")
        .arg("-c").arg(root.join(SOURCE))
        .arg("-o").arg(&object)
        .status()
        .map_err(|e| format!("cannot run {clang}: {e}\nhint: install clang 14 or newer (Debian, Ubuntu: apt-get install clang), or set CLANG"))?;
    if !status.success() {
        return Err(format!("{clang} did not compile {SOURCE}").into());
    }
    Ok(())
}

/// Compiles the library that a started program gets, with the kernel side's own headers: freestanding and without debug information
/// or paths, so that it too is the same from any directory.
fn compile_library(root: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let mut command = Command::new(&clang);
    command
        .args(["-std=gnu11", "-O2", "-fPIC", "-shared", "-nostdlib", "-ffreestanding", "-fvisibility=hidden"])
        .args(["-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident", "-ftls-model=initial-exec"])
        .args(["-Wall", "-Wextra", "-Werror", "-Wno-unused-function"])
        .args([
            "-Wl,--build-id=sha1",
            "-Wl,--hash-style=gnu",
            "-Wl,-z,relro",
            "-Wl,-z,now",
            "-Wl,-z,noexecstack",
            "-Wl,-s",
        ]);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if arch == "x86_64" {
        command.arg("-fcf-protection=none"); // a site must start with its nop
    } else {
        command.args(["-mbranch-protection=none", "-mno-outline-atomics"]);
    }
    if !env::var("HOST")?.starts_with(&arch) {
        command.arg(format!("--target={arch}-unknown-linux-gnu")).arg("-fuse-ld=lld");
    }
    let status = command
        .arg("-I")
        .arg(root.join("preload"))
        .arg("-I")
        .arg(root.join("bpf"))
        .arg(root.join("preload/tally.c"))
        .arg("-o")
        .arg(out.join("tally.so"))
        .status()?;
    if !status.success() {
        return Err(format!("{clang} did not compile preload/tally.c").into());
    }
    Ok(())
}
