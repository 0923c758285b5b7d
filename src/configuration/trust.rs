//! Reads the trust settings of a URL, including CA bundles, client certificates and keys. A setting
//! contains PEM text, or the path of a PEM file.

use std::ffi::OsStr;
use std::path::Path;

use openssl::x509::X509;

use super::options::{self, Declaration};
use super::reader::Reader;
use super::sources::{CA_SETTINGS, ConfigError, Found, Sources};
use crate::names;
use crate::redis_url::UrlTlsParameters;
use crate::secret::{hidden, shown};
use crate::tls::pem::{self, ClientIdentity};
use crate::tls::{Trust, Verify};
use crate::tunnel::SettingNames;

const CLIENT_SETTINGS: [&Declaration; 2] =
    [&options::CLIENT_CERT.declaration, &options::CLIENT_KEY.declaration];

impl Reader<'_> {
    /// Reads the CAs, the client certificate and the key that apply to all URLs. Reads each file
    /// only once, because the file may be a pipe. Reports mistakes in a file even if no URL uses
    /// the file.
    pub fn read_general_pem(&mut self) {
        self.general_ca = self.authorities(self.sources);
        self.general_identity = self.identity(self.sources);
    }

    /// Returns the trust settings for the URL in `sources.variable`. `setting_names` are the names
    /// of the options and variables that apply to the URL. `in_url` are the TLS parameters in the
    /// URL's query.
    pub fn trust(
        &mut self,
        sources: Sources<'_>,
        setting_names: &SettingNames,
        in_url: &UrlTlsParameters,
    ) -> Trust {
        let verify = match setting_names.full_by_url {
            true => Verify::Full,
            false => sources.read(&options::VERIFY),
        };
        let ca = self.authorities_for(sources, in_url);
        if verify != Verify::None
            && ca.is_none()
            && let Err(problem) = (self.system_roots)()
        {
            let setting = match sources.variable.filter(|_| setting_names.full_by_url) {
                Some(variable) => format!("ssl_cert_reqs in {variable}"),
                None => setting_names.of(names::VERIFY).to_owned(),
            };
            let variable = problem.variable.unwrap_or(&setting);
            self.report(ConfigError::new(variable, problem.problem));
        }
        let has_identity = CLIENT_SETTINGS.iter().any(|setting| sources.own(setting).is_some());
        Trust {
            verify,
            min_tls: sources.read(&options::MIN_TLS),
            ca,
            pins: sources.read(&options::PIN),
            identity: match has_identity {
                true => self.identity(sources),
                false => self.general_identity.clone(),
            },
            server_name: sources.read(&options::SERVER_NAME),
        }
    }

    /// Returns the CAs to trust for a single URL. CA settings for this URL take precedence over the
    /// CA settings for all URLs, and both take precedence over the CA file in the URL's query.
    fn authorities_for(
        &mut self,
        sources: Sources<'_>,
        in_url: &UrlTlsParameters,
    ) -> Option<Vec<X509>> {
        let is_set = CA_SETTINGS.iter().any(|setting| sources.find(setting).is_some());
        match &in_url.ca_file {
            _ if sources.own(CA_SETTINGS[0]).is_some() => self.authorities(sources),
            Some(file) if !is_set => {
                let name = format!("ssl_ca_certs in {}", sources.variable.unwrap_or_default());
                let found = Found { name, value: OsStr::new(file), setting: CA_SETTINGS[0] };
                Some(self.check(certificates(&found)).unwrap_or_default())
            }
            _ => self.general_ca.clone(),
        }
    }

    /// Returns the certificates from all configured CA bundles, or `None` if no CA bundle is
    /// configured. A bundle with a mistake counts as configured.
    fn authorities(&mut self, sources: Sources<'_>) -> Option<Vec<X509>> {
        let bundles: Vec<_> = CA_SETTINGS.iter().filter_map(|ca| find(sources, ca)).collect();
        let all = bundles.iter().filter_map(|found| self.check(certificates(found))).flatten();
        let all = all.collect();
        (!bundles.is_empty()).then_some(all)
    }

    /// Returns the client certificate with its key, or `None` if the settings are unset or wrong.
    fn identity(&mut self, sources: Sources<'_>) -> Option<ClientIdentity> {
        let found = CLIENT_SETTINGS.map(|setting| find(sources, setting));
        let pem = found.each_ref().map(|found| self.check(read_pem(found.as_ref()?)));
        let identity = match (&found, &pem) {
            ([Some(certificate), Some(key)], [Some(certificate_pem), Some(key_pem)]) => {
                pem::client_chain(certificate_pem)
                    .map_err(|problem| certificate.wrong(problem))
                    .and_then(|chain| {
                        ClientIdentity::new(chain, key_pem).map_err(|problem| key.wrong(problem))
                    })
            }
            ([Some(given), None], _) => Err(incomplete(given, CLIENT_SETTINGS[1])),
            ([None, Some(given)], _) => Err(incomplete(given, CLIENT_SETTINGS[0])),
            _ => return None,
        };
        self.check(identity)
    }
}

/// Returns the value of `setting`, or `None` if the value is unset or empty.
fn find<'a>(sources: Sources<'a>, setting: &'static Declaration) -> Option<Found<'a>> {
    sources.find(setting).filter(|found| !found.value.is_empty())
}

fn certificates(found: &Found<'_>) -> Result<Vec<X509>, ConfigError> {
    pem::certificates(&read_pem(found)?).map_err(|problem| found.wrong(problem))
}

fn incomplete(given: &Found<'_>, absent: &Declaration) -> ConfigError {
    let given = &given.name;
    let problem =
        format!("is not set, but {given} is set; a client certificate needs both settings");
    ConfigError::new(absent.variable, problem)
}

/// Returns the PEM text that a setting contains, or the PEM text in the file that the setting
/// names.
///
/// # Errors
/// Returns an error if the value is not PEM text and is not the path of a readable file.
pub fn read_pem(found: &Found<'_>) -> Result<String, ConfigError> {
    let value = found.value.to_string_lossy();
    if pem::is_pem(&value) {
        return Ok(pem::with_line_ends(&value));
    }
    if found.setting.variable == names::CA_PEM {
        return Err(found.wrong(format!(
            "is not PEM text; expected text that contains -----BEGIN CERTIFICATE-----. To give the \
             path of a file, set {ca_file} instead",
            ca_file = names::CA_FILE
        )));
    }
    pem::read_file(Path::new(found.value)).map_err(|error| {
        let may_be_key = found.setting.variable == names::CLIENT_KEY;
        found.wrong(format!(
            "is {path}, a file that cannot be read ({error}); expected the path of a PEM file, or \
             PEM text that contains -----BEGIN",
            path = path_shown(&value, may_be_key)
        ))
    })
}

/// Returns the text that an error shows for `path`. Users sometimes paste a key without its BEGIN
/// and END lines where a path is expected. So if the setting expects a key (`may_be_key`), the
/// error shows the value only if the value begins like a path.
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
