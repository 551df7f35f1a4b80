//! Floods are kept out of the socket's buffer. In there, all sources stand in one line: while somebody fills it, most of
//! what others send is lost before sources can take turns. So where more arrives than can be answered, the kernel is
//! told to let only a part in of what the greediest sources send: a little more than can be answered, for their turns
//! to be theirs.
//!
//! What is decided here counts answers, not time: under a load that is too high, answers are the clock.

use std::net::IpAddr;

use nix::libc;
use socket2::SockFilter;

/// The part that is let in is thought over after so many answers.
const PERIOD: usize = 512;
/// How much more is let in than is answered.
const AMPLE: f64 = 1.2;
/// How fast more is let in again.
const RELIEF: f64 = 1.25;
/// Less is never let in.
const LEAST: f64 = 1.0 / 1024.0;
/// More sources are not told apart.
pub(super) const SOURCES_MAX: usize = 8;

/// How much is let in of what the greediest send.
#[derive(Debug)]
pub(super) struct Guard {
    part: f64,
    taken: usize,
    answered: usize,
}

impl Default for Guard {
    fn default() -> Self {
        Self { part: 1.0, taken: 0, answered: 0 }
    }
}

impl Guard {
    /// So many packets were taken out of the socket.
    pub(super) fn taken(&mut self, count: usize) {
        self.taken += count;
    }

    /// So many were answered. Whether it is time to decide.
    pub(super) fn answered(&mut self, count: usize) -> bool {
        self.answered += count;
        self.answered >= PERIOD
    }

    /// The part that is to be let in from now on; `None`: everything. `behind`: more waits than should.
    pub(super) fn decide(&mut self, behind: bool) -> Option<f64> {
        let (taken, answered) = (self.taken.max(1), self.answered.max(1));
        (self.taken, self.answered) = (0, 0);
        #[expect(clippy::cast_precision_loss, reason = "packets of a period")]
        let excess = taken as f64 / answered as f64;
        self.part = if behind { self.part * (AMPLE / excess).min(1.0) } else { self.part * RELIEF };
        self.part = self.part.clamp(LEAST, 1.0);
        (self.part < 1.0).then_some(self.part)
    }
}

/// A filter that lets `part` in of what `sources` send, chosen at random, and all that others do.
pub(super) fn filter(sources: &[IpAddr], part: f64) -> Vec<SockFilter> {
    let sources = &sources[..sources.len().min(SOURCES_MAX)];
    let lengths: Vec<usize> = sources.iter().map(|source| 2 * words(*source).len() + 1).collect();
    let mut rest: usize = lengths.iter().sum();
    let mut program = Vec::with_capacity(rest + 5);
    for (source, length) in sources.iter().zip(&lengths) {
        let words = words(*source);
        for (at, (offset, word)) in words.iter().enumerate() {
            program.push(load(libc::SKF_NET_OFF, *offset));
            // To the next source.
            program.push(jump(libc::BPF_JEQ, *word, 0, length - 2 * (at + 1)));
        }
        rest -= length;
        // Behind the other sources, and the verdict on everybody else.
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, (0, 0), u32::try_from(rest + 1).unwrap_or(0)));
    }
    program.push(instruction(libc::BPF_RET, (0, 0), u32::MAX));
    program.push(load(libc::SKF_AD_OFF, libc::SKF_AD_RANDOM));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the whole range")]
    let threshold = (part * f64::from(u32::MAX)) as u32;
    program.push(jump(libc::BPF_JGT, threshold, 0, 1));
    program.push(instruction(libc::BPF_RET, (0, 0), 0));
    program.push(instruction(libc::BPF_RET, (0, 0), u32::MAX));
    program
}

/// Where in the IP header which words of a source address stand.
fn words(source: IpAddr) -> Vec<(i32, u32)> {
    match source {
        IpAddr::V4(addr) => vec![(12, addr.to_bits())],
        IpAddr::V6(addr) => {
            let bits = addr.to_bits();
            #[expect(clippy::cast_possible_truncation, reason = "word by word")]
            [8, 12, 16, 20]
                .into_iter()
                .zip([96, 64, 32, 0])
                .map(|(at, shift)| (at, (bits >> shift) as u32))
                .collect()
        }
    }
}

fn load(area: i32, offset: i32) -> SockFilter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), (area + offset).cast_unsigned())
}

fn jump(condition: u32, value: u32, met: u8, else_over: usize) -> SockFilter {
    // The longest program has 77 instructions.
    let else_over = u8::try_from(else_over).unwrap_or(u8::MAX);
    instruction(libc::BPF_JMP | condition | libc::BPF_K, (met, else_over), value)
}

fn instruction(code: u32, (met, not_met): (u8, u8), value: u32) -> SockFilter {
    // Codes have eight bits.
    SockFilter::new(u16::try_from(code).unwrap_or(0), met, not_met, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn little_more_is_let_in_than_is_answered_and_all_of_it_afterwards() {
        let mut guard = Guard::default();
        let (offered, able) = (10.0, 1.0);
        let mut part = 1.0;
        for _ in 0..12 {
            // Never more than twice of what is answered is taken.
            let taken: f64 = f64::min(offered * part, 2.0 * able) * 512.0;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1024")]
            guard.taken(taken as usize);
            assert!(guard.answered(512));
            part = guard.decide(true).unwrap_or(1.0);
        }
        assert!((1.1..1.3).contains(&(offered * part)), "{part}");
        let mut periods = 0;
        while let Some(more) = guard.decide(false) {
            assert!(more > part);
            (part, periods) = (more, periods + 1);
        }
        assert!(periods < 12);
        guard.taken(1024);
        assert!(!guard.answered(511));
        assert!(guard.answered(1));
        assert!(guard.decide(true).is_some());
    }

    /// How many of a hundred packets arrive from each.
    fn arrived(server: &UdpSocket, clients: &[UdpSocket]) -> Vec<usize> {
        let mut buffer = [0; 16];
        let mut count = |client: &UdpSocket| {
            for _ in 0..100 {
                client.send_to(&[1], server.local_addr().unwrap()).unwrap();
            }
            (0..101).take_while(|_| server.recv(&mut buffer).is_ok()).count()
        };
        clients.iter().map(&mut count).collect()
    }

    #[test]
    fn the_kernel_takes_the_filter_and_means_the_same() {
        for (server, from) in
            [("127.0.0.1:0", ["127.0.0.2:0", "127.0.0.3:0"]), ("[::1]:0", ["[::1]:0", "[::1]:0"])]
        {
            let server = UdpSocket::bind(server).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let clients = from.map(|from| UdpSocket::bind(from).unwrap());
            let sources = clients.each_ref().map(|client| client.local_addr().unwrap().ip());
            let other = if sources[0].is_ipv4() { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
            let attach = |sources: &[IpAddr], part| {
                socket2::SockRef::from(&server).attach_filter(&filter(sources, part)).unwrap();
            };
            assert_eq!(arrived(&server, &clients), [100, 100]);
            attach(&[other, other], 0.0);
            assert_eq!(arrived(&server, &clients), [100, 100]);
            attach(&[other, sources[0]], 0.0);
            let second = if sources[0] == sources[1] { 0 } else { 100 };
            assert_eq!(arrived(&server, &clients), [0, second]);
            attach(&[sources[0], other], 0.5);
            assert!((20..80).contains(&arrived(&server, &clients)[0]));
            attach(&[sources[0]; SOURCES_MAX + 1], 1.0);
            assert_eq!(arrived(&server, &clients), [100, 100]);
        }
    }
}
