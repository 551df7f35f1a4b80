//! A private place in the kernel for a test: a bpffs directory and a cgroup of its own, removed when it is dropped.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A bpffs directory and a cgroup.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) bpffs: PathBuf,
    pub(crate) cgroup: PathBuf,
}

static PLACES: AtomicU32 = AtomicU32::new(0);

impl Place {
    /// A new place. Fails with one clear line where root is missing.
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it loads eBPF programs");
        let name =
            format!("seaway-proxy-test-{}-{}", std::process::id(), PLACES.fetch_add(1, Ordering::Relaxed));
        let cgroup = seaway_ebpf_loader::cgroup2_mount().unwrap().join(&name);
        std::fs::create_dir_all(&cgroup).unwrap();
        Self { bpffs: PathBuf::from("/sys/fs/bpf").join(name), cgroup }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        seaway_ebpf_loader::remove_all(&self.bpffs).unwrap();
        // Processes of the test have been waited for; the kernel takes a moment to see that they are gone.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::fs::remove_dir(&self.cgroup).is_err() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
