//! What a report advises the user to do about the server's identity.

use super::report::Advice;
use crate::configuration::options::{self, Declaration};
use crate::tls::{Certificate, Flaw, Verify};
use crate::tunnel::{Tunnel, hints};

/// Which levels of verification the server passes.
#[derive(Clone, Copy)]
pub struct Passes {
    pub ca: bool,
    pub full: bool,
}

/// What the plan knows of a tunnel's settings beyond its route.
#[derive(Clone, Copy)]
pub struct Situation {
    /// Whether it is the only tunnel, so that the general settings are its own.
    pub is_single: bool,
    /// Whether the user has said that nothing need authenticate it, if nothing does.
    pub none_chosen: bool,
}

/// What the user should do about who the server is.
pub fn advice(
    tunnel: &Tunnel,
    certificate: &Certificate,
    passes: Passes,
    situation: Situation,
) -> Vec<Advice> {
    let trust = &tunnel.route.trust;
    let advise = |text: &str, settings: &[(&Declaration, &str)]| Advice {
        text: text.to_owned(),
        settings: settings
            .iter()
            .flat_map(|(setting, value)| {
                let names = names_to_set(tunnel, setting, situation.is_single);
                names.into_iter().map(move |name| format!("{name}={value}"))
            })
            .collect(),
    };
    let (pin, verify) = (&options::PIN.declaration, &options::VERIFY.declaration);
    let key = certificate.pin.to_string();
    let [full, ca, none] = [Verify::Full, Verify::Ca, Verify::None].map(Verify::word);
    let passes_demanded = match trust.verify {
        Verify::None => true,
        Verify::Ca => passes.ca,
        Verify::Full => passes.full,
    };
    let mut all = Vec::new();
    if !trust.authenticates() {
        // A CA of the system's would vouch for anybody's server.
        let own_ca = trust.ca.is_some() && passes.ca;
        let (what, value) = match passes.full {
            true => (verify, full),
            false if own_ca => (verify, ca),
            false => (pin, key.as_str()),
        };
        let passes_it =
            if what.variable == verify.variable { " this, which it passes:" } else { "" };
        let text = match situation.none_chosen {
            true => "the server is not authenticated, as you wish; if it should be:".to_owned(),
            false => format!("the server is not authenticated: set{passes_it}"),
        };
        all.push(advise(&text, &[(what, value)]));
    } else if !trust.pin_holds(&certificate.pin) {
        let text = "the key differs from the pin; if it was changed on purpose, set";
        all.push(advise(text, &[(pin, &key)]));
    } else if trust.verify == Verify::Full && !passes.full && passes.ca {
        all.push(hints::certificate(Flaw::Name, tunnel).into());
    } else if !passes_demanded {
        let is_single = situation.is_single;
        all.push(match trust.pins.is_empty() {
            true => advise(&unverified(tunnel, is_single), &[(pin, &key), (verify, none)]),
            // The pin holds, so it is the right server.
            false => advise("the pin holds; to let the pin alone decide, set", &[(verify, none)]),
        });
    }
    const SOON: i64 = 14;
    if certificate.days_left < SOON && trust.verify != Verify::None {
        all.push(format!("the certificate expires on {}", certificate.expires).into());
    }
    all
}

/// What to consider before the key of a server whose certificate is not trusted becomes the pin.
fn unverified(tunnel: &Tunnel, is_single: bool) -> String {
    let ca = names_to_set(tunnel, &options::CA_FILE.declaration, is_single).join(" and ");
    format!(
        "someone may be in between. If a CA of your own signed the certificate, set {ca} to that \
         CA. Otherwise get the pin over a connection that you trust; if it is the same as here, set"
    )
}

/// The names that give `setting` another value for a tunnel: the general one, or its option, when
/// it is the only tunnel and no variable of its own overrides that, else one for each variable that
/// leads there.
fn names_to_set(tunnel: &Tunnel, setting: &Declaration, single: bool) -> Vec<String> {
    let variables = &tunnel.route.variables;
    let per_url = |variable: &String| setting.for_one(variable);
    let is_set = |name: String| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if single && !variables.iter().map(per_url).any(is_set) {
        return vec![tunnel.route.setting_names.of(setting.variable).to_owned()];
    }
    variables.iter().map(per_url).collect()
}
