//! The plugin, killed before every single write of a file and every netlink request of ADD and of DEL: no address is
//! held twice or lost, and nothing is left that a repeated ADD or DEL does not mend.
//!
//! One test, because the place where the work is broken off is one for the process.
#![allow(clippy::unwrap_used, reason = "test helpers")]

#[path = "support/runtime.rs"]
mod runtime;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use runtime::{Runtime, Sandbox, addresses};
use seaway_cni::{CniError, Environment, call};
use seaway_cni_network::fault;
use seaway_cni_network::ipam::Ipam;
use seaway_lab::Lab;
use serde_json::{Value, json};

const MOST_STEPS: u64 = 400;

struct Bed<'a> {
    runtime: Runtime<'a>,
}

impl Bed<'_> {
    fn call(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> Result<Option<Value>, CniError> {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", &sandbox.id),
            ("CNI_NETNS", &sandbox.netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/"),
        ];
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = Environment::from_map(&variables);
        let stdin = config.to_string();
        self.runtime.node.run(|| call(&environment, stdin.as_bytes()))
    }

    /// The call, killed after `steps` steps; none if it was.
    fn killed(&self, steps: u64, verb: &str, sandbox: &Sandbox) -> Option<Result<Option<Value>, CniError>> {
        fault::arm(steps);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.call(verb, sandbox, &self.runtime.config)));
        fault::arm(0);
        match outcome {
            Ok(outcome) => Some(outcome),
            Err(panic) => {
                assert!(panic.is::<fault::Killed>(), "another panic");
                None
            }
        }
    }

    fn held(&self) -> BTreeSet<IpAddr> {
        let data_dir = self.runtime.config["dataDir"].as_str().unwrap();
        let Some(ipam) = Ipam::open_if_there(data_dir.as_ref(), "seaway").unwrap() else {
            return BTreeSet::new();
        };
        let mut all = BTreeSet::new();
        for (owner, held) in ipam.owners().unwrap() {
            for addr in held.addresses {
                assert!(all.insert(addr), "{owner} holds {addr}, which another holds as well");
            }
        }
        all
    }

    /// All addresses can be given, each once, and taken back.
    fn assert_none_lost(&self, free: usize) {
        let others: Vec<Sandbox> = (0..free).map(|number| Sandbox::new(&format!("probe{number}"))).collect();
        let mut given = self.held();
        for other in &others {
            let result = self.call("ADD", other, &self.runtime.config).unwrap().unwrap();
            for addr in addresses(&result) {
                assert!(given.insert(addr), "{addr} was given twice");
            }
        }
        for other in &others {
            self.call("DEL", other, &self.runtime.config).unwrap();
        }
    }

    fn assert_clean(&self) {
        assert_eq!((self.held().len(), self.runtime.in_kernel()), (0, (0, 0)));
    }

    fn assert_whole(&self, sandbox: &Sandbox, result: &Value) {
        let mut config = self.runtime.config.clone();
        config["prevResult"] = result.clone();
        assert_eq!(self.call("CHECK", sandbox, &config), Ok(None));
        assert_eq!((self.held().len(), self.runtime.in_kernel()), (2, (1, 2)));
    }
}

#[test]
fn every_step_of_add_and_del_may_be_the_last() {
    let lab = Lab::new(1).unwrap();
    let mut runtime = Runtime::new(lab.node(0), &["10.244.1.0/30", "fd00:10:244:1::/126"]);
    runtime.config["runtimeConfig"] =
        json!({ "bandwidth": { "ingressRate": 8_000_000, "egressRate": 8_000_000 } });
    let bed = Bed { runtime };
    let mut steps_of_add = 0;
    for steps in 1..MOST_STEPS {
        // The runtime gives up, cleans up and tries again, or just tries again.
        for repeat in ["DEL", "DEL ADD", "ADD"] {
            let pod = Sandbox::new("pod");
            let outcome = bed.killed(steps, "ADD", &pod);
            bed.held();
            if repeat.contains("DEL") {
                bed.call("DEL", &pod, &bed.runtime.config).unwrap();
                bed.assert_clean();
            }
            if repeat.contains("ADD") {
                let again = match (repeat, &outcome) {
                    ("ADD", Some(Ok(Some(result)))) => result.clone(),
                    _ => match bed.call("ADD", &pod, &bed.runtime.config) {
                        Ok(result) => result.unwrap(),
                        // All was done but for telling: only a DEL helps, and the runtime has to make it anyway.
                        Err(error) => {
                            assert_eq!(error.to_json()["code"], 103, "{error}");
                            bed.call("DEL", &pod, &bed.runtime.config).unwrap();
                            bed.call("ADD", &pod, &bed.runtime.config).unwrap().unwrap()
                        }
                    },
                };
                bed.assert_whole(&pod, &again);
                bed.call("DEL", &pod, &bed.runtime.config).unwrap();
            }
            bed.assert_clean();
            if outcome.is_some() {
                steps_of_add = steps;
            }
        }
        if steps % 5 == 0 {
            bed.assert_none_lost(2);
        }
        if steps_of_add != 0 {
            break;
        }
    }
    assert!((8..MOST_STEPS).contains(&steps_of_add), "{steps_of_add} steps");
    kill_del(&bed);
    kill_gc(&bed);
    lock_out(&bed);
}

