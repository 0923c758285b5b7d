//! The text of a URL, with or without its secrets.

use std::fmt;

use super::query::key_of;
use crate::secret::{MASK, Secret};

/// The text of a URL. `Display` masks user, password, fragment and most of the query.
#[derive(Clone)]
pub struct UrlText {
    exposed: Secret,
    shown: String,
}

impl UrlText {
    /// Builds the text. `place` is host, port and path, or the path of a socket.
    pub(super) fn new(
        scheme: &str,
        userinfo: Option<&str>,
        place: &str,
        query: Option<&str>,
        fragment: Option<&str>,
    ) -> UrlText {
        let text = |mask_userinfo: fn(&str) -> String, mask_query: fn(&str) -> String| {
            let userinfo = userinfo.map(|part| mask_userinfo(part) + "@").unwrap_or_default();
            let query = query.map(|part| "?".to_owned() + &mask_query(part)).unwrap_or_default();
            let fragment =
                fragment.map(|part| "#".to_owned() + &mask_query(part)).unwrap_or_default();
            format!("{scheme}://{userinfo}{place}{query}{fragment}")
        };
        let exposed = Secret::new(text(str::to_owned, str::to_owned));
        UrlText { exposed, shown: text(mask_userinfo, mask_query) }
    }

    /// The whole URL, secrets included.
    pub fn expose(&self) -> String {
        self.exposed.expose().to_owned()
    }
}

impl fmt::Display for UrlText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn mask_userinfo(userinfo: &str) -> String {
    match userinfo.split_once(':') {
        Some((user, password)) => format!("{}:{}", Secret::new(user), Secret::new(password)),
        None => Secret::new(userinfo).to_string(),
    }
}

/// Masks the values of all parameters that are not known to be harmless, because some clients
/// accept passwords in the query.
fn mask_query(query: &str) -> String {
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
    query.split('&').map(mask).collect::<Vec<_>>().join("&")
}
