//! Describes the planned tunnels, and the variables whose URLs will point to these tunnels.

use std::collections::BTreeSet;
use std::iter;

use crate::pool::PoolMode;
use crate::redis_url::{Credentials, Local, RedisUrl, UrlText};
use crate::secret::Secret;
use crate::tunnel::Route;

/// The suffix that the launcher appends to a variable's name to make a second variable with the
/// same local URL: for example, `REDIS_URL_STUNNEL` is a copy of `REDIS_URL`.
pub const COPY_SUFFIX: &str = "_STUNNEL";

/// An environment variable whose Redis URL gets a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnelled {
    pub variable: String,
    /// The value that the variable had before the launcher replaced it by a local URL.
    pub value: Secret,
    /// The index of the variable's tunnel in [`Plan::routes`].
    pub route: usize,
    pub url: RedisUrl,
}

/// Lists of variables and options that have no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// Variables that hold a Redis URL, but get no tunnel, because neither the launcher's default
    /// list nor the user's list contains the variables.
    pub other_urls: Vec<String>,
    /// A question for the user: was one of these variables meant to be `REDIS_URL`?
    pub question: Option<String>,
    /// Variables whose names look like names of settings, but are unknown.
    pub unknown: Vec<String>,
    /// Settings that apply to a single variable, but have no effect, because the plan does not
    /// contain this variable. The variable holds no Redis URL, or is in `other_urls`.
    pub without_url: Vec<String>,
    /// Options and variables that existed in earlier versions, and that the user still sets.
    pub retired: Vec<String>,
}

/// The plan of the tunnels that the launcher opens, and of the variables that hold Redis URLs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub routes: Vec<Route>,
    /// The pool mode of each tunnel, in the order of `routes`.
    pub pools: Vec<PoolMode>,
    /// The variables whose servers the launcher does not authenticate, although the user did not
    /// choose `verify=none` for these variables.
    pub unauthenticated: Vec<String>,
    pub tunnelled: Vec<Tunnelled>,
    /// The names and values of the variables whose URLs need no tunnel. Secrets in the values are
    /// masked.
    pub(super) untouched: Vec<(String, String)>,
    pub unused: Unused,
}

impl Plan {
    /// Finds a route in the plan with the same upstream and the same settings as `route`, or else
    /// adds `route` to the plan. Returns the index of the found or added route.
    pub fn share(&mut self, route: Route, pool: PoolMode) -> usize {
        let same = |(known, known_pool): (&Route, &PoolMode)| {
            known.upstream == route.upstream
                && known.trust == route.trust
                && known.max_connections == route.max_connections
                && *known_pool == pool
        };
        if let Some(shared) = self.routes.iter().zip(&self.pools).position(same) {
            self.routes[shared].variables.extend(route.variables);
            return shared;
        }
        self.routes.push(route);
        self.pools.push(pool);
        self.routes.len() - 1
    }

    /// Returns true if any variable in the plan holds a Redis URL, with or without a tunnel. The
    /// variables in `unused.other_urls` do not count.
    pub fn found_urls(&self) -> bool {
        self.variables().next().is_some()
    }

