//! Binds a local port or socket for each tunnel, before COMMAND starts.

use std::io;
use std::path::Path;

use crate::configuration::{ConfigError, Plan, Settings, options};
use crate::logging::warning;
use crate::names;
use crate::redis_url::Local;
use crate::status::{StatusAddress, StatusListener};
use crate::tunnel::failure::is_out_of_descriptors;
use crate::tunnel::{Listen, Listener, PortTaken, SocketFolder};

/// The name of the status page's Unix socket in the folder of the tunnels' sockets.
const STATUS_SOCKET: &str = "status.sock";

/// The bound ports and sockets of the tunnels and of the status page, before they
/// accept connections.
#[derive(Debug, Default)]
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub locals: Vec<Local>,
    /// `None`: the status page is off, or its address cannot be bound.
    pub status: Option<StatusListener>,
    /// The folder of the Unix sockets. Dropping the value removes the folder.
    folder: Option<SocketFolder>,
}

/// Binds a local port or socket for each tunnel.
///
/// # Errors
/// If a port or socket cannot be bound. A taken port is an error only under `--port-taken fail`. A
/// plan without a Redis URL is also an error only under `--port-taken fail`.
pub fn bind(plan: &Plan, settings: &Settings) -> Result<Bound, ConfigError> {
    if settings.port_taken == PortTaken::Fail && !plan.found_urls() {
        let problem = "is fail, so other programs may rely on a local port, but start-stunnel \
                       would open no local port";
        let problem = format!("{problem}: {}", names::NO_URL);
        return Err(settings.wrong(&options::PORT_TAKEN, problem));
    }
    let mut bound = Bound::default();
    match bound.bind_all(plan, settings) {
        Ok(()) => Ok(bound),
        Err(error) => Err(not_bound(plan, settings, bound.listeners.len(), &error)),
    }
}

impl Bound {
    fn bind_all(&mut self, plan: &Plan, settings: &Settings) -> io::Result<()> {
        if settings.listen == Listen::Unix && !plan.routes.is_empty() {
            self.folder = Some(SocketFolder::make()?);
        }
        for index in 0..plan.routes.len() {
            let (listener, local) = match &self.folder {
                Some(folder) => {
                    let (listener, path) = folder.bind(index)?;
                    (listener, Local::Socket(path))
                }
                None => {
                    let port = wanted_port(settings, index);
                    if port == 0
                        && settings.listen_port != 0
                        && settings.port_taken == PortTaken::Fail
                    {
                        return Err(io::ErrorKind::AddrNotAvailable.into());
                    }
                    let (listener, port) = Listener::bind(port, settings.port_taken)?;
                    (listener, Local::Port(port))
                }
            };
            self.listeners.push(listener);
            self.locals.push(local);
        }
        Ok(())
    }

    /// Binds the address of the status page. An error causes only a warning, because COMMAND can
    /// run without the status page.
    pub fn bind_status(&mut self, settings: &Settings) {
        let Some(address) = &settings.status_address else { return };
        match self.try_bind_status(address) {
            Ok(listener) => self.status = Some(listener),
            Err(error) => warning!(
                at = "status-not-served",
                address = %address,
                error = %error,
                hint = format!(
                    "set {address} to another port, or to unix",
                    address = options::STATUS_ADDRESS.declaration.variable
                ),
            ),
        }
    }

    /// The folder of the Unix sockets, if there are any.
    pub fn socket_folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(SocketFolder::path)
    }

    fn try_bind_status(&mut self, address: &StatusAddress) -> io::Result<StatusListener> {
        if let StatusAddress::Tcp(host, port) = address {
            return StatusListener::bind(host, *port);
        }
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => SocketFolder::make()?,
        };
        let (socket, path) = self.folder.insert(folder).bind_named(STATUS_SOCKET)?;
        Ok(StatusListener::unix(socket, &path))
    }
}

/// The error if the port or socket of the tunnel with this index cannot be bound.
fn not_bound(plan: &Plan, settings: &Settings, index: usize, error: &io::Error) -> ConfigError {
    if is_out_of_descriptors(error) {
        let problem = format!(
            "need {tunnels} tunnels, more than the limit on open files allows ({error}); raise the \
             limit on open files (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker)",
            tunnels = plan.routes.len()
        );
        return ConfigError::new("the Redis URLs", problem);
    }
    if settings.listen == Listen::Unix {
        let problem = format!(
            "is unix, but no socket can be made ({error}); set TMPDIR to a writable folder with a \
             short path, or set tcp"
        );
        return settings.wrong(&options::LISTEN, problem);
    }
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "stop the program that uses this port, set another port, or set {port_taken}=move",
            port_taken = settings.name_of(&options::PORT_TAKEN)
        ),
        _ => "set a port from 1024 to 65535, or set 0".to_owned(),
    };
    let port = usize::from(settings.listen_port) + index;
    let problem = format!("leads to 127.0.0.1:{port}, which cannot be bound ({error}); {remedy}");
    settings.wrong(&options::LISTEN_PORT, problem)
}

/// The local port that the user wants for the tunnel with this index; 0: the kernel chooses.
pub fn wanted_port(settings: &Settings, index: usize) -> u16 {
    match settings.listen_port {
        0 => 0,
        // After port 65535, the kernel chooses.
        first => u16::try_from(usize::from(first) + index).unwrap_or(0),
    }
}
