//! Calls CNI plugins as a container runtime does: finds the network's configuration list, executes its plugins in
//! order with environment and standard input, and undoes it in reverse.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// A plugin that does not answer within this time is ended.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The versions of CNI that we speak, oldest first.
const SPOKEN: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The interface that pods get.
pub(crate) const IFNAME: &str = "eth0";

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// Nothing is configured (yet).
    #[error("no CNI network configuration in {0}: the pod network is not ready")]
    NoConfiguration(PathBuf),
    /// A configuration cannot be read.
    #[error("cannot read CNI configuration {path}: {source}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin could not be run.
    #[error("cannot execute CNI plugin {plugin}: {source}")]
    Execute {
        /// The executable.
        plugin: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin took too long.
    #[error("CNI plugin {plugin} did not end within {} s", PLUGIN_TIMEOUT.as_secs())]
    Timeout {
        /// The executable.
        plugin: PathBuf,
    },
    /// A plugin refused.
    #[error("CNI plugin {plugin} {command}: {message} (code {code})")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// The command.
        command: &'static str,
        /// The code of the CNI specification.
        code: u64,
        /// Message and details.
        message: String,
    },
    /// A plugin answered something else than a result.
    #[error("CNI plugin {plugin} printed no valid result: {message}")]
    Result {
        /// The plugin's type.
        plugin: String,
        /// What is wrong.
        message: String,
    },
}

/// Who gets a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodIdentity {
    /// `CNI_CONTAINERID`.
    pub(crate) container_id: String,
    /// The pod's namespace.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) name: String,
    /// The pod's uid.
    pub(crate) uid: String,
}

/// A network that a pod has, with all that is needed to take it away again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The configuration list it was made with.
    list: Value,
    /// The capability arguments it was made with.
    runtime_config: BTreeMap<String, Value>,
    /// The last plugin's result.
    result: Option<Value>,
}

impl Attachment {
    /// The pod's addresses, in the order of the result.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        let ips = self.result.as_ref().and_then(|r| r["ips"].as_array());
        let addresses = ips.into_iter().flatten().filter_map(|ip| ip["address"].as_str());
        addresses.filter_map(|text| text.parse::<IpNet>().ok().map(|net| net.addr())).collect()
    }
}

/// Where configurations and plugins are.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Configuration lists.
    pub(crate) conf_dir: PathBuf,
    /// Plugins.
    pub(crate) bin_dir: PathBuf,
}

impl Network {
    /// The attachment that [`Network::add`] would make, to be kept before it is tried.
    pub(crate) fn plan(&self, runtime_config: BTreeMap<String, Value>) -> Result<Attachment, CniError> {
        Ok(Attachment { list: self.configuration()?, runtime_config, result: None })
    }

    /// The first configuration by file name, as a list.
    pub(crate) fn configuration(&self) -> Result<Value, CniError> {
        let none = || CniError::NoConfiguration(self.conf_dir.clone());
        let entries = std::fs::read_dir(&self.conf_dir).map_err(|_| none())?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        files.retain(|path| {
            path.extension()
                .and_then(|e| e.to_str())
                .is_some_and(|e| matches!(e, "conflist" | "conf" | "json"))
        });
        files.sort();
        let path = files.into_iter().next().ok_or_else(none)?;
        let failed = |source| CniError::Configuration { path: path.clone(), source };
        let text = std::fs::read(&path).map_err(failed)?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
        if value["plugins"].is_array() {
            return Ok(value);
        }
        Ok(json!({"cniVersion": value["cniVersion"], "name": value["name"], "plugins": [value]}))
    }

    /// ADD through the chain.
    pub(crate) async fn add(
        &self,
        pod: &PodIdentity,
        netns: &str,
        plan: &mut Attachment,
    ) -> Result<(), CniError> {
        let mut previous = None;
        for plugin in plugins(&plan.list) {
            let config = plugin_config(plan, plugin, previous.as_ref());
            let answer = self.execute("ADD", pod, Some(netns), plugin, &config).await?;
            previous = Some(answer);
        }
        plan.result = previous;
        Ok(())
    }

