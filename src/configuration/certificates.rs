//! CA bundles, client certificates and keys, read from the settings that hold or name them.

use std::fs::File;
use std::io::Read;

use openssl::x509::X509;

use super::found::Found;
use super::mistakes::{ConfigError, Mistakes, Reported};
use crate::names;
use crate::secret::{hidden, shown};
use crate::tls::pem::{self, ClientIdentity, IdentityProblem};

/// The longest PEM file to read, in bytes: many times the bundle of all public CAs.
const LONGEST_PEM: u64 = 16 << 20;

/// Reads CA bundles into one; `None` if none is given.
///
/// # Errors
/// If any of them is wrong.
pub fn authorities(
    bundles: &[Found<'_>],
    mistakes: &mut Mistakes,
) -> Result<Option<Vec<X509>>, Reported> {
    let given = bundles.iter().filter(|found| !found.value.is_empty());
    let read: Vec<Result<Vec<X509>, Reported>> = given
        .map(|found| {
            let read = read_pem(found)
                .and_then(|pem| pem::certificates(&pem).map_err(|problem| found.wrong(problem)));
            mistakes.check(read)
        })
        .collect();
    let read: Result<Vec<Vec<X509>>, Reported> = read.into_iter().collect();
    let all = read?.concat();
    Ok((!all.is_empty()).then_some(all))
}

/// Reads a client certificate and its key; `None` if neither is given.
///
/// # Errors
/// If either is wrong or missing.
pub fn identity(
    certificate: &Found<'_>,
    key: &Found<'_>,
    mistakes: &mut Mistakes,
) -> Result<Option<ClientIdentity>, Reported> {
    let incomplete = match (certificate.value.is_empty(), key.value.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => Some((certificate, key)),
        (false, true) => Some((key, certificate)),
        (false, false) => None,
    };
    if let Some((absent, given)) = incomplete {
        mistakes.check(read_pem(given)).ok();
        let given = &given.source;
        let problem = format!("is not set, but {given} is; a client certificate needs both");
        return Err(mistakes.report(absent.wrong(problem)));
    }
    let [certificate_pem, key_pem] =
        [certificate, key].map(|found| mistakes.check(read_pem(found)));
    let identity = ClientIdentity::new(&certificate_pem?, &key_pem?);
    let identity = identity.map(Some).map_err(|problem| match problem {
        IdentityProblem::Certificate(problem) => certificate.wrong(problem),
        IdentityProblem::Key(problem) => key.wrong(problem),
    });
    mistakes.check(identity)
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
