//! The rules of the house, executed: file heads, sizes, names, and which crate may use which.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::process::root;

/// Lines of a file, its tests not counted.
const MAX_FILE_LINES: usize = 600;
const MAX_MAIN_LINES: usize = 100;

/// Who may use whom (A -> B: A's manifest may name B). What is not listed is refused.
const ARROWS: &[(&str, &[&str])] = &[
    ("seaway-model", &[]),
    ("seaway-watch", &["seaway-model"]),
    ("seaway-ebpf-abi", &[]),
    ("seaway-ebpf-programs", &["seaway-ebpf-abi"]),
    ("seaway-ebpf-loader", &["seaway-ebpf-abi"]),
    ("seaway-nft", &[]),
    ("seaway-proxy", &["seaway-model", "seaway-ebpf-abi", "seaway-ebpf-loader", "seaway-nft"]),
    ("seaway-cni-network", &["seaway-model", "seaway-nft"]),
    ("seaway-cni", &["seaway-cni-network"]),
    ("seaway-dns", &["seaway-model"]),
    ("seaway-images", &[]),
    ("seaway-store", &[]),
    ("seaway-kinds", &[]),
    ("seaway-apiserver", &["seaway-store", "seaway-kinds"]),
    ("seaway-client", &[]),
    ("seaway-scheduler", &["seaway-client"]),
    ("seaway-controllers", &["seaway-client"]),
    (
        "seaway-node",
        &[
            "seaway-model",
            "seaway-watch",
            "seaway-proxy",
            "seaway-cni",
            "seaway-cni-network",
            "seaway-dns",
            "seaway-images",
        ],
    ),
    (
        "seaway",
        &[
            "seaway-model",
            "seaway-watch",
            "seaway-node",
            "seaway-images",
            "seaway-dns",
            "seaway-cni",
            "seaway-cni-network",
            "seaway-apiserver",
            "seaway-scheduler",
            "seaway-controllers",
        ],
    ),
    ("seaway-lab", &["seaway-cni-network"]),
    ("seaway-e2e", &["seaway-lab"]),
    (
        "seaway-bench",
        &[
            "seaway-model",
            "seaway-watch",
            "seaway-proxy",
            "seaway-ebpf-loader",
            "seaway-lab",
            "seaway-cni-network",
            "seaway-dns",
        ],
    ),
    ("xtask", &[]),
];

/// Checks the tree and names every breach.
pub fn run() -> Result<()> {
    let mut breaches = Vec::new();
    let mut sources = Vec::new();
    let mut manifests = Vec::new();
    collect(&root(), &mut sources, &mut manifests)?;
    for path in &sources {
        check_source(&shown(path), &fs::read_to_string(path)?, &mut breaches);
    }
    for path in &manifests {
        check_manifest(&shown(path), &fs::read_to_string(path)?, &mut breaches);
    }
    if !breaches.is_empty() {
        bail!("tidy found {} breach(es):\n  {}", breaches.len(), breaches.join("\n  "));
    }
    eprintln!("tidy: {} sources and {} manifests are in order", sources.len(), manifests.len());
    Ok(())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn collect(dir: &Path, sources: &mut Vec<PathBuf>, manifests: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && !name.starts_with("target") {
                collect(&path, sources, manifests)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        } else if name == "Cargo.toml" && dir != root() {
            manifests.push(path);
        }
    }
    Ok(())
}

fn check_source(path: &str, text: &str, breaches: &mut Vec<String>) {
    let mut breach = |what: String| breaches.push(format!("{path}: {what}"));
    if !text.starts_with("//!") {
        breach("the first line does not say why the file exists (`//! …`)".into());
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    if name == "mod.rs" {
        breach("use foo.rs beside foo/, not mod.rs".into());
    }
    if ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"].contains(&name) {
        breach(format!("{name} names no concept"));
    }
    let is_test = path.contains("/tests/") || name == "tests.rs";
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {")).count();
    let limit =
        if name == "main.rs" && !path.starts_with("ebpf/programs") { MAX_MAIN_LINES } else { MAX_FILE_LINES };
    if lines > limit && !is_test {
        breach(format!("{lines} lines; {limit} are allowed: would two rooms be clearer?"));
    }
    for (number, line) in text.lines().enumerate() {
        if !path.starts_with("xtask/") && ["TODO", "FIXME"].iter().any(|mark| line.contains(mark)) {
            breach(format!("line {}: file an issue instead of leaving a mark", number + 1));
        }
        if line.trim_start().starts_with("#[ignore") {
            breach(format!("line {}: an ignored test tests nothing", number + 1));
        }
    }
}

fn check_manifest(path: &str, text: &str, breaches: &mut Vec<String>) {
    let package =
        text.lines().find_map(|line| line.strip_prefix("name = ")).map(|name| name.trim_matches('"'));
    let allowed = package.and_then(|package| ARROWS.iter().find(|(name, _)| *name == package));
    let Some((package, allowed)) = allowed else {
        breaches.push(format!(
            "{path}: package {package:?} has no place in the house (xtask/src/tidy.rs, ARROWS)"
        ));
        return;
    };
    let mut section = "";
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if section == "[dependencies]" && used.starts_with("seaway") && !allowed.contains(&used) {
            breaches.push(format!("{path}: {package} must not use {used}"));
        }
    }
    if !text.contains("[lints]\nworkspace = true") {
        breaches.push(format!("{path}: the workspace's lints are not taken over"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches_of(check: impl Fn(&mut Vec<String>)) -> Vec<String> {
        let mut breaches = Vec::new();
        check(&mut breaches);
        breaches
    }

    #[test]
    fn the_tree_is_tidy() {
        run().unwrap();
    }

    #[test]
    fn a_file_without_head_or_of_no_concept_is_a_breach() {
        let found = breaches_of(|breaches| check_source("dns/src/utils.rs", "fn a() {}\n", breaches));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn a_forbidden_arrow_is_a_breach() {
        let manifest = "name = \"seaway-dns\"\n[lints]\nworkspace = true\n[dependencies]\nseaway-proxy.workspace = true\n";
        let found = breaches_of(|breaches| check_manifest("dns/Cargo.toml", manifest, breaches));
        assert_eq!(found, ["dns/Cargo.toml: seaway-dns must not use seaway-proxy"]);
    }
}
