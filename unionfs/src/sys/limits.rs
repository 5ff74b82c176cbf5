//! What the process takes of the machine: open files and memory.
#![allow(unsafe_code)]

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: nodes in use and deep trees hold descriptors.
pub fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::debug!("RLIMIT_NOFILE stays as it is: {error}");
    }
}

/// Gives memory back to the system that was freed and is kept for later, malloc_trim(3). Takes
/// milliseconds for each 100 MB. Does nothing where the C library has no such call.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments that could be wrong; it is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}
