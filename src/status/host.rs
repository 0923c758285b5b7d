//! Which `Host` headers are accepted.
//!
//! A website can let its own name resolve to 127.0.0.1. Then a browser lets the website read pages
//! that are served on 127.0.0.1 (DNS rebinding,
//! <https://owasp.org/www-community/attacks/DNS_Rebinding>). Such requests have the website's name
//! in `Host`. Addresses other than loopback are open to the network anyway, and scrapers reach them
//! by many names.

use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Clone)]
pub enum HostCheck {
    /// Every host is accepted.
    Off,
    /// IP addresses, `localhost` and this name are accepted. The name comes from the user's
    /// setting.
    Named(String),
}

impl HostCheck {
    /// For a listener on `address`. `name`: the host in the user's setting.
    pub fn new(address: SocketAddr, name: &str) -> HostCheck {
        match address.ip().to_canonical().is_loopback() {
            true => HostCheck::Named(name.to_owned()),
            false => HostCheck::Off,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_checks_hosts() {
        for (address, checks) in [
            ("127.0.0.1:1", true),
            ("127.3.2.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.0.0.7:1", false),
        ] {
            let check = HostCheck::new(address.parse().unwrap(), "localhost");
            assert_eq!(check.accepts("evil.example"), !checks, "{address}");
            assert!(check.accepts("localhost:9121"), "{address}");
        }
    }
}
