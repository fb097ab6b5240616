//! Tells the service manager how the broker is, as systemd's `sd_notify` does: a datagram to the socket
//! named by `NOTIFY_SOCKET`, a path or an abstract name that begins with `@`. Where nobody listens,
//! nothing is said: a broker runs as well without a manager.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;

/// The manager of this process, if it has one.
#[derive(Debug)]
pub(super) struct Manager(Option<UnixDatagram>);

impl Manager {
    /// The one named in the environment.
    pub(super) fn of_environment() -> Self {
        Self::at(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    fn at(name: Option<&OsStr>) -> Self {
        let socket = name
            .filter(|name| !name.is_empty())
            .map(connect)
            .transpose();
        Self(socket.unwrap_or_else(|error| {
            tracing::warn!(target: "waterwheel::broker", %error, "NOTIFY_SOCKET cannot be reached: the service manager hears nothing");
            None
        }))
    }

    /// The broker takes and serves records.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The broker ends in order.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            tracing::warn!(target: "waterwheel::broker", %error, "the service manager does not listen");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_bytes().strip_prefix(b"@") {
        None => socket.connect(name)?,
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.connect_addr(&address)?;
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => return Err(io::ErrorKind::Unsupported.into()),
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(socket: &UnixDatagram) -> String {
        let mut heard = [0; 256];
        let length = socket.recv(&mut heard).unwrap();
        String::from_utf8(heard[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_of_readiness_and_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(Some(path.as_os_str()));
        manager.ready("listening");
        assert_eq!(hear(&socket), "READY=1\nSTATUS=listening");
        manager.stopping();
        assert_eq!(hear(&socket), "STOPPING=1\nSTATUS=stopping");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_may_be_abstract() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("waterwheel-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Manager::at(Some(OsStr::new(&format!("@{name}")))).stopping();
        assert!(hear(&socket).starts_with("STOPPING=1"));
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        for name in [
            None,
            Some(OsStr::new("")),
            Some(OsStr::new("/nowhere/at/all")),
        ] {
            Manager::at(name).ready("listening");
        }
    }
}
