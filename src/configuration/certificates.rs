//! CA bundles, client certificates and keys, read from the settings that hold or name them.

use std::fs::File;
use std::io::Read;

use super::sources::{ConfigError, Found};
use crate::names;
use crate::secret::{hidden, shown};
use crate::tls::pem::{self, Authorities, ClientIdentity, IdentityProblem};

/// The longest PEM file to read, in bytes: many times the bundle of all public CAs.
const LONGEST_PEM: u64 = 16 << 20;

/// What settings hold or name; `None` if they are not set.
pub type Pem<T> = Result<Option<T>, Vec<ConfigError>>;

/// Reads CA bundles into one.
///
/// # Errors
/// Every mistake in any of them.
pub fn authorities<'a>(
    bundles: impl IntoIterator<Item = Result<Found<'a>, ConfigError>>,
) -> Pem<Authorities> {
    let (mut read, mut mistakes) = (Vec::new(), Vec::new());
    for bundle in bundles {
        match bundle.and_then(|found| read_bundle(&found)) {
            Ok(authorities) => read.extend(authorities),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if mistakes.is_empty() { Ok(read.into_iter().reduce(Authorities::and)) } else { Err(mistakes) }
}

fn read_bundle(found: &Found<'_>) -> Result<Option<Authorities>, ConfigError> {
    if found.value.is_empty() {
        return Ok(None);
    }
    let pem = read_pem(found)?;
    Authorities::from_pem(pem).map(Some).map_err(|problem| found.wrong(problem))
}

/// Reads a client certificate and its key.
///
/// # Errors
/// If either is wrong or missing.
pub fn identity(
    certificate: Result<Found<'_>, ConfigError>,
    key: Result<Found<'_>, ConfigError>,
) -> Pem<ClientIdentity> {
    let (certificate, key) = both(certificate, key)?;
    let (absent, given) = match (certificate.value.is_empty(), key.value.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => (certificate, key),
        (false, true) => (key, certificate),
        (false, false) => {
            let (certificate_pem, key_pem) = both(read_pem(&certificate), read_pem(&key))?;
            let identity = ClientIdentity::new(&certificate_pem, &key_pem);
            return identity.map(Some).map_err(|problem| match problem {
                IdentityProblem::Certificate(problem) => vec![certificate.wrong(problem)],
                IdentityProblem::Key(problem) => vec![key.wrong(problem)],
            });
        }
    };
    let problem = format!("is not set, but {} is; a client certificate needs both", given.source);
    Err(read_pem(&given).err().into_iter().chain([absent.wrong(problem)]).collect())
}

fn both<A, B>(
    first: Result<A, ConfigError>,
    second: Result<B, ConfigError>,
) -> Result<(A, B), Vec<ConfigError>> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (first, second) => Err(first.err().into_iter().chain(second.err()).collect()),
    }
}

/// Reads PEM that is given as text, or as the path of a file.
///
/// # Errors
/// If it is neither.
pub fn read_pem(found: &Found<'_>) -> Result<String, ConfigError> {
    if let Some(text) = found.value.to_str().filter(|text| pem::is_pem(text)) {
        return Ok(pem::with_line_ends(text));
    }
    if found.declaration.variable == names::CA_PEM {
        return Err(found.wrong(format!(
            "is not PEM text; expected -----BEGIN CERTIFICATE----- in it. To name a file, set {}",
            names::CA_FILE
        )));
    }
    let mut text = String::new();
    let read = File::open(found.value)
        .and_then(|file| file.take(LONGEST_PEM + 1).read_to_string(&mut text));
    let problem = match read {
        Ok(length) if length as u64 <= LONGEST_PEM => return Ok(text),
        Ok(_) => format!("a file of more than {LONGEST_PEM} bytes"),
        Err(error) => format!("a file that cannot be read ({error})"),
    };
    let path = path_shown(&found.value.to_string_lossy(), found.declaration.is_secret);
    Err(found.wrong(format!(
        "is {path}, {problem}; expected the path of a PEM file, or PEM text with -----BEGIN in it"
    )))
}

/// A path as an error may show it. Users sometimes paste a key in its place, without the lines
/// around it: base64, which has no dot and begins with `M`, as every key's DER does. Where a key
/// belongs (`may_be_key`) the error shows only what is certainly a path.
fn path_shown(path: &str, may_be_key: bool) -> String {
    match may_be_key && !path.starts_with(['/', '~', '.']) {
        true => hidden(path),
        false => shown(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_but_a_key_in_its_place_is_not() {
        for path in ["/etc/ssl/ca", "./ca.pem", "../certs/ca.pem", "~/ca"] {
            assert_eq!(path_shown(path, false), format!("'{path}'"));
            assert_eq!(path_shown(path, true), format!("'{path}'"));
        }
        for path in ["ca.pem", "certs/ca", "ca"] {
            assert_eq!(path_shown(path, false), format!("'{path}'"));
            assert!(path_shown(path, true).ends_with("not shown"), "{path}");
        }
        let key = "MC4CAQAwBQYDK2VwBCIEIE1wMfGyaXJhY0Ck/Tb+Yx5u7OAlQ0jLxBvVfLKzKx6u";
        for hidden in [key, "-----BEGIN PRIVATE KEY-----", "redis://:pw@h.example", "a/b\n."] {
            assert!(path_shown(hidden, false).ends_with("not shown"), "{hidden}");
        }
    }
}
