//! Which connections are forgotten. The programs' table lets go of that of the longest silence when it is full: without
//! anybody who takes out what has ended, that would be an open one that says little, on a node that opens many.

use std::collections::HashSet;
use std::time::Duration;

use seaway_ebpf_loader::{Connection, Protocol};

/// After its end the kernel remembers a connection for as long, as TIME-WAIT.
const TCP_ENDED: Duration = Duration::from_secs(60);
/// Of a pod's attempt to reach somebody who does not answer: as long as the kernel tries.
const TCP_UNANSWERED: Duration = Duration::from_secs(130);
/// Longer than the programs keep a port for whom does not speak.
const UDP_SILENT: Duration = Duration::from_secs(300);

type Ends = (Protocol, (std::net::IpAddr, u16), (std::net::IpAddr, u16));

/// Those of `flows` that have ended, both directions.
pub(super) fn ended(flows: &[Connection]) -> Vec<Connection> {
    let is_over = |flow: &Connection| match flow.protocol {
        Protocol::Tcp if flow.masqueraded && !flow.seen_reply => flow.idle > TCP_UNANSWERED,
        Protocol::Tcp => flow.closing && flow.idle > TCP_ENDED,
        Protocol::Udp => flow.idle > UDP_SILENT,
    };
    let (over, alive): (Vec<&Connection>, Vec<&Connection>) = flows.iter().partition(|flow| is_over(flow));
    // One direction may be silent while the other is not.
    let alive: HashSet<Ends> = alive.iter().map(|flow| (flow.protocol, flow.from.0, flow.from.1)).collect();
    let other = |flow: &Connection| (flow.protocol, flow.to.1, flow.to.0);
    over.into_iter().filter(|flow| !alive.contains(&other(flow))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: Protocol, port: u16, closing: bool, idle_s: u64) -> Connection {
        let (client, frontend, backend) = ([192, 0, 2, 1], [192, 0, 2, 9], [10, 244, 1, 5]);
        Connection {
            to: ((client.into(), port), (backend.into(), 8080)),
            reply: false,
            closing,
            idle: Duration::from_secs(idle_s),
            ..Connection::untouched(protocol, (client.into(), port), (frontend.into(), 80))
        }
    }

    /// The other direction of one.
    fn answers(flow: &Connection, idle_s: u64) -> Connection {
        let inverted = |ends: ((std::net::IpAddr, u16), (std::net::IpAddr, u16))| (ends.1, ends.0);
        let (from, to) = (inverted(flow.to), inverted(flow.from));
        Connection { from, to, reply: true, idle: Duration::from_secs(idle_s), ..*flow }
    }

    #[test]
    fn what_nobody_has_answered_goes() {
        let asked = Connection { masqueraded: true, seen_reply: false, ..flow(Protocol::Tcp, 1, false, 131) };
        let both = |asked: Connection| [asked, answers(&asked, 131)];
        assert_eq!(ended(&both(asked)).len(), 2);
        assert_eq!(ended(&both(Connection { seen_reply: true, ..asked })).len(), 0);
        assert_eq!(ended(&both(Connection { idle: Duration::from_secs(9), ..asked })).len(), 0);
    }

    #[test]
    fn what_has_ended_goes_and_what_is_silent_stays() {
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let cases = [
            (flow(tcp, 1, true, 61), 61, 2),
            (flow(tcp, 2, true, 59), 61, 0),
            (flow(tcp, 3, false, 80_000), 80_000, 0),
            (flow(udp, 4, false, 301), 301, 2),
            // Somebody who sends and is not answered, and one who is told and does not ask.
            (flow(udp, 5, false, 1), 301, 0),
            (flow(udp, 6, false, 301), 1, 0),
        ];
        for (there, idle_s, expected) in cases {
            let both = [there, answers(&there, idle_s)];
            assert_eq!(ended(&both).len(), expected, "{there:?}");
        }
    }
}
