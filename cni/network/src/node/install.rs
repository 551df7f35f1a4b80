//! The plugin and its network configuration, where the container runtime looks for them. The configuration comes
//! last and in one step: as soon as it is there, the runtime starts pods.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;

use super::NodeNetworkError;
use crate::{NodeNetworkConfig, disk, ready};

/// The name of the plugin's executable, and its `type`.
const PLUGIN: &str = "seaway-cni";
/// The name of the configuration's file. Runtimes take the first one in alphabetical order.
const CONFLIST: &str = "10-seaway.conflist";
/// How much of two files is compared at a time.
const BLOCK: usize = 64 * 1024;
/// The network's name.
pub(super) const NETWORK: &str = "seaway";

/// The configuration for pods of these subnets.
pub(super) fn conflist(
    config: &NodeNetworkConfig,
    subnets: &[IpNet],
    mtu: u32,
    overlay_device: Option<&str>,
) -> String {
    let ranges: Vec<_> = subnets.iter().map(|subnet| json!({ "subnet": subnet })).collect();
    let conflist = json!({
        // Runtimes that know version 1.1 choose it from the list; older ones do not read the list.
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{
            "type": PLUGIN,
            "dataDir": config.data_dir,
            "ranges": ranges,
            "mtu": mtu,
            "overlayDevice": overlay_device.unwrap_or_default(),
            "readyFile": config.data_dir.join(ready::FILE),
            "capabilities": {
                "bandwidth": true, "ipRanges": true, "ips": true, "mac": true, "portMappings": true,
            },
        }],
    });
    format!("{conflist:#}\n")
}

/// Installs the plugin, unless it is there with the same content. On one file system it becomes another name of the
/// same file, so that the runtime starts what the agent has in memory already; else it is copied.
pub(super) fn install_plugin(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    let target = config.cni_bin_dir.join(PLUGIN);
    let source = fs::canonicalize(&config.plugin_source).unwrap_or_else(|_| config.plugin_source.clone());
    if same_file(&source, &target) || same_content(&source, &target).unwrap_or(false) {
        return Ok(());
    }
    let new = beside(&target)?;
    // Left by an installation that was cut short.
    drop(disk::remove(&new));
    let executable =
        fs::metadata(&source).is_ok_and(|metadata| metadata.permissions().mode() & 0o555 == 0o555);
    if !executable || !disk::link(&source, &new) {
        disk::copy(&source, &new).map_err(failed("copy", &source))?;
        disk::set_permissions(&new, 0o755).map_err(failed("make executable", &new))?;
    }
    disk::rename(&new, &target).map_err(failed("install", &target))
}

fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    identity(a).is_some_and(|of_a| identity(b) == Some(of_a))
}

/// Whether `b` is executable and has the content of `a`. Compares without taking either into memory: the executable
/// may be the whole of Seaway.
fn same_content(a: &Path, b: &Path) -> io::Result<bool> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    let held = b.metadata()?;
    if a.metadata()?.len() != held.len() || held.mode() & 0o111 != 0o111 {
        return Ok(false);
    }
    let (mut a, mut b) = (BufReader::with_capacity(BLOCK, a), BufReader::with_capacity(BLOCK, b));
    loop {
        let (left, right) = (a.fill_buf()?, b.fill_buf()?);
        let length = left.len().min(right.len());
        if left[..length] != right[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        a.consume(length);
        b.consume(length);
    }
}

/// Whether the plugin is there at all.
pub(super) fn plugin_is_there(config: &NodeNetworkConfig) -> bool {
    config.cni_bin_dir.join(PLUGIN).exists()
}

/// Tells the plugin that the ways are there since this boot, unless it was told.
pub(super) fn mark_ready(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    let path = config.data_dir.join(ready::FILE);
    if ready::is_set_up(&path) {
        return Ok(());
    }
    ready::mark().map_or(Ok(()), |mark| replace(&path, mark.as_bytes(), 0o644))
}

/// Whether the configuration is there.
pub(super) fn conflist_is_there(config: &NodeNetworkConfig) -> bool {
    config.cni_conf_dir.join(CONFLIST).exists()
}

/// Writes the configuration, unless it is there with the same content. `Ok(true)`: it was written.
pub(super) fn install_conflist(config: &NodeNetworkConfig, content: &str) -> Result<bool, NodeNetworkError> {
    let target = config.cni_conf_dir.join(CONFLIST);
    if fs::read_to_string(&target).is_ok_and(|held| held == content) {
        return Ok(false);
    }
    replace(&target, content.as_bytes(), 0o644)?;
    Ok(true)
}

