//! The text of a URL, with or without its secrets.

use std::fmt;

use super::query::key_of;
use crate::secret::{MASK, Secret};

/// The parts of a URL's text. `Display` masks user, password and most of the query.
#[derive(Clone)]
pub struct UrlText {
    pub(super) scheme: &'static str,
    pub(super) userinfo: Option<Secret>,
    /// Host, port and path, or the path of a socket.
    pub(super) place: String,
    pub(super) query: Option<Secret>,
    pub(super) fragment: Option<Secret>,
}

impl UrlText {
    /// The whole URL, secrets included.
    pub fn expose(&self) -> String {
        self.assemble(Secret::expose, Secret::expose)
    }

    fn assemble<'a, S: fmt::Display>(
        &'a self,
        userinfo: impl Fn(&'a Secret) -> S,
        query: impl Fn(&'a Secret) -> S,
    ) -> String {
        let mut url = format!("{}://", self.scheme);
        if let Some(part) = &self.userinfo {
            url += &format!("{}@", userinfo(part));
        }
        url += &self.place;
        if let Some(part) = &self.query {
            url += &format!("?{}", query(part));
        }
        if let Some(part) = &self.fragment {
            url += &format!("#{}", query(part));
        }
        url
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.assemble(mask_userinfo, mask_query))
    }
}

fn mask_userinfo(userinfo: &Secret) -> String {
    match userinfo.expose().split_once(':') {
        Some((user, password)) => format!("{}:{}", Secret::new(user), Secret::new(password)),
        None => userinfo.to_string(),
    }
}

/// Masks all values except those of harmless parameters: some clients accept passwords in the
/// query.
fn mask_query(query: &Secret) -> String {
    const HARMLESS: [&str; 8] = [
        "db",
        "database",
        "protocol",
        "timeout",
        "socket_timeout",
        "connect_timeout",
        "max_connections",
        "ssl_cert_reqs",
    ];
    let mask = |part: &str| match part.split_once('=') {
        Some((key, _)) if !HARMLESS.contains(&key_of(part).as_str()) => format!("{key}={MASK}"),
        Some(_) => part.to_owned(),
        None => Secret::new(part).to_string(),
    };
    query.expose().split('&').map(mask).collect::<Vec<_>>().join("&")
}
