//! Binds a local port or socket for each tunnel, before COMMAND starts.

use std::io;
use std::path::Path;

use crate::configuration::Plan;
use crate::configuration::{ConfigError, Settings, options};
use crate::logging::warning;
use crate::redis_url::Local;
use crate::status::{self, StatusAddress};
use crate::tunnel::failure::is_out_of_descriptors;
use crate::tunnel::{Listen, Listener, PortTaken, SocketFolder};

/// The name of the status page's socket, in the same folder as the tunnels' sockets.
const STATUS_SOCKET: &str = "status.sock";

/// A local port or socket for each tunnel of a plan, bound and listening, but not yet served.
#[derive(Debug, Default)]
pub struct Bound {
    pub listeners: Vec<Listener>,
    pub locals: Vec<Local>,
    /// The listener of the status page, if it is on.
    pub status: Option<status::StatusListener>,
    /// The folder of the Unix sockets, removed on drop.
    folder: Option<SocketFolder>,
}

/// Binds a local port or socket for each tunnel.
///
/// # Errors
/// If a port or socket cannot be bound. A taken port is no error, unless the user wants
/// `--port-taken fail`. With `--port-taken fail`, a plan without a Redis URL is an error, too.
pub fn bind(plan: &Plan, settings: &Settings) -> Result<Bound, ConfigError> {
    let mut bound = Bound::default();
    if settings.port_taken == PortTaken::Fail && !plan.found_urls() {
        return Err(no_url(settings));
    }
    if settings.listen == Listen::Unix && !plan.routes.is_empty() {
        let made = SocketFolder::make();
        bound.folder = Some(made.map_err(|error| no_socket(plan, settings, &error))?);
    }
    for index in 0..plan.routes.len() {
        let (listener, local) = match &bound.folder {
            Some(folder) => {
                let (listener, path) =
                    folder.bind(index).map_err(|error| no_socket(plan, settings, &error))?;
                (listener, Local::Socket(path))
            }
            None => {
                let wanted = wanted_port(settings, index);
                if wanted == 0
                    && settings.listen_port != 0
                    && settings.port_taken == PortTaken::Fail
                {
                    return Err(ports_used_up(settings));
                }
                let (listener, port) = Listener::bind(wanted, settings.port_taken)
                    .map_err(|error| no_port(plan, settings, wanted, &error))?;
                (listener, Local::Port(port))
            }
        };
        bound.listeners.push(listener);
        bound.locals.push(local);
    }
    Ok(bound)
}

impl Bound {
    /// Binds the address of the status page. If that fails, warns: COMMAND can run without the
    /// page.
    pub fn bind_status(&mut self, settings: &Settings) {
        let Some(address) = &settings.status.address else { return };
        match self.try_bind_status(address) {
            Ok(listener) => self.status = Some(listener),
            Err(error) => warning!(
                at = "status-not-served",
                address = %address,
                error = %error,
                hint = format!(
                    "set {} to another port, or to unix",
                    options::STATUS_ADDRESS.declaration.variable
                ),
            ),
        }
    }

    /// The folder of the Unix sockets, if there are any.
    pub fn socket_folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(SocketFolder::path)
    }

    fn try_bind_status(&mut self, address: &StatusAddress) -> io::Result<status::StatusListener> {
        if *address != StatusAddress::Unix {
            return address.bind();
        }
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => SocketFolder::make()?,
        };
        let (listener, path) = self.folder.insert(folder).bind_named(STATUS_SOCKET)?;
        Ok(status::StatusListener::Unix(listener.into(), path))
    }
}

/// `--port-taken fail` says that other programs rely on the port, but there is no URL to tunnel.
fn no_url(settings: &Settings) -> ConfigError {
    ConfigError::new(
        settings.names.of(options::PORT_TAKEN.declaration.variable),
        format!(
            "is fail, for a port that other programs rely on. But nothing would listen on that \
             port: none of {} holds a Redis URL. Set REDIS_URL, or list your variables in {}",
            options::DISCOVERED,
            options::URLS.declaration.variable
        ),
    )
}

/// There are fewer ports from `--listen-port` to 65535 than tunnels, under `--port-taken fail`.
fn ports_used_up(settings: &Settings) -> ConfigError {
    let first = settings.listen_port;
    let taken = settings.names.of(options::PORT_TAKEN.declaration.variable);
    let remedy = format!("set a lower port, or set {taken}=move");
    ConfigError::new(
        settings.names.of(options::LISTEN_PORT.declaration.variable),
        format!(
            "is {first}, but there are fewer ports from {first} to 65535 than tunnels; {remedy}"
        ),
    )
}

/// The limit on open files does not allow a listener for each tunnel.
fn too_few_descriptors(plan: &Plan, error: &io::Error) -> ConfigError {
    let problem = format!(
        "need {} tunnels, more than the limit on open files allows ({error}); raise the limit on \
         open files (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker)",
        plan.routes.len()
    );
    ConfigError::new("the Redis URLs", problem)
}

fn no_port(plan: &Plan, settings: &Settings, wanted: u16, error: &io::Error) -> ConfigError {
    if is_out_of_descriptors(error) {
        return too_few_descriptors(plan, error);
    }
    let taken = settings.names.of(options::PORT_TAKEN.declaration.variable);
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop the program that uses this port, set another port, or set {taken}=move")
        }
        _ => "set a port from 1024 to 65535, or set 0".to_owned(),
    };
    let problem = format!("leads to 127.0.0.1:{wanted}, which cannot be bound ({error})");
    let port = settings.names.of(options::LISTEN_PORT.declaration.variable);
    ConfigError::new(port, format!("{problem}; {remedy}"))
}

fn no_socket(plan: &Plan, settings: &Settings, error: &io::Error) -> ConfigError {
    if is_out_of_descriptors(error) {
        return too_few_descriptors(plan, error);
    }
    let listen = settings.names.of(options::LISTEN.declaration.variable);
    let remedy =
        format!("set TMPDIR to a writable folder with a short path, or set {listen} to tcp");
    ConfigError::new(listen, format!("is unix, but no socket can be made ({error}); {remedy}"))
}

/// The local port for the tunnel with this index; 0: the kernel chooses.
pub fn wanted_port(settings: &Settings, index: usize) -> u16 {
    match settings.listen_port {
        0 => 0,
        // Beyond port 65535 the kernel chooses.
        first => u16::try_from(usize::from(first) + index).unwrap_or(0),
    }
}
