//! Whose packets get another source when they leave the cluster: nobody outside knows the way back to a pod.

use ipnet::IpNet;

/// What is never masqueraded, whatever the cluster is: loopback, multicast, broadcast, link-local.
const NEVER: [&str; 7] = [
    "127.0.0.0/8",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "169.254.0.0/16",
    "::1/128",
    "ff00::/8",
    "fe80::/10",
];

/// Packets from `pods` to anything but `kept` get an address of the node as their source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The pod subnets of a node.
    pub pods: Vec<IpNet>,
    /// Who sees a pod's own address: the cluster, multicast and link-local addresses, and whom the administrator has named.
    /// No network is in another.
    pub kept: Vec<IpNet>,
}

impl Masquerade {
    /// Of the pods in `pods`, except towards `cluster`, in which these are.
    pub fn new(pods: Vec<IpNet>, cluster: &[IpNet]) -> Self {
        let mut masquerade = Self { pods, kept: Vec::new() };
        let never: Vec<IpNet> = NEVER.iter().filter_map(|text| text.parse().ok()).collect();
        masquerade.except(&never);
        masquerade.except(&masquerade.pods.clone());
        masquerade.except(cluster);
        masquerade
    }

    /// Leaves the source alone of what goes to these destinations as well.
    pub fn except(&mut self, destinations: &[IpNet]) {
        self.kept.extend(destinations);
        self.kept = IpNet::aggregate(&self.kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_the_pods_and_what_is_never_anywhere_keep_their_source() {
        let nets = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let mut masquerade =
            Masquerade::new(nets("10.244.1.0/24 fd00:1::/64"), &nets("10.244.0.0/24 192.0.2.1/32"));
        masquerade.except(&nets("198.51.100.0/24"));
        let kept = masquerade.kept.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(
            kept,
            "10.244.0.0/23 127.0.0.0/8 169.254.0.0/16 192.0.2.1/32 198.51.100.0/24 224.0.0.0/4 255.255.255.255/32 \
             ::1/128 fd00:1::/64 fe80::/10 ff00::/8"
        );
    }
}
