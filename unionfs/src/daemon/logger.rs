//! The log: standard error in the foreground, the system log in the background.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where syslogd or journald listen. Source: syslog(3), systemd-journald.service(8).
const SYSLOG: &str = "/dev/log";
/// LOG_DAEMON, shifted. Source: sys/syslog.h.
const FACILITY: u8 = 3 << 3;

static LOGGER: Logger = Logger {
    to_syslog: AtomicBool::new(false),
    syslog: OnceLock::new(),
};

struct Logger {
    to_syslog: AtomicBool,
    /// `None` when nobody listens.
    syslog: OnceLock<Option<UnixDatagram>>,
}

/// Starts the log on standard error. Panics are logged, too.
pub fn init(level: LevelFilter) {
    // Fails only if called twice; the first logger stays.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

/// Turns the log to the system log, warnings and errors only.
pub fn use_syslog() {
    log::set_max_level(LevelFilter::Warn);
    LOGGER.to_syslog.store(true, Ordering::Relaxed);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if self.to_syslog.load(Ordering::Relaxed) {
            if let Some(socket) = self.syslog.get_or_init(connect) {
                // A full or dead log must not hold up the mount.
                let _ = socket.send(syslog_line(record).as_bytes());
            }
        } else {
            eprintln!("uaufs: {}", stderr_line(record));
        }
    }

    fn flush(&self) {}
}

/// A socket to the system log that never blocks.
fn connect() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(SYSLOG).ok()?;
    Some(socket)
}

/// One line for standard error.
fn stderr_line(record: &Record<'_>) -> String {
    match record.level() {
        Level::Info => record.args().to_string(),
        Level::Warn => format!("warning: {}", record.args()),
        Level::Error => format!("error: {}", record.args()),
        Level::Debug | Level::Trace => format!("debug: {}", record.args()),
    }
}

/// One message in the format of syslog(3).
fn syslog_line(record: &Record<'_>) -> String {
    let severity = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut line = format!("<{}>uaufs[{}]: ", FACILITY | severity, std::process::id());
    // Writing to a string cannot fail.
    let _ = write!(line, "{}", record.args());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_level() {
        let record = Record::builder()
            .level(Level::Warn)
            .args(format_args!("x"))
            .build();
        assert_eq!(stderr_line(&record), "warning: x");
        assert!(syslog_line(&record).starts_with("<28>uaufs["));
    }
}
