//! The fields of a server's certificate that `--check` and error messages show.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::pin::Pin;
use crate::text::printable;

/// The launcher warns about a certificate that is valid for fewer days than this.
pub const SOON: i64 = 14;

/// The fields of a certificate. Control characters are replaced, because the server may be hostile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// The first day on which the certificate is valid: `YYYY-MM-DD`, UTC.
    pub valid_from: String,
    /// The last day on which the certificate is valid: `YYYY-MM-DD`, UTC.
    pub expires: String,
    /// The end of the certificate's validity, in seconds since 1970.
    pub expires_at: i64,
    /// The number of whole days until the certificate expires. Negative if the certificate has
    /// expired.
    pub days_left: i64,
    /// The DNS names and IP addresses that the certificate lists. If the certificate lists neither,
    /// this is the certificate's common name.
    pub names: Vec<String>,
    pub pin: Pin,
}

impl Certificate {
    /// Reads a certificate in DER. Returns `None` if the certificate's encoding violates RFC 5280.
    pub fn from_der(der: &[u8]) -> Option<Certificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        Some(Certificate {
            subject: printable(&certificate.subject().to_string()),
            issuer: printable(&certificate.issuer().to_string()),
            valid_from: validity.not_before.to_datetime().date().to_string(),
            expires: validity.not_after.to_datetime().date().to_string(),
            expires_at: validity.not_after.timestamp(),
            days_left: days_until(validity.not_after.timestamp()),
            names: names(&certificate),
            pin: Pin::of(certificate.public_key().raw),
        })
    }

    /// Lists the first three names in the certificate, and says how many further names the
    /// certificate has.
    pub fn names_in_short(&self) -> String {
        const MOST: usize = 3;
        let shown = self.names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
        match self.names.len().saturating_sub(MOST) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// Returns the number of whole days until `time`, which is in seconds since 1970. The number is
/// negative if `time` has passed.
pub fn days_until(time: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    (time - now).div_euclid(86_400)
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let listed = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let names: Vec<String> = listed.filter_map(name).collect();
    if !names.is_empty() {
        return names;
    }
    let common_names = certificate.subject().iter_common_name();
    let common_names = common_names.filter_map(|name| name.as_str().ok());
    common_names.map(|name| host_name(name, "a common name")).collect()
}

fn name(general: &GeneralName<'_>) -> Option<String> {
    match general {
        GeneralName::DNSName(name) => Some(host_name(name, "a DNS name")),
        GeneralName::IPAddress(bytes) => ip_address(bytes).map(|address| address.to_string()),
        _ => None,
    }
}

/// Returns the host name `name`. If the host name looks like an IP address, adds the name's kind: a
/// certificate is valid for an IP address only if the certificate lists the address as an IP
/// address (RFC 9525).
fn host_name(name: &str, kind: &str) -> String {
    let name = printable(name);
    if name.parse::<IpAddr>().is_ok() { format!("{name} ({kind})") } else { name }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_addresses_have_4_or_16_bytes() {
        assert_eq!(ip_address(&[127, 0, 0, 1]), Some([127, 0, 0, 1].into()));
        assert_eq!(ip_address(&[0; 16]), Some([0_u16; 8].into()));
        assert_eq!(ip_address(&[1, 2, 3]), None);
    }
}
