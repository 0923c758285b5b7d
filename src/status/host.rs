//! Which `Host` headers are accepted.
//!
//! A website can let its own name resolve to 127.0.0.1. Then a browser lets the website read pages
//! that are served on 127.0.0.1 (DNS rebinding,
//! <https://owasp.org/www-community/attacks/DNS_Rebinding>). Such requests have the website's name
//! in `Host`. Addresses other than loopback are open to the network anyway, and scrapers reach them
//! by many names.

use std::net::IpAddr;

#[derive(Debug, Clone)]
pub enum HostCheck {
    /// Every host is accepted.
    Off,
    /// IP addresses, `localhost` and this name are accepted. The name comes from the user's
    /// setting.
    Named(String),
}

impl HostCheck {
    /// True if a request to `authority`, a host with or without a port, is accepted.
    pub fn accepts(&self, authority: &str) -> bool {
        let HostCheck::Named(name) = self else { return true };
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        bracketed.unwrap_or(host).parse::<IpAddr>().is_ok()
            || host.eq_ignore_ascii_case("localhost")
            || host.eq_ignore_ascii_case(name)
    }
}
