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

/// The file name of the status page's Unix socket, which is in the same folder as the tunnels'
/// sockets.
const STATUS_SOCKET: &str = "status.sock";

/// The ports and sockets of the tunnels and of the status page, which are bound but do not accept
/// connections yet.
#[derive(Debug, Default)]
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub locals: Vec<Local>,
    /// The listener of the status page. `None` if the status page is off, or if its address cannot
    /// be bound.
    pub status: Option<StatusListener>,
    /// The folder that contains the Unix sockets. The launcher removes the folder when this value
    /// is dropped.
    folder: Option<SocketFolder>,
}

/// Binds a local port or socket for each tunnel.
///
/// # Errors
/// Returns an error if a port or socket cannot be bound. Two cases are errors only under
/// `--port-taken fail`: a port that another program uses, and a plan without a Redis URL.
pub fn bind(plan: &Plan, settings: &Settings) -> Result<Bound, ConfigError> {
    if settings.port_taken == PortTaken::Fail && !plan.found_urls() {
        let problem = "is 'fail', because other programs connect to the local port, but \
                       start-stunnel would open no local port";
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

    /// Binds the address of the status page. If the address cannot be bound, only logs a warning,
    /// because COMMAND can run without the status page.
    pub fn bind_status(&mut self, settings: &Settings) {
        let Some(address) = &settings.status_address else { return };
        match self.try_bind_status(address) {
            Ok(listener) => self.status = Some(listener),
            Err(error) => warning!(
                at = "status-not-served",
                address = %address,
                error = %error,
                hint = match address {
                    StatusAddress::Unix => "let TMPDIR name a writable folder with a short path",
                    StatusAddress::Tcp(..) => "set another port, or unix, as the status address",
                },
            ),
        }
    }

    /// Returns the folder that contains the Unix sockets, if the tunnels or the status page use
    /// Unix sockets.
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

/// Returns the error for a tunnel whose port or socket cannot be bound. `index` is the tunnel's
/// index in the plan.
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
            "is unix, but no socket can be made ({error}); let TMPDIR name a writable folder with \
             a short path, or change this setting to tcp"
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
    let problem = format!("requires 127.0.0.1:{port}, which cannot be bound ({error}); {remedy}");
    settings.wrong(&options::LISTEN_PORT, problem)
}

/// Returns the local port that the user wants for the tunnel with this index in the plan. Returns 0
/// if the kernel must choose the port.
pub fn wanted_port(settings: &Settings, index: usize) -> u16 {
    match settings.listen_port {
        0 => 0,
        // If the sum is above 65535, let the kernel choose the port.
        first => u16::try_from(usize::from(first) + index).unwrap_or(0),
    }
}
