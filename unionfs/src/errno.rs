//! The error type of the core: one errno, two bytes, `Copy`, no allocation.
//!
//! Everything that a system call can answer and everything the union decides by itself is an
//! [`Errno`]. Only mounting (which happens once, and whose reader is a person) uses
//! [`crate::setup::SetupError`].

pub use rustix::io::Errno;

/// The result of every operation of the core.
pub type Result<T> = core::result::Result<T, Errno>;

/// Tries what cannot be taken back a second time if it fails: memory, or a descriptor, may have been
/// wanting for a moment only.
pub fn twice<T>(f: impl Fn() -> Result<T>) -> Result<T> {
    f().or_else(|_| f())
}

/// The symbolic name of an errno (`"EBUSY"`), as error messages show it in brackets.
///
/// Source: errno(3).
pub fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::NXIO => "ENXIO",
        Errno::BADF => "EBADF",
        Errno::AGAIN => "EAGAIN",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::FAULT => "EFAULT",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::XDEV => "EXDEV",
        Errno::NODEV => "ENODEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::NFILE => "ENFILE",
        Errno::MFILE => "EMFILE",
        Errno::NOTTY => "ENOTTY",
        Errno::TXTBSY => "ETXTBSY",
        Errno::FBIG => "EFBIG",
        Errno::NOSPC => "ENOSPC",
        Errno::SPIPE => "ESPIPE",
        Errno::ROFS => "EROFS",
        Errno::MLINK => "EMLINK",
        Errno::PIPE => "EPIPE",
        Errno::DOM => "EDOM",
        Errno::RANGE => "ERANGE",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::NOSYS => "ENOSYS",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::LOOP => "ELOOP",
        Errno::NODATA => "ENODATA",
        Errno::OVERFLOW => "EOVERFLOW",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::STALE => "ESTALE",
        Errno::DQUOT => "EDQUOT",
        Errno::BADMSG => "EBADMSG",
        Errno::MSGSIZE => "EMSGSIZE",
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::NOTCONN => "ENOTCONN",
        Errno::CONNABORTED => "ECONNABORTED",
        _ => "E?",
    }
}
