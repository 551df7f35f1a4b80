//! The object that `cargo xtask ebpf` builds. It is for little-endian machines; big-endian ones need their own.

/// The checked-in object.
#[cfg(target_endian = "little")]
pub(crate) static EMBEDDED: &[u8] = aya::include_bytes_aligned!("../seaway.bpf.o");

/// Big-endian machines: nothing is built for them yet; loading fails with a parse error.
#[cfg(target_endian = "big")]
pub(crate) static EMBEDDED: &[u8] = &[];
