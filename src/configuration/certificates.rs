//! Reads CA bundles, client certificates and keys: PEM text in a setting, or a file that it names.

use std::fs::File;
use std::io::Read;

use openssl::x509::X509;

use super::sources::{ConfigError, Found};
use crate::names;
use crate::secret::{hidden, shown};
use crate::tls::pem::{self, ClientIdentity, IdentityProblem};

/// The most bytes of a PEM file: many times the size of a bundle with all public CAs.
const LONGEST_PEM: u64 = 16 << 20;

/// PEM that was read from settings; `None` if no setting contains any.
pub type Pem<T> = Result<Option<T>, Vec<ConfigError>>;

/// Reads CA bundles into one.
///
/// # Errors
/// All mistakes in the bundles.
pub fn authorities<'a>(
    bundles: impl IntoIterator<Item = Result<Found<'a>, ConfigError>>,
) -> Pem<Vec<X509>> {
    let (mut read, mut mistakes) = (Vec::new(), Vec::new());
    for bundle in bundles {
        match bundle.and_then(|found| read_bundle(&found)) {
            Ok(certificates) => read.extend(certificates),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    Ok((!read.is_empty()).then_some(read))
}

fn read_bundle(found: &Found<'_>) -> Result<Vec<X509>, ConfigError> {
    if found.value.is_empty() {
        return Ok(Vec::new());
    }
    let pem = read_pem(found)?;
    pem::certificates(&pem).map_err(|problem| found.wrong(problem))
}

/// Reads a client certificate and its key.
///
/// # Errors
/// If the certificate or the key is wrong, or if only one of them is set.
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
    let problem = format!(
        "is not set, but {} is set; a client certificate needs both settings",
        given.source
    );
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

/// Reads PEM from a setting's value: the text itself, or the path of a file.
///
/// # Errors
/// If the value is neither.
pub fn read_pem(found: &Found<'_>) -> Result<String, ConfigError> {
    if let Some(text) = found.value.to_str().filter(|text| pem::is_pem(text)) {
        return Ok(pem::with_line_ends(text));
    }
    if found.declaration.variable == names::CA_PEM {
        return Err(found.wrong(format!(
            "is not PEM text; expected text that contains -----BEGIN CERTIFICATE-----. To give the \
             path of a file, set {} instead",
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
        "is {path}, {problem}; expected the path of a PEM file, or PEM text that contains \
         -----BEGIN"
    )))
}

/// A path in an error. Users sometimes paste a key instead of a path, without its BEGIN and END
/// lines. So if the setting is for a key (`may_be_key`), only a value that is certainly a path is
/// shown.
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
    fn error_shows_a_path_but_no_misplaced_key() {
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
