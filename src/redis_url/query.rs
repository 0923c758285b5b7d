//! Reads and removes the TLS parameters in the query of a Redis URL.

use super::RedisUrl;

/// The TLS parameters that redis-py, Celery and Kombu define for a URL's query:
/// <https://redis.readthedocs.io/en/stable/connections.html>.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UrlTlsParameters {
    /// The meaning of `ssl_cert_reqs`: true if the client must verify the server's certificate.
    pub verify: Option<bool>,
    /// The value of `ssl_ca_certs`, which is the path of the file with the CAs to trust.
    pub ca_file: Option<String>,
}

impl RedisUrl {
    /// Returns the TLS parameters in the URL's query.
    ///
    /// # Errors
    /// Returns an error if `ssl_ca_certs` is empty, if `ssl_cert_reqs` has an unknown value, or if
    /// one of the two parameters has two different values. Other parameters are ignored.
    pub fn tls_parameters(&self) -> Result<UrlTlsParameters, &'static str> {
        let query = self.query.expose().strip_prefix('?').unwrap_or_default();
        let mut asked = UrlTlsParameters::default();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.to_ascii_lowercase().as_str() {
                "ssl_cert_reqs" => note(&mut asked.verify, must_verify(&value)?)?,
                // An empty file name is an error, because it probably comes from an unset variable
                // in a template, and must not make the launcher trust the system's CAs.
                "ssl_ca_certs" if value.is_empty() => {
                    return Err("has an ssl_ca_certs without a file name");
                }
                "ssl_ca_certs" => note(&mut asked.ca_file, value.into_owned())?,
                _ => {}
            }
        }
        Ok(asked)
    }
}

/// Returns true if the value `value` of `ssl_cert_reqs` makes a client verify the server's
/// certificate.
fn must_verify(value: &str) -> Result<bool, &'static str> {
    let value = value.to_ascii_lowercase();
    match value.strip_prefix("cert_").unwrap_or(&value) {
        // For a TLS client, Python's ssl.CERT_OPTIONAL means the same as ssl.CERT_REQUIRED.
        "required" | "optional" => Ok(true),
        "none" => Ok(false),
        _ => Err("has an ssl_cert_reqs with a value other than required, optional and none"),
    }
}

/// Stores the value of a query parameter in `known`. If `known` contains a different value, returns
/// an error, because some clients would use the first value, and other clients the second value.
fn note<T: PartialEq>(known: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match known.replace(value) {
        Some(earlier) if Some(&earlier) != known.as_ref() => {
            Err("has ssl_cert_reqs or ssl_ca_certs twice, with different values")
        }
        _ => Ok(()),
    }
}

/// Returns the name of a query parameter, decoded and in lower case.
pub fn key_of(parameter: &str) -> String {
    let pair = url::form_urlencoded::parse(parameter.as_bytes()).next();
    pair.map_or_else(String::new, |(key, _)| key.to_ascii_lowercase())
}

/// Removes the TLS parameters from `query`, which begins with `?` or is empty.
pub fn without_tls_parameters(query: &str) -> String {
    let Some(query) = query.strip_prefix('?') else { return String::new() };
    let kept: Vec<&str> = query.split('&').filter(|part| !is_tls_parameter(part)).collect();
    if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) }
}

/// Returns true if a client would reject `parameter` in a plaintext URL, or if `parameter` would
/// make a client speak TLS. Such parameters belong to redis-py, Celery and Kombu (`ssl_…`), ioredis
/// (`tls`), Predis (`ssl[…]`), go-redis (`skip_verify`) and Lettuce (`verifyPeer`).
fn is_tls_parameter(parameter: &str) -> bool {
    const EXACT: [&str; 4] = ["ssl", "tls", "skip_verify", "verifypeer"];
    const PREFIXES: [&str; 4] = ["ssl_", "tls_", "ssl[", "tls["];
    let key = key_of(parameter);
    EXACT.contains(&key.as_str()) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}
