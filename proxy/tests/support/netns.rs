//! A network namespace that a test's thread moves into; it goes when it is dropped.

use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that the calling thread is in.
pub(crate) struct Netns {
    name: String,
}

static NAMES: AtomicU32 = AtomicU32::new(0);

impl Netns {
    /// Makes one and moves the calling thread into it, for as long as the thread lives.
    pub(crate) fn enter(what: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes network namespaces");
        let name = format!("swn{}{what}{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        let added = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        assert!(added.status.success(), "ip netns add: {added:?}");
        let file = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        Self { name }
    }

    /// Runs the `nft` program in it. Returns what it prints.
    pub(crate) fn nft(&self, arguments: &str) -> String {
        let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {arguments} in {}: {errors}", self.name);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}
