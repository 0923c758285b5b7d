//! A server's certificate, as far as a user wants to know it.

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::error::ErrorStack;
use openssl::x509::{X509, X509NameRef};

use super::pin::Pin;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// The first day on which it is valid, `YYYY-MM-DD`, UTC.
    pub valid_from: String,
    /// The last day on which it is valid, `YYYY-MM-DD`, UTC.
    pub expires: String,
    /// Whole days until then; negative when it has expired.
    pub days_left: i32,
    /// The DNS names and IP addresses that it is for; its common name when it lists none.
    pub names: Vec<String>,
    pub pin: Pin,
}

impl Certificate {
    /// Reads the DER of a certificate.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_der(der: &[u8]) -> Result<Certificate, ErrorStack> {
        let certificate = X509::from_der(der)?;
        let left = Asn1Time::days_from_now(0)?.diff(certificate.not_after())?;
        Ok(Certificate {
            subject: in_one_line(certificate.subject_name()),
            issuer: in_one_line(certificate.issuer_name()),
            valid_from: day(certificate.not_before()),
            expires: day(certificate.not_after()),
            days_left: if left.days == 0 && left.secs < 0 { -1 } else { left.days },
            names: names(&certificate),
            pin: Pin::of(&certificate.public_key()?.public_key_to_der()?),
        })
    }

    /// The names in one line, shortened when they are many.
    pub fn names_in_short(&self) -> String {
        const MOST: usize = 3;
        let shown = self.names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
        match self.names.len().saturating_sub(MOST) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// `CN=h, O=x`. What a server says of itself is not trusted to be printable.
fn in_one_line(name: &X509NameRef) -> String {
    let parts = name.entries().map(|entry| {
        let key = entry.object().nid().short_name().unwrap_or("?");
        let value = entry.data().to_string().unwrap_or_else(|_| "?".to_owned());
        format!("{key}={}", printable(&value))
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn names(certificate: &X509) -> Vec<String> {
    let listed = certificate.subject_alt_names().into_iter().flatten().filter_map(|name| {
        let dns = name.dnsname().map(printable);
        dns.or_else(|| name.ipaddress().and_then(ip_address))
    });
    let names: Vec<String> = listed.collect();
    if !names.is_empty() {
        return names;
    }
    let common_names = certificate.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME);
    common_names
        .filter_map(|entry| entry.data().to_string().ok())
        .map(|name| printable(&name))
        .collect()
}

fn ip_address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        _ => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_string())
}

/// OpenSSL prints `Nov  2 08:00:00 2026 GMT`.
fn day(time: &Asn1TimeRef) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = time.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [month, day, _, year, ..] => match MONTHS.iter().position(|name| *name == month) {
            Some(index) => format!("{year}-{:02}-{day:0>2}", index + 1),
            None => text,
        },
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_iso_8601_has_them() {
        assert_eq!(day(&Asn1Time::from_unix(0).unwrap()), "1970-01-01");
        assert_eq!(day(&Asn1Time::from_unix(1_793_577_600).unwrap()), "2026-11-02");
    }

    #[test]
    fn addresses_are_readable() {
        assert_eq!(ip_address(&[127, 0, 0, 1]), Some("127.0.0.1".to_owned()));
        assert_eq!(ip_address(&[0; 16]), Some("::".to_owned()));
        assert_eq!(ip_address(&[1, 2, 3]), None);
    }
}