/// Somebody keeps the addresses locked for longer than anyone waits: an ADD is to be tried again later, and a DEL takes
/// away all that leads to the pod and leaves the addresses to the agent, to which they are a leak.
fn lock_out(bed: &Bed<'_>) {
    let (pod, other) = (Sandbox::new("pod"), Sandbox::new("other"));
    bed.call("ADD", &pod, &bed.runtime.config).unwrap();
    let data_dir = bed.runtime.config["dataDir"].as_str().unwrap();
    let lock = Ipam::open(data_dir.as_ref(), "seaway").unwrap();
    fault::hurry(true);
    let error = bed.call("ADD", &other, &bed.runtime.config).unwrap_err().to_json();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("another process"), "{error}");
    assert_eq!(bed.call("DEL", &pod, &bed.runtime.config), Ok(None));
    assert_eq!(bed.call("DEL", &other, &bed.runtime.config), Ok(None));
    // Nor is the agent waited for without end, which has not come up since the boot.
    let mut early = bed.runtime.config.clone();
    early["readyFile"] = json!("/nowhere/ready");
    let error = bed.call("ADD", &other, &early).unwrap_err().to_json();
    assert!(error["code"] == 11 && error["msg"].as_str().unwrap().contains("since the boot"), "{error}");
    fault::hurry(false);
    drop(lock);
    assert_eq!((bed.held().len(), bed.runtime.in_kernel()), (2, (0, 0)));
    bed.call("DEL", &pod, &bed.runtime.config).unwrap();
    bed.assert_clean();
}

/// One pod stays and one goes, whatever of the collection is done when it is killed.
fn kill_gc(bed: &Bed<'_>) {
    let stays = Sandbox::new("stays");
    let result = bed.call("ADD", &stays, &bed.runtime.config).unwrap().unwrap();
    let mut collect = bed.runtime.config.clone();
    collect["cni.dev/valid-attachments"] = json!([{ "containerID": "stays", "ifname": "eth0" }]);
    for steps in 1..MOST_STEPS {
        let goes = Sandbox::new("goes");
        bed.call("ADD", &goes, &bed.runtime.config).unwrap();
        fault::arm(steps);
        let outcome = catch_unwind(AssertUnwindSafe(|| bed.call("GC", &goes, &collect)));
        fault::arm(0);
        bed.held();
        bed.call("GC", &goes, &collect).unwrap();
        bed.assert_whole(&stays, &result);
        if let Ok(outcome) = outcome {
            outcome.unwrap();
            assert!(steps > 4, "{steps} steps");
            bed.call("DEL", &stays, &bed.runtime.config).unwrap();
            return;
        }
    }
    panic!("GC has no end");
}

fn kill_del(bed: &Bed<'_>) {
    for steps in 1..MOST_STEPS {
        let pod = Sandbox::new("pod");
        bed.call("ADD", &pod, &bed.runtime.config).unwrap();
        let outcome = bed.killed(steps, "DEL", &pod);
        if steps % 2 == 0 {
            bed.call("DEL", &pod, &bed.runtime.config).unwrap();
        } else {
            // The agent lists what it knows of instead.
            let mut config = bed.runtime.config.clone();
            config["cni.dev/valid-attachments"] = json!([]);
            bed.call("GC", &pod, &config).unwrap();
        }
        bed.assert_clean();
        bed.assert_none_lost(2);
        if outcome.is_some() {
            assert!(steps > 4, "{steps} steps");
            return;
        }
    }
    panic!("DEL has no end");
}
