//! The executable that the container runtime calls. Everything is in the library, so that the `seaway` binary can
//! be called under this name as well.

fn main() -> std::process::ExitCode {
    seaway_cni::main()
}
