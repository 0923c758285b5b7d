//! Advises the user of `--check` how to authenticate the server.

use super::report::Subject;
use crate::configuration::options::{self, Declaration};
use crate::tls::{Certificate, Flaw, SOON, Verify};
use crate::tunnel::hints;

/// The levels of `--verify` at which the server passes verification.
#[derive(Clone, Copy)]
pub struct Passes {
    pub ca: bool,
    pub full: bool,
    /// The flaw for which the server's certificate fails verification at level `ca`, or else at
    /// level `full`.
    pub flaw: Option<Flaw>,
}

pub fn advice(subject: &Subject, certificate: &Certificate, passes: Passes) -> Vec<String> {
    let trust = &subject.tunnel.route.trust;
    let set_pin = || subject.to_set(&options::PIN.declaration, &certificate.pin.to_string());
    let set_verify = |level: Verify| subject.to_set(&options::VERIFY.declaration, level.word());
    let advise = |text: &str, settings: Vec<String>| format!("{text}\n{}", settings.join("\n"));
    let passes_demanded = match trust.verify {
        Verify::None => true,
        Verify::Ca => passes.ca,
        Verify::Full => passes.full,
    };
    let mut all = Vec::new();
    if !trust.authenticates() {
        // The level `ca` authenticates the server only if the user has set a CA. Otherwise any
        // server with a certificate from a system CA passes, because the level `ca` does not check
        // the host name.
        let own_ca = trust.ca.is_some() && passes.ca;
        let level = if passes.full { Some(Verify::Full) } else { own_ca.then_some(Verify::Ca) };
        let text = "the server is not authenticated. To authenticate the server, set";
        all.push(advise(text, level.map_or_else(set_pin, set_verify)));
    } else if !trust.pin_holds(&certificate.pin) {
        let text = "the server's key differs from the pin. If the pin was copied wrongly, or the \
                    provider confirms a new key, set";
        all.push(advise(text, set_pin()));
    } else if !passes_demanded && passes.ca && passes.flaw == Some(Flaw::Name) {
        all.push(hints::certificate(Flaw::Name, &subject.tunnel));
    } else if !passes_demanded && trust.pins.is_empty() {
        let settings = [set_pin(), set_verify(Verify::None)].concat();
        all.push(advise(&unverified(subject, passes.flaw), settings));
    } else if !passes_demanded {
        // The pin alone is secure: only the right server has the pinned key.
        let text = "the server has the pinned key, but its certificate fails verification. To \
                    check only the pin, set";
        all.push(advise(text, set_verify(Verify::None)));
    }
    all
}

/// Returns a warning if the certificate expires soon, or has expired.
pub fn expiry(subject: &Subject, certificate: &Certificate) -> Option<String> {
    let concerns_user = subject.tunnel.route.trust.verify != Verify::None;
    let verb = if certificate.days_left < 0 { "expired" } else { "expires" };
    (concerns_user && certificate.days_left < SOON)
        .then(|| format!("the certificate {verb} on {}", certificate.expires))
}

/// Writes a warning for users who are about to pin the key of a server that failed verification.
fn unverified(subject: &Subject, flaw: Option<Flaw>) -> String {
    let cure = match flaw.and_then(hints::cure) {
        Some(cure) => format!("If this is your own server, {cure}. Until then,"),
        None => format!(
            "If your own CA signed the certificate, set {ca} to that CA. Otherwise",
            ca = subject.names_to_set(&options::CA_FILE.declaration).join(" and ")
        ),
    };
    format!(
        "someone may be intercepting this connection. {cure} get the server's pin over a \
         connection that you trust. If that pin equals the pin below, set"
    )
}

impl Subject {
    /// Returns the lines `NAME=VALUE` with which the user gives `setting` the value `value` for
    /// this tunnel.
    fn to_set(&self, setting: &Declaration, value: &str) -> Vec<String> {
        self.names_to_set(setting).into_iter().map(|name| format!("{name}={value}")).collect()
    }

    /// Returns the names under which the user can change `setting` for this tunnel. If this is the
    /// only tunnel, and no setting for a single variable overrides the general setting, the name is
    /// the general variable or option. Otherwise there is a name for each of the tunnel's
    /// variables.
    fn names_to_set(&self, setting: &Declaration) -> Vec<String> {
        let route = &self.tunnel.route;
        let own: Vec<String> = route.variables.iter().map(|name| setting.for_one(name)).collect();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if self.is_single && !own.iter().any(is_set) {
            return vec![route.setting_names.of(setting.variable).to_owned()];
        }
        own
    }
}