    /// DEL through the chain, in reverse. Every plugin is called, whatever those before it said.
    pub(crate) async fn del(
        &self,
        pod: &PodIdentity,
        netns: Option<&str>,
        attachment: &Attachment,
    ) -> Result<(), CniError> {
        let mut failed = Ok(());
        for plugin in plugins(&attachment.list).iter().rev() {
            let config = plugin_config(attachment, plugin, attachment.result.as_ref());
            if let Err(error) = self.execute("DEL", pod, netns, plugin, &config).await {
                failed = Err(error);
            }
        }
        failed
    }

    async fn execute(
        &self,
        command: &'static str,
        pod: &PodIdentity,
        netns: Option<&str>,
        plugin: &Value,
        config: &Value,
    ) -> Result<Value, CniError> {
        let kind = plugin["type"].as_str().unwrap_or_default().to_owned();
        let path = self.bin_dir.join(Path::new(&kind).file_name().unwrap_or_default());
        let mut process = tokio::process::Command::new(&path);
        process.env_clear().envs(environment(command, pod, netns, &self.bin_dir)).kill_on_drop(true);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |source| CniError::Execute { plugin: path.clone(), source };
        let mut child = process.spawn().map_err(failed)?;
        let input = config.to_string();
        let stdin = child.stdin.take();
        let talk = async {
            if let Some(mut stdin) = stdin {
                // A plugin may answer without reading its input.
                let _early_answer = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = match tokio::time::timeout(PLUGIN_TIMEOUT, talk).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(CniError::Timeout { plugin: path }),
        };
        answer(&kind, command, output.status.success(), &output.stdout, &output.stderr)
    }
}

fn plugins(list: &Value) -> &[Value] {
    list["plugins"].as_array().map_or(&[], Vec::as_slice)
}

/// The newest version that the list offers and we speak. What speaks one only has it in the place of the list.
fn version(list: &Value) -> Value {
    let offered = list["cniVersions"].as_array().into_iter().flatten();
    let newest = SPOKEN.iter().rev().find(|spoken| offered.clone().any(|offer| offer == *spoken));
    newest.map_or_else(|| list["cniVersion"].clone(), |version| (*version).into())
}

/// What one plugin of the chain reads: its own object with the list's name and version, what is known so far, and the
/// capability arguments that it asks for.
fn plugin_config(attachment: &Attachment, plugin: &Value, previous: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    config["cniVersion"] = version(&attachment.list);
    config["name"] = attachment.list["name"].clone();
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    let wanted = |name: &str| plugin["capabilities"][name].as_bool() == Some(true);
    let arguments = attachment.runtime_config.iter().filter(|(name, _)| wanted(name));
    let arguments: serde_json::Map<String, Value> = arguments.map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Some(object) = config.as_object_mut() {
        object.remove("capabilities");
        if !arguments.is_empty() {
            object.insert("runtimeConfig".to_owned(), Value::Object(arguments));
        }
    }
    config
}

fn environment(
    command: &str,
    pod: &PodIdentity,
    netns: Option<&str>,
    bin_dir: &Path,
) -> Vec<(&'static str, String)> {
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.container_id, pod.uid
    );
    vec![
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", pod.container_id.clone()),
        ("CNI_NETNS", netns.unwrap_or_default().to_owned()),
        ("CNI_IFNAME", IFNAME.to_owned()),
        ("CNI_ARGS", args),
        ("CNI_PATH", bin_dir.to_string_lossy().into_owned()),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
    ]
}

