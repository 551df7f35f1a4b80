//! The eBPF data plane: socket hooks for traffic that starts on this node, tcx for what arrives from outside.
