//! Puts the CNI plugin into the binary: a small program of its own, linked statically, which starts in a fraction of the
//! time that the whole of Seaway takes. The agent unpacks it.
//!
//! Only release builds do this; others are their own plugin, called by its name. So is one whose plugin cannot be
//! built, which is said.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=../cni");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    let embedded = out.join("seaway-cni");
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // Without the C library's archive it is linked as everything else.
    let built = release.then(|| build(&out, &STATIC).or_else(|| build(&out, &[]))).flatten();
    if release && built.is_none() {
        println!("cargo:warning=the CNI plugin is not embedded: this binary is its own, and starts slower");
    }
    let content = built.and_then(|path| fs::read(path).ok()).unwrap_or_default();
    if let Err(error) = fs::write(&embedded, content) {
        println!("cargo:warning=cannot write {}: {error}", embedded.display());
    }
}

/// No library to load, and nothing to relocate.
const STATIC: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// Builds the plugin below `out` with these flags for its last step, and returns where it is.
fn build(out: &Path, flags: &[&str]) -> Option<PathBuf> {
    let target_dir = out.join("plugin");
    let mut cargo = Command::new(env::var_os("CARGO")?);
    cargo
        .args([
            "rustc",
            "--package",
            "seaway-cni",
            "--bin",
            "seaway-cni",
            "--profile",
            "plugin",
            "--target-dir",
        ])
        .arg(&target_dir)
        // Of the build that this is a part of.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let (host, target) = (env::var("HOST").ok()?, env::var("TARGET").ok()?);
    let mut place = target_dir;
    if host != target {
        cargo.args(["--target", &target]);
        place.push(target);
    }
    let done = cargo.arg("--").args(flags).output().ok()?;
    done.status.success().then(|| place.join("plugin/seaway-cni"))
}
