//! From a name to a bootable kernel: where the source comes from, which patches go on it, how it is built.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A built kernel: all that a machine needs to boot it, and all that a result needs to name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// What the user called it: `mainline`, `patched`, `patched@1`, a path.
    pub name: String,
    /// Hash of source, series, kconfig and compiler; two kernels of one key are the same kernel.
    pub key: String,
    /// What `uname -r` says in it: the host compares it with the guest's hello.
    pub release: String,
    /// Base version: "7.3.4".
    pub base: String,
    /// Slugs of the applied patches, in order.
    pub series: Vec<String>,
    /// Names of the kconfig fragments: ["base", "bench"].
    pub kconfig: Vec<String>,
    /// First line of `gcc --version`.
    pub compiler: String,
    /// Compressed image.
    pub bzimage: PathBuf,
    /// Image with symbols.
    pub vmlinux: PathBuf,
    /// The patched source tree it was built from.
    pub source_tree: PathBuf,
}
