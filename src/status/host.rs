//! Checks the `Host` header of requests to the status page.
//!
//! A website can make its own name resolve to 127.0.0.1, so that a visitor's browser lets the
//! website read pages of local servers, such as the status page (DNS rebinding,
//! <https://owasp.org/www-community/attacks/DNS_Rebinding>). The requests of such a browser have
//! the website's name in their `Host` header. If the status page listens on an address other than
//! loopback, the server accepts every `Host` header, because other machines can read this page
//! anyway.

use std::net::IpAddr;

use hyper::http::uri::Authority;

#[derive(Debug, Clone)]
pub enum HostCheck {
    /// Accepts every `Host` header.
    Off,
    /// Accepts a `Host` header that contains an IP address, `localhost`, or this name, which is the
    /// host in `--status-address`.
    Named(String),
}

impl HostCheck {
    /// True if the server accepts a request with the `Host` header `authority`: a host, with or
    /// without a port.
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
