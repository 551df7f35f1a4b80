//! The kernel's connection tracking, sized and timed as kube-proxy does: clusters rely on its numbers.

use std::path::Path;
use std::time::Duration;

/// Settings of connection tracking. What is 0 or `None` is left as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per CPU.
    pub max_per_core: u32,
    /// Entries at least, however few CPUs there are.
    pub min: u32,
    /// How long an idle established TCP connection is remembered.
    pub tcp_established: Option<Duration>,
    /// How long a TCP connection in CLOSE_WAIT is remembered.
    pub tcp_close_wait: Option<Duration>,
    /// Packets outside of the window are let through.
    pub tcp_be_liberal: bool,
    /// How long a UDP exchange without an answer is remembered.
    pub udp: Option<Duration>,
    /// How long a UDP exchange with answers is remembered.
    pub udp_stream: Option<Duration>,
}

impl Conntrack {
    /// kube-proxy's defaults.
    pub const fn kube_proxy() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established: Some(Duration::from_secs(24 * 3600)),
            tcp_close_wait: Some(Duration::from_secs(3600)),
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        }
    }

    /// The sysctls to set below `net.netfilter`, and whether each is only ever raised.
    fn sysctls(&self, cpus: u32) -> Vec<(&'static str, u64, bool)> {
        let timeout = |timeout: Option<Duration>| timeout.map_or(0, |timeout| timeout.as_secs());
        let max = self.max_per_core.saturating_mul(cpus);
        let max = if max == 0 { 0 } else { max.max(self.min) };
        let all = [
            ("nf_conntrack_max", u64::from(max), true),
            ("nf_conntrack_tcp_timeout_established", timeout(self.tcp_established), false),
            ("nf_conntrack_tcp_timeout_close_wait", timeout(self.tcp_close_wait), false),
            ("nf_conntrack_tcp_be_liberal", u64::from(self.tcp_be_liberal), false),
            ("nf_conntrack_udp_timeout", timeout(self.udp), false),
            ("nf_conntrack_udp_timeout_stream", timeout(self.udp_stream), false),
        ];
        all.into_iter().filter(|(_, value, _)| *value > 0).collect()
    }

    /// Sets them in the network namespace of this thread. A kernel without connection tracking has nothing to set; what
    /// may not be set is named in the log.
    pub fn apply(&self) {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let dir = Path::new("/proc/sys/net/netfilter");
        for (name, value, raise) in self.sysctls(u32::try_from(cpus).unwrap_or(u32::MAX)) {
            let path = dir.join(name);
            let Ok(held) = std::fs::read_to_string(&path) else { continue };
            let held: u64 = held.trim().parse().unwrap_or(0);
            if held == value || (raise && held > value) {
                continue;
            }
            match std::fs::write(&path, value.to_string()) {
                Ok(()) => tracing::info!(name, value, "set"),
                Err(error) => tracing::warn!(name, value, %error, "cannot set; it stays at {held}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_left_alone() {
        assert_eq!(Conntrack::default().sysctls(4), []);
        assert_eq!(
            Conntrack::kube_proxy().sysctls(2),
            [
                ("nf_conntrack_max", 131_072, true),
                ("nf_conntrack_tcp_timeout_established", 86_400, false),
                ("nf_conntrack_tcp_timeout_close_wait", 3_600, false),
            ]
        );
        assert_eq!(Conntrack::kube_proxy().sysctls(64)[0].1, 2_097_152);
    }
}
