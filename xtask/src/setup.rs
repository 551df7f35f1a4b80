//! Installs what the tests need on a fresh Debian 12: the packages of the lab, the toolchain of the eBPF object, and
//! a kubectl of the version that the tests are written against.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, output, target_dir};

/// A package and a file that it brings; the package is installed only where the file is missing.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "/usr/bin/cc"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("iproute2", "/usr/sbin/ip"),
    ("iputils-ping", "/usr/bin/ping"),
    ("nftables", "/usr/sbin/nft"),
    ("bind9-dnsutils", "/usr/bin/dig"),
    ("curl", "/usr/bin/curl"),
    ("containernetworking-plugins", "/usr/lib/cni/portmap"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("iptables", "/usr/sbin/iptables"),
    ("procps", "/usr/bin/ps"),
    ("rustc-web", "/usr/bin/rustc"),
    ("cargo-web", "/usr/bin/cargo"),
    ("rust-web-src", "/usr/share/doc/rust-web-src"),
    ("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    ("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
];

/// The release of Debian whose kubectl (1.32; kubernetes-client stands for it) the end-to-end tests drive. It is
/// unpacked, not installed.
const KUBECTL_SUITE: &str = "trixie";
const KUBECTL_MINOR: u32 = 32;
const BPF_LINKER: &str = "0.13.0";

/// Installs everything that is missing. Does nothing on a machine that has it all.
pub fn run() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    if !missing.is_empty() {
        process::run(Command::new("apt-get").args(["update", "-q"]))?;
        process::run(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-q", "-y", "--no-install-recommends"])
                .args(&missing),
        )
        .with_context(|| format!("cannot install {}; are you root?", missing.join(" ")))?;
    }
    bpf_linker()?;
    kubectl().map(drop)
}

/// The linker of the eBPF object, built against the LLVM that Debian packages.
pub fn bpf_linker() -> Result<PathBuf> {
    let root = target_dir().join("tools");
    let ours = root.join("bin/bpf-linker");
    let is_right = |linker: &PathBuf| {
        output(Command::new(linker).arg("--version")).is_ok_and(|version| version.contains(BPF_LINKER))
    };
    if let Some(found) = [PathBuf::from("bpf-linker"), ours.clone()].into_iter().find(is_right) {
        return Ok(found);
    }
    process::run(
        process::cargo()
            .env("LLVM_PREFIX", "/usr/lib/llvm-22")
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&root),
    )?;
    Ok(ours)
}

/// A kubectl that is new enough: the machine's own, else one unpacked below the target directory.
pub fn kubectl() -> Result<PathBuf> {
    let unpacked = target_dir().join("tools/kubectl/usr/bin/kubectl");
    for candidate in [PathBuf::from("kubectl"), unpacked.clone()] {
        if minor_version(&candidate).is_some_and(|minor| minor >= KUBECTL_MINOR) {
            return Ok(candidate);
        }
    }
    unpack_kubectl(&target_dir().join("tools/kubectl"))?;
    match minor_version(&unpacked) {
        Some(_) => Ok(unpacked),
        None => bail!("{} does not run", unpacked.display()),
    }
}

fn minor_version(kubectl: &Path) -> Option<u32> {
    let text = output(Command::new(kubectl).args(["version", "--client"])).ok()?;
    let version = text.lines().next()?.split(": v1.").nth(1)?;
    version.split('.').next()?.parse().ok()
}

/// Fetches one package of a newer Debian with a private apt state, so that the machine's own stays as it is.
fn unpack_kubectl(into: &Path) -> Result<()> {
    let state = into.join("apt");
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(state.join("archives/partial"))?;
    let sources = state.join("debian.list");
    fs::write(&sources, newer_sources(KUBECTL_SUITE)?)?;
    let status = state.join("status");
    fs::write(&status, "")?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", state.join("lists").display()),
        // What is installed here says nothing of the other release.
        format!("Dir::State::status={}", status.display()),
        format!("Dir::Cache={}", state.display()),
    ];
    let apt = |verb: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(into);
        for option in &options {
            command.args(["-o", option]);
        }
        command.args(verb);
        process::run(&mut command)
    };
    apt(&["update", "-q"])?;
    apt(&["download", "-q", "kubectl"])?;
    let package = fs::read_dir(into)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    process::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(into))
}

/// A sources list for `suite` at the place where this machine gets its own Debian packages from.
fn newer_sources(suite: &str) -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())));
    }
    let mut texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let uri = texts.find_map(|text| main_uri(&text));
    let uri =
        uri.context("no Debian main archive in /etc/apt/sources.list*: cannot fetch kubernetes-client")?;
    Ok(format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n"))
}

/// The archive that serves the bookworm suite, in either of apt's formats.
fn main_uri(text: &str) -> Option<String> {
    for stanza in text.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(uris), Some(suites)) = (field("URIs:"), field("Suites:"))
            && suites.split(' ').any(|suite| suite == "bookworm")
        {
            return uris.split(' ').next().map(str::to_owned);
        }
    }
    text.lines().filter(|line| line.starts_with("deb ")).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with('[')).collect();
        (words.get(2) == Some(&"bookworm")).then(|| words[1].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_found_in_both_formats() {
        let deb822 = "Types: deb\n# a comment\nURIs: mirror://one/\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                      Types: deb\nURIs: mirror://security/\nSuites: bookworm-security\n";
        assert_eq!(main_uri(deb822).as_deref(), Some("mirror://one/"));
        let line = "deb mirror://sdk cloud main\ndeb [arch=amd64] mirror://two bookworm main contrib\n";
        assert_eq!(main_uri(line).as_deref(), Some("mirror://two"));
        assert_eq!(main_uri("deb mirror://sdk cloud-bookworm main\n"), None);
    }
}