fn answer(
    plugin: &str,
    command: &'static str,
    ok: bool,
    stdout: &[u8],
    stderr: &[u8],
) -> Result<Value, CniError> {
    let parsed: Result<Value, _> = serde_json::from_slice(stdout);
    if !ok {
        let value = parsed.unwrap_or_default();
        let text = |key: &str| value[key].as_str().filter(|t| !t.is_empty());
        let spoken = [text("msg"), text("details")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let stderr = String::from_utf8_lossy(stderr);
        let message = if spoken.is_empty() { stderr.trim().to_owned() } else { spoken };
        let code = value["code"].as_u64().unwrap_or(0);
        return Err(CniError::Plugin { plugin: plugin.to_owned(), command, code, message });
    }
    if command == "DEL" {
        return Ok(Value::Null);
    }
    parsed.map_err(|e| CniError::Result { plugin: plugin.to_owned(), message: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> PodIdentity {
        PodIdentity {
            container_id: "abc".into(),
            namespace: "default".into(),
            name: "web".into(),
            uid: "u1".into(),
        }
    }

    fn network(conflist: &Value, plugins: &[(&str, &str)]) -> (tempfile::TempDir, Network) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let network = Network { conf_dir: dir.path().join("conf"), bin_dir: dir.path().join("bin") };
        std::fs::create_dir_all(&network.conf_dir).unwrap();
        std::fs::create_dir_all(&network.bin_dir).unwrap();
        std::fs::write(network.conf_dir.join("10-test.conflist"), conflist.to_string()).unwrap();
        for (name, script) in plugins {
            let path = network.bin_dir.join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        (dir, network)
    }

    #[tokio::test]
    async fn a_chain_is_called_in_order_and_undone_in_reverse() {
        let script = |name: &str| {
            format!(
                "#!/bin/sh\ncat > $CNI_PATH/{name}.$CNI_COMMAND.in\necho {name} $CNI_COMMAND $CNI_NETNS >> $CNI_PATH/calls\n\
                 echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.0.0.5/24\"}},{{\"address\":\"fd00::5/64\"}}],\"by\":\"{name}\"}}'\n"
            )
        };
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "one", "capabilities": {"portMappings": true}}, {"type": "two"}]});
        let (_dir, network) = network(&list, &[("one", &script("one")), ("two", &script("two"))]);
        let ports = BTreeMap::from([("portMappings".to_owned(), json!([{"hostPort": 80}]))]);
        let mut attachment = network.plan(ports).unwrap();
        network.add(&identity(), "/netns", &mut attachment).await.unwrap();
        network.del(&identity(), None, &attachment).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(network.bin_dir.join(name)).unwrap();
        assert_eq!(read("calls"), "one ADD /netns\ntwo ADD /netns\ntwo DEL\none DEL\n");
        let second: Value = serde_json::from_str(&read("two.ADD.in")).unwrap();
        assert_eq!(second["prevResult"]["by"], "one");
        assert_eq!(second["name"], "net");
        assert_eq!(second["runtimeConfig"], Value::Null);
        let first: Value = serde_json::from_str(&read("one.ADD.in")).unwrap();
        assert_eq!(first["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
        let removal: Value = serde_json::from_str(&read("one.DEL.in")).unwrap();
        assert_eq!(removal["prevResult"]["by"], "two");
        let ips: Vec<String> = attachment.ips().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.5", "fd00::5"]);
    }

    #[test]
    fn the_newest_version_that_both_sides_speak_is_chosen() {
        for (offered, chosen) in [
            (json!(["1.0.0", "1.1.0"]), "1.1.0"),
            (json!(["1.1.0", "0.4.0", "9.0.0"]), "1.1.0"),
            (json!(["9.0.0"]), "0.4.0"),
            (json!([]), "0.4.0"),
            (Value::Null, "0.4.0"),
        ] {
            assert_eq!(version(&json!({"cniVersion": "0.4.0", "cniVersions": offered})), chosen);
        }
    }

    #[tokio::test]
    async fn a_refusal_says_what_the_plugin_said() {
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "no"}]});
        let script = "#!/bin/sh\ncat >/dev/null\necho '{\"code\":11,\"msg\":\"try again\",\"details\":\"starting\"}'\nexit 1\n";
        let (_dir, network) = network(&list, &[("no", script)]);
        let mut attachment = network.plan(BTreeMap::new()).unwrap();
        let error = network.add(&identity(), "/netns", &mut attachment).await.unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin no ADD: try again: starting (code 11)");
    }

    #[test]
    fn without_a_configuration_the_network_is_not_ready() {
        let dir = tempfile::tempdir().unwrap();
        let network = Network { conf_dir: dir.path().to_owned(), bin_dir: dir.path().to_owned() };
        assert!(matches!(network.plan(BTreeMap::new()), Err(CniError::NoConfiguration(_))));
    }
}
