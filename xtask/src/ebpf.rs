//! `cargo xtask ebpf`: builds the eBPF object that the loader carries, so that every build of it is the same to the
//! byte, and notes which tools made it.
//!
//! Needs a compiler with its library's source that takes `-Z build-std` (Debian: rustc-web, cargo-web, rust-web-src),
//! LLVM 22 (llvm-22-dev) and bpf-linker 0.13
//! (`LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22`).
//! `SEAWAY_BPF_RUSTC` and `SEAWAY_BPF_CARGO` name others, of a rustup nightly for example.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The object that the loader embeds, below the workspace's root. For little-endian machines; aya finds the byte order
/// in its header, and a big-endian one would be built with the target bpfeb-unknown-none.
pub const OBJECT: &str = "ebpf/loader/seaway.bpf.o";
/// What made it.
const NOTE: &str = "ebpf/loader/seaway.bpf.txt";
/// Where a fresh build is left. Tests that are to run on it get its path in `SEAWAY_BPF_OBJECT`.
pub const FRESH: &str = "target/ebpf/seaway.bpf.o";
const TARGET: &str = "bpfel-unknown-none";

/// The tools of a build.
struct Tools {
    rustc: PathBuf,
    cargo: PathBuf,
    linker: PathBuf,
    strip: PathBuf,
}

/// Builds the object. Without `check` it replaces the checked-in one. With it, it is compared: tools of the same
/// versions must give the same bytes; with others the difference is told, and tests are to run on the fresh one
/// ([`FRESH`]).
pub fn build(check: bool) -> Result<()> {
    let root = root();
    let tools = Tools::find()?;
    let fresh = root.join(FRESH);
    compile(&root, &tools, &fresh)?;
    let note = note(&tools, &fresh)?;
    let bytes = read(&fresh)?;
    if !check {
        std::fs::write(root.join(OBJECT), &bytes).with_context(|| format!("cannot write {OBJECT}"))?;
        std::fs::write(root.join(NOTE), &note).with_context(|| format!("cannot write {NOTE}"))?;
        eprintln!("{OBJECT}: {} bytes\n{note}", bytes.len());
        return Ok(());
    }
    let held = String::from_utf8(read(&root.join(NOTE))?).with_context(|| format!("{NOTE} is not text"))?;
    let same = bytes == read(&root.join(OBJECT))?;
    if same {
        ensure!(held == note, "{OBJECT} is right, but {NOTE} is not: run `cargo xtask ebpf` and commit both");
        eprintln!("{OBJECT}: the same, to the byte");
    } else if versions(&held) == versions(&note) {
        bail!(
            "{OBJECT} is not what its source gives: run `cargo xtask ebpf` and commit it with {NOTE}\n{note}"
        );
    } else {
        eprintln!("{OBJECT} was made by other tools; tests run on {FRESH}\nchecked in:\n{held}here:\n{note}");
    }
    Ok(())
}

fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Tools {
    fn find() -> Result<Self> {
        let chosen = |variable, default: &str| {
            std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        let rustc = chosen("SEAWAY_BPF_RUSTC", "/usr/bin/rustc");
        let cargo = chosen("SEAWAY_BPF_CARGO", "/usr/bin/cargo");
        let source = sysroot(&rustc)?.join("lib/rustlib/src/rust/library/core");
        ensure!(
            source.is_dir(),
            "{} is missing: install the packages rustc-web, cargo-web, rust-web-src and llvm-22-dev (cargo xtask setup)",
            source.display()
        );
        let linker = find("bpf-linker").context(
            "bpf-linker is missing: LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked \
             --no-default-features --features llvm-22",
        )?;
        let strip = ["/usr/lib/llvm-22/bin/llvm-strip"].iter().map(PathBuf::from).find(|path| path.exists());
        let strip =
            strip.or_else(|| find("llvm-strip")).context("llvm-strip is missing: install llvm-22-dev")?;
        Ok(Self { rustc, cargo, linker, strip })
    }
}

/// A program in PATH or where cargo installs.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([cargo_home().join("bin"), crate::process::target_dir().join("tools/bin")])
        .map(|dir| dir.join(name))
        .find(|file| file.exists())
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .unwrap_or_else(|| "/root/.cargo".into())
}

/// The output of a command, as one line.
fn output(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(output.status.success(), "{} failed: {}", command.get_program().display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(output(Command::new(rustc).args(["--print", "sysroot"]))?.into())
}

/// Compiler flags, in which no path of this machine stays: they would be in the object's line information.
fn flags(root: &Path, tools: &Tools) -> Result<OsString> {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&tools.linker);
    let mut flags = OsString::from("--cfg=bpf_target_arch=\"x86_64\"");
    let remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flag
    };
    let registry = cargo_home().join("registry/src");
    for flag in [
        linker,
        "-Clink-arg=--btf".into(),
        // Copies and fills of a known size become plain loads and stores, not calls of a loop over bytes, which costs
        // every packet, and the verifier goes through it turn by turn.
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        remap(root, "seaway"),
        remap(&registry, "registry"),
        remap(&sysroot(&tools.rustc)?.join("lib/rustlib/src/rust"), "rust"),
    ] {
        flags.push("\x1f");
        flags.push(flag);
    }
    Ok(flags)
}

fn compile(root: &Path, tools: &Tools, fresh: &Path) -> Result<()> {
    let target_dir = root.join("target/ebpf/build");
    let status = Command::new(&tools.cargo)
        .current_dir(root)
        .args(["build", "--locked", "--release", "-Z", "build-std=core", "--target", TARGET])
        .args(["-p", "seaway-ebpf-programs"])
        .env("RUSTC", &tools.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, tools)?)
        // Type information for every function, those of dependencies too: the kernel wants all or none.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        // What the cargo that runs this has set is not meant for that one.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        // With other features of dependencies the object would be another one.
        .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
        .env_remove("CARGO_UNSTABLE_FEATURE_UNIFICATION")
        .status()
        .with_context(|| format!("cannot run {}", tools.cargo.display()))?;
    ensure!(status.success(), "building the eBPF programs failed: {status}");
    let built = target_dir.join(TARGET).join("release/seaway-ebpf");
    // The debug information has been turned into BTF, which stays.
    output(Command::new(&tools.strip).arg("--strip-debug").arg("-o").arg(fresh).arg(&built))?;
    Ok(())
}

/// What is written beside the object.
fn note(tools: &Tools, fresh: &Path) -> Result<String> {
    let rustc = output(Command::new(&tools.rustc).arg("--version"))?;
    let linker = output(Command::new(&tools.linker).arg("--version"))?;
    let strip = output(Command::new(&tools.strip).arg("--version"))?;
    let llvm = strip.lines().find(|line| line.contains("version")).unwrap_or_default().trim();
    let sum = output(Command::new("sha256sum").arg(fresh))?;
    let sum = sum.split_whitespace().next().unwrap_or_default();
    Ok(format!("target: {TARGET}\nrustc: {rustc}\nlinker: {linker}\nllvm: {llvm}\nsha256: {sum}\n"))
}

/// A note without its checksum.
fn versions(note: &str) -> String {
    note.lines().filter(|line| !line.starts_with("sha256: ")).collect::<Vec<_>>().join("\n")
}
