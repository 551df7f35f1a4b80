//! `seaway up`, `seaway down`, and the hidden supervisor between them.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::install_crypto;
use seaway_node::XdpMode;

use crate::cli::{Balancing, Forwarding, HandOver, OverlayKind, Up, Which};
use crate::cluster::{ClusterSpec, Layout, bringup, preflight, supervisor, teardown};
use crate::telemetry::{say, say_err};

/// Starts a cluster.
pub fn up(args: Up) -> Result<ExitCode> {
    install_crypto();
    let spec = spec_of(&args);
    let layout = bringup::up(&spec, &args.which.state_dir)?;
    bringup::say_next(&spec, &layout);
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    say("\nPress Ctrl-C to remove the cluster.");
    bringup::wait_for_interrupt()?;
    say_err("removing the cluster");
    teardown::remove(&layout)?;
    Ok(ExitCode::SUCCESS)
}

fn spec_of(args: &Up) -> ClusterSpec {
    let defaults = ClusterSpec::default();
    ClusterSpec {
        name: args.which.name.clone(),
        nodes: args.nodes,
        pod_cidrs: if args.pod_cidrs.is_empty() { defaults.pod_cidrs } else { args.pod_cidrs.clone() },
        service_cidrs: if args.service_cidrs.is_empty() {
            defaults.service_cidrs
        } else {
            args.service_cidrs.clone()
        },
        vxlan: args.overlay == OverlayKind::Vxlan,
        proxy_mode: args.proxy_mode.name().into(),
        maglev: args.balance.load_balancing == Balancing::Maglev,
        dsr: args.balance.north_south == Forwarding::Dsr,
        never_hand_over: args.balance.pod_hand_over == HandOver::Never,
        xdp: XdpMode::from(args.balance.xdp).name().into(),
        traffic_metrics: args.balance.traffic_metrics,
        api_listen: args.api_listen,
        publish: (!args.no_demo).then_some(args.publish),
        demo: !args.no_demo,
        ..defaults
    }
}

/// The places of a cluster of this machine.
pub fn layout(which: &Which) -> Result<Layout> {
    Ok(Layout::new(&which.name, &which.state_dir, &preflight::cgroup2_mount()?))
}

/// Removes a cluster.
pub fn down(which: &Which) -> Result<ExitCode> {
    let layout = layout(which)?;
    if teardown::exists(&layout) && !rustix::process::geteuid().is_root() {
        bail!("`down` ends processes and removes network namespaces: run it as root (sudo)");
    }
    if teardown::remove(&layout)? {
        say(&format!("cluster {:?} is removed", which.name));
    } else {
        say(&format!("there is no cluster {:?}; nothing to remove", which.name));
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps a cluster running.
pub fn supervise(root: &Path) -> Result<ExitCode> {
    let layout = supervisor::layout_of(root).with_context(|| format!("no cluster at {}", root.display()))?;
    supervisor::run(&layout)?;
    Ok(ExitCode::SUCCESS)
}
