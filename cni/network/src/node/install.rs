//! The plugin and its network configuration, where the container runtime looks for them. The configuration comes
//! last and in one step: as soon as it is there, the runtime starts pods.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::json;

use super::NodeNetworkError;
use crate::NodeNetworkConfig;

/// The name of the plugin's executable, and its `type`.
const PLUGIN: &str = "seaway-cni";
/// The name of the configuration's file. Runtimes take the first one in alphabetical order.
const CONFLIST: &str = "10-seaway.conflist";
/// The network's name.
const NETWORK: &str = "seaway";

/// The configuration for pods of these subnets.
pub(super) fn conflist(config: &NodeNetworkConfig, subnets: &[IpNet], mtu: u32) -> String {
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
            "capabilities": { "ips": true, "mac": true },
        }],
    });
    format!("{conflist:#}\n")
}

/// Installs the plugin, unless it is there with the same content.
pub(super) fn install_plugin(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    let target = config.cni_bin_dir.join(PLUGIN);
    let source = fs::read(&config.plugin_source).map_err(failed("read", &config.plugin_source))?;
    if fs::read(&target).is_ok_and(|held| held == source) {
        return Ok(());
    }
    replace(&target, &source, 0o755)
}

/// Whether the plugin is there at all.
pub(super) fn plugin_is_there(config: &NodeNetworkConfig) -> bool {
    config.cni_bin_dir.join(PLUGIN).exists()
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

/// Removes both, the configuration first.
pub(super) fn uninstall(config: &NodeNetworkConfig) -> Result<(), NodeNetworkError> {
    for path in [config.cni_conf_dir.join(CONFLIST), config.cni_bin_dir.join(PLUGIN)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Puts a whole file in place of another in one step.
fn replace(target: &Path, content: &[u8], mode: u32) -> Result<(), NodeNetworkError> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    // A leading dot and no known ending: no runtime takes it for a configuration.
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let new: PathBuf = directory.join(format!(".{name}.new"));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_data()?;
        fs::rename(&new, target)
    });
    written.map_err(failed("write", target))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NodeNetworkError + use<> {
    let path = path.to_owned();
    move |source| NodeNetworkError::File { action, path, source }
}