    /// Returns the names of all variables in the plan, with or without a tunnel.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        let tunnelled = self.tunnelled.iter().map(|tunnelled| tunnelled.variable.as_str());
        tunnelled.chain(self.untouched())
    }

    /// Returns true if the plan contains the variable `name`, with or without a tunnel.
    pub fn contains(&self, name: &str) -> bool {
        self.variables().any(|variable| variable == name)
    }

    /// Returns the names of the variables whose URLs need no tunnel.
    pub fn untouched(&self) -> impl Iterator<Item = &str> {
        self.untouched.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the different users and passwords in this route's URLs, each with the name of the
    /// first variable that contains it.
    pub fn credentials(&self, route: usize) -> Vec<(String, Credentials)> {
        let mut all: Vec<(String, Credentials)> = Vec::new();
        for tunnelled in self.tunnelled.iter().filter(|tunnelled| tunnelled.route == route) {
            if let Some(found) = tunnelled.url.credentials()
                && all.iter().all(|(_, known)| *known != found)
            {
                all.push((tunnelled.variable.clone(), found));
            }
        }
        all
    }

    /// Returns the numbers of the databases that this route's URLs select. The list contains each
    /// number once, but not 0, because every server has database 0.
    pub fn databases(&self, route: usize) -> Vec<String> {
        let urls = self.tunnelled.iter().filter(|tunnelled| tunnelled.route == route);
        let named = urls.filter_map(|tunnelled| tunnelled.url.database());
        let other = named.filter(|database| database.bytes().any(|digit| digit != b'0'));
        other.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Returns the names and values of the variables that the launcher must set in COMMAND's
    /// environment. `locals` are the local addresses of the tunnels.
    pub fn changes(&self, locals: &[Local]) -> impl Iterator<Item = (String, UrlText)> {
        self.tunnelled.iter().flat_map(move |Tunnelled { variable, route, url, .. }| {
            let local = url.local(&locals[*route]);
            let copy = format!("{variable}{COPY_SUFFIX}");
            // If the user has listed a variable with the name of the copy, its own URL counts.
            let copy = (!self.contains(&copy)).then(|| (copy, local.clone()));
            iter::once((variable.clone(), local)).chain(copy)
        })
    }

    /// Returns a line `NAME=value` for each Redis variable in COMMAND's environment, with masked
    /// passwords. `locals` are the local addresses of the tunnels.
    pub fn describe(&self, locals: &[Local]) -> Vec<String> {
        let tunnelled = self.changes(locals).map(|(name, url)| format!("{name}={}", url.shown));
        let untouched = self.untouched.iter().map(|(name, shown)| format!("{name}={shown}"));
        tunnelled.chain(untouched).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, ports};

    #[test]
    fn variables_share_a_tunnel_if_upstream_and_settings_are_equal() {
        let pairs = [
            ("REDIS_URL", "redis://:a@h:6379/0"),
            ("HEROKU_REDIS_A_URL", "rediss://u:b@H:6380/1"),
            ("HEROKU_REDIS_B_URL", "redis://h:6379"),
            ("HEROKU_REDIS_B_URL_STUNNEL_VERIFY", "full"),
            ("HEROKU_REDIS_C_URL", "redis://h:6378"),
            ("HEROKU_REDIS_D_URL", "redis://h:6378"),
            ("HEROKU_REDIS_D_URL_STUNNEL_POOL", "off"),
        ];
        let plan = plan(&[], &pairs).unwrap();
        let shared: Vec<_> = plan.routes.iter().map(|tunnel| tunnel.variables.join(" ")).collect();
        assert_eq!(
            shared,
            [
                "REDIS_URL HEROKU_REDIS_A_URL",
                "HEROKU_REDIS_B_URL",
                "HEROKU_REDIS_C_URL",
                "HEROKU_REDIS_D_URL"
            ]
        );
        let locals = ports([1, 2, 3, 4]);
        let changes = plan.changes(&locals);
        let changes: Vec<_> =
            changes.map(|(name, url)| format!("{name}={}", url.whole.expose())).collect();
        assert_eq!(changes[0], "REDIS_URL=redis://:a@127.0.0.1:1/0");
        assert_eq!(changes[1], "REDIS_URL_STUNNEL=redis://:a@127.0.0.1:1/0");
        assert_eq!(changes[2], "HEROKU_REDIS_A_URL=redis://u:b@127.0.0.1:1/1");
        assert_eq!(changes[4], "HEROKU_REDIS_B_URL=redis://127.0.0.1:2");
    }

    #[test]
    fn unix_url_of_an_outer_launcher_stays_unchanged() {
        let outer = "unix://u:pw@/run/start-stunnel-abc/redis0.sock?db=3";
        let plan = plan(&[], &[("REDIS_URL", outer), ("REDIS_URL_STUNNEL", outer)]).unwrap();
        assert!(plan.found_urls() && plan.routes.is_empty());
        assert_eq!(plan.describe(&[]), ["REDIS_URL=unix://***"]);
        let errors = super::super::tests::plan(&[], &[("REDIS_URL", outer)]).unwrap_err();
        assert!(errors[0].contains("does not begin with redis://"), "{errors:?}");
    }

    #[test]
    fn print_env_lists_variables_that_stay_unchanged() {
        let pairs = [
            ("REDIS_URL", "rediss://:pw@h:6379"),
            ("HEROKU_REDIS_PLAIN_URL", "redis://h:6379"),
            ("HEROKU_REDIS_NESTED_URL", "redis://127.0.0.1:6371"),
            ("HEROKU_REDIS_NESTED_URL_STUNNEL", "redis://127.0.0.1:6371"),
        ];
        let plan = plan(&["--rediss", "passthrough"], &pairs).unwrap();
        assert_eq!(plan.describe(&ports([1]))[2], "REDIS_URL=rediss://:***@h:6379");
        let changed: Vec<_> = plan.changes(&ports([1])).map(|(name, _)| name).collect();
        assert_eq!(changed, ["HEROKU_REDIS_PLAIN_URL", "HEROKU_REDIS_PLAIN_URL_STUNNEL"]);
    }

    #[test]
    fn debug_output_of_a_plan_shows_no_secret() {
        let plan =
            plan(&[], &[("REDIS_URL", "redis://user:hunter2@h/0?password=hunter2")]).unwrap();
        assert!(!format!("{plan:?}").contains("hunter2"));
    }
}