/// Another project's configuration that runtimes take instead of ours, by its name.
pub(super) fn taken_instead(config: &NodeNetworkConfig) -> Option<String> {
    let names =
        fs::read_dir(&config.cni_conf_dir).into_iter().flatten().flatten().map(|file| file.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| name.as_str() < CONFLIST && is_configuration(name)).min()
}

fn is_configuration(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ["conflist", "conf", "json"].contains(&ending))
}

/// Takes the configuration away: the runtime starts no more pods, nor does one that has read it before. `Ok(true)`: it
/// was there.
pub(super) fn withdraw_conflist(config: &NodeNetworkConfig) -> Result<bool, NodeNetworkError> {
    let was_there = remove(&config.cni_conf_dir.join(CONFLIST))?;
    remove(&config.data_dir.join(ready::FILE))?;
    Ok(was_there)
}

/// Removes all that was installed, the configuration first.
pub(super) fn uninstall(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    withdraw_conflist(config)?;
    remove(&config.cni_bin_dir.join(PLUGIN)).map(drop)
}

/// Removes a file. `Ok(false)`: there was none.
fn remove(path: &Path) -> Result<bool, NodeNetworkError> {
    disk::remove(path).map_err(failed("remove", path))
}

/// Puts a whole file in place of another in one step.
fn replace(target: &Path, content: &[u8], mode: u32) -> Result<(), NodeNetworkError> {
    let new = beside(target)?;
    disk::replace_for_good(target, &new, content, mode).map_err(failed("write", target))
}

/// Where a file is made ready before it takes its place; the directory is made if it is missing. A leading dot and
/// no known ending: no runtime takes it for a configuration.
fn beside(target: &Path) -> Result<PathBuf, NodeNetworkError> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    disk::create_directory(directory).map_err(failed("create", directory))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    Ok(directory.join(format!(".{name}.new")))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeNetworkError + use<> {
    let path = path.to_owned();
    move |source| NodeNetworkError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::super::desired::tests::config;
    use super::*;
    use crate::Overlay;

    #[test]
    fn who_comes_before_us_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let config =
            NodeNetworkConfig { cni_conf_dir: directory.path().join("net.d"), ..config(Overlay::None) };
        assert_eq!(taken_instead(&config), None);
        fs::create_dir(&config.cni_conf_dir).unwrap();
        for name in
            ["10-seaway.conflist", ".05.conflist.new", "99-other.conf", "05-README", "87-podman.conflist"]
        {
            fs::write(config.cni_conf_dir.join(name), "{}").unwrap();
        }
        assert_eq!(taken_instead(&config), None);
        for name in ["10-flannel.conflist", "05-cilium.conflist"] {
            fs::write(config.cni_conf_dir.join(name), "{}").unwrap();
            assert_eq!(taken_instead(&config).as_deref(), Some(name));
        }
    }

    #[test]
    fn the_plugin_is_installed_once_and_again_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let config = NodeNetworkConfig {
            plugin_source: directory.path().join("source"),
            cni_bin_dir: directory.path().join("bin"),
            ..config(Overlay::None)
        };
        let target = config.cni_bin_dir.join(PLUGIN);
        let installed = || {
            install_plugin(&config).unwrap();
            let metadata = fs::metadata(&target).unwrap();
            assert_eq!(metadata.mode() & 0o111, 0o111, "it is executable");
            (fs::read_to_string(&target).unwrap(), metadata.ino())
        };
        assert!(install_plugin(&config).is_err() && !target.exists());
        fs::write(&config.plugin_source, "one").unwrap();
        let (content, first) = installed();
        assert_eq!(content, "one", "copied, since the source is not executable");
        fs::write(&config.plugin_source, "two").unwrap();
        let (content, second) = installed();
        assert!(content == "two" && second != first);
        fs::set_permissions(&config.plugin_source, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(installed(), ("two".to_owned(), second), "the same content stays");
        fs::remove_file(&config.plugin_source).unwrap();
        fs::write(&config.plugin_source, "new").unwrap();
        fs::set_permissions(&config.plugin_source, fs::Permissions::from_mode(0o755)).unwrap();
        let of_source = fs::metadata(&config.plugin_source).unwrap().ino();
        assert_eq!(installed(), ("new".to_owned(), of_source), "another name of the same file");
        assert_eq!(installed().1, of_source);
        let names: Vec<_> =
            fs::read_dir(&config.cni_bin_dir).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, [PLUGIN]);
    }
}
