//! Contains the names of settings, so that low-level modules can mention the names in messages.
//! [`crate::configuration`] declares the settings.

pub const CA_FILE: &str = "STUNNEL_CA_FILE";
pub const CA_PEM: &str = "STUNNEL_CA_PEM";
pub const CLIENT_CERT: &str = "STUNNEL_CLIENT_CERT";
pub const CLIENT_KEY: &str = "STUNNEL_CLIENT_KEY";
pub const ENABLED: &str = "STUNNEL_ENABLED";
pub const MAX_CONNECTIONS: &str = "STUNNEL_MAX_CONNECTIONS";
pub const MIN_TLS: &str = "STUNNEL_MIN_TLS";
pub const PIN: &str = "STUNNEL_PIN";
pub const PIN_OPTION: &str = "--pin";
pub const PORT_OFFSET: &str = "STUNNEL_PORT_OFFSET";
pub const SERVER_NAME: &str = "STUNNEL_SERVER_NAME";
pub const URLS: &str = "REDIS_STUNNEL_URLS";
pub const VERIFY: &str = "STUNNEL_VERIFY";

/// The message that the user gets if no variable holds a Redis URL.
pub const NO_URL: &str = "none of the variables REDIS_URL, HEROKU_REDIS_* and REDIS_ENDPOINT_*_URL \
                          holds a Redis URL. Set REDIS_URL, or list your variables in \
                          REDIS_STUNNEL_URLS";
