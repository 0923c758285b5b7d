//! Checks the `Host` header of requests to the status page.
//!
//! A website can make its own name resolve to 127.0.0.1. Then a browser lets the website read pages
//! that are served on 127.0.0.1 (DNS rebinding,
//! <https://owasp.org/www-community/attacks/DNS_Rebinding>). Such requests have the website's name
//! in their `Host` header. A status page on another address than loopback accepts every `Host`
//! header, because the network can read this page anyway.

use std::net::IpAddr;

use hyper::http::uri::Authority;

#[derive(Debug, Clone)]
pub enum HostCheck {
    /// Accepts every host.
    Off,
    /// Accepts IP addresses, `localhost`, and this name from the setting `--status-address`.
    Named(String),
}

impl HostCheck {
    /// True if the `Host` header `authority` is accepted: a host with or without a port.
    pub fn accepts(&self, authority: &str) -> bool {
        let HostCheck::Named(name) = self else { return true };
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host();
        let has_user = authority.as_str().contains('@');
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_known = ["localhost", name].iter().any(|known| host.eq_ignore_ascii_case(known));
        (is_address || is_known) && !has_user
    }
}
