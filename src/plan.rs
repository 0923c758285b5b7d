//! Turns the decisions about Redis variables into routes and COMMAND's environment. Pure.

use crate::configuration::{COPY_SUFFIX, Decision, PoolMode, RedisVariable, TunnelledUrl};
use crate::redis_url::{Credentials, Local, RedisUrl};
use crate::secret::Secret;
use crate::tunnel::Route;

/// A variable that holds a Redis URL.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Variable {
    Tunnelled(Tunnelled),
    /// The variable stays unchanged. `shown` is its value with secrets masked.
    Untouched {
        name: String,
        shown: String,
    },
}

/// A variable that leads to a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnelled {
    pub variable: String,
    /// The URL as found, secrets included.
    pub value: Secret,
    /// The index of the tunnel's route.
    pub route: usize,
    pub url: RedisUrl,
}

/// The tunnels, and the variables that lead to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub routes: Vec<Route>,
    /// The pool mode of each route.
    pub pools: Vec<PoolMode>,
    /// The variables whose servers are not authenticated, although the user did not ask for that.
    pub unauthenticated: Vec<String>,
    /// In the order of the decisions.
    variables: Vec<Variable>,
}

impl Plan {
    /// Makes the routes. Variables with the same upstream and the same settings share a route.
    pub fn new(variables: Vec<RedisVariable>) -> Plan {
        let mut plan = Plan::default();
        for RedisVariable { name, decision } in variables {
            let variable = match decision {
                Decision::Tunnel(tunnelled) => plan.tunnel(name, *tunnelled),
                Decision::Untouched { shown } => Variable::Untouched { name, shown },
            };
            plan.variables.push(variable);
        }
        plan
    }

    fn tunnel(&mut self, variable: String, tunnelled: TunnelledUrl) -> Variable {
        let TunnelledUrl { value, url, route, pool, verify_chosen } = tunnelled;
        if !route.trust.authenticates() && !verify_chosen {
            self.unauthenticated.push(variable.clone());
        }
        let same = |(known, known_pool): (&Route, &PoolMode)| {
            known.upstream == route.upstream
                && known.trust == route.trust
                && known.max_connections == route.max_connections
                && *known_pool == pool
        };
        let shared = self.routes.iter().zip(&self.pools).position(same);
        let index = shared.unwrap_or(self.routes.len());
        match self.routes.get_mut(index) {
            Some(shared) => shared.variables.extend(route.variables),
            None => {
                self.pools.push(pool);
                self.routes.push(route);
            }
        }
        Variable::Tunnelled(Tunnelled { variable, value, route: index, url })
    }

    /// True if any variable holds a Redis URL, with or without a tunnel.
    pub fn found_urls(&self) -> bool {
        !self.variables.is_empty()
    }

    /// The names of all variables that hold a Redis URL.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|variable| match variable {
            Variable::Tunnelled(tunnelled) => tunnelled.variable.as_str(),
            Variable::Untouched { name, .. } => name,
        })
    }

    /// The names of the variables that stay unchanged.
    pub fn untouched(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().filter_map(|variable| match variable {
            Variable::Tunnelled(_) => None,
            Variable::Untouched { name, .. } => Some(name.as_str()),
        })
    }

    /// The variables that lead to this launcher's tunnels.
    pub fn tunnelled(&self) -> impl Iterator<Item = &Tunnelled> {
        self.variables.iter().filter_map(|variable| match variable {
            Variable::Tunnelled(tunnelled) => Some(tunnelled),
            Variable::Untouched { .. } => None,
        })
    }

    /// User and password of the first URL of this route that has a password.
    pub fn credentials(&self, route: usize) -> Option<Credentials> {
        let mut urls = self.tunnelled().filter(|tunnelled| tunnelled.route == route);
        urls.find_map(|tunnelled| tunnelled.url.credentials())
    }

    /// The numbers of the databases in the URLs of this route, each once. Database 0 is left out,
    /// because every server has it.
    pub fn databases(&self, route: usize) -> Vec<String> {
        let urls = self.tunnelled().filter(|tunnelled| tunnelled.route == route);
        let named = urls.filter_map(|tunnelled| tunnelled.url.database());
        let mut databases: Vec<String> = Vec::new();
        for database in named.filter(|database| database.bytes().any(|digit| digit != b'0')) {
            if databases.iter().all(|known| known != database) {
                databases.push(database.to_owned());
            }
        }
        databases
    }

    /// The variables to set in COMMAND's environment if the tunnels listen at `locals`: names and
    /// values, secrets included.
    pub fn changes(&self, locals: &[Local]) -> Vec<(String, String)> {
        self.tunnelled()
            .flat_map(|Tunnelled { variable, route, url, .. }| {
                let local = url.local(&locals[*route]).expose();
                [(variable.clone(), local.clone()), (format!("{variable}{COPY_SUFFIX}"), local)]
            })
            .collect()
    }

    /// Every Redis variable as COMMAND would see it: lines of `NAME=value`, secrets masked.
    pub fn describe(&self, locals: &[Local]) -> Vec<String> {
        let lines = self.variables.iter().flat_map(|variable| match variable {
            Variable::Untouched { name, shown } => vec![format!("{name}={shown}")],
            Variable::Tunnelled(Tunnelled { variable, route, url, .. }) => {
                let local = url.local(&locals[*route]);
                vec![format!("{variable}={local}"), format!("{variable}{COPY_SUFFIX}={local}")]
            }
        });
        lines.collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::configuration::tests::{environment, read};

    /// The plan for an environment of `pairs`, for tests.
    pub fn plan(options: &[&str], pairs: &[(&str, &str)]) -> Result<Plan, Vec<String>> {
        let configuration = read(options, &environment(pairs))?;
        Ok(Plan::new(configuration.variables))
    }

    /// Local ports, for tests.
    pub fn ports(ports: impl IntoIterator<Item = u16>) -> Vec<Local> {
        ports.into_iter().map(Local::Port).collect()
    }

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
        let changes = plan.changes(&ports([1, 2, 3, 4]));
        assert_eq!(changes[0], ("REDIS_URL".into(), "redis://:a@127.0.0.1:1/0".into()));
        assert_eq!(changes[1], ("REDIS_URL_STUNNEL".into(), "redis://:a@127.0.0.1:1/0".into()));
        assert_eq!(changes[2], ("HEROKU_REDIS_A_URL".into(), "redis://u:b@127.0.0.1:1/1".into()));
        assert_eq!(changes[4], ("HEROKU_REDIS_B_URL".into(), "redis://127.0.0.1:2".into()));
    }

    #[test]
    fn url_of_an_outer_launchers_socket_stays_unchanged() {
        let outer = "unix://u:pw@/run/start-stunnel-abc/redis0.sock?db=3";
        let plan = plan(&[], &[("REDIS_URL", outer), ("REDIS_URL_STUNNEL", outer)]).unwrap();
        assert!(plan.found_urls() && plan.routes.is_empty());
        assert_eq!(plan.describe(&[]), ["REDIS_URL=unix://***"]);
        let errors = super::tests::plan(&[], &[("REDIS_URL", outer)]).unwrap_err();
        assert!(errors[0].contains("does not begin with redis://"), "{errors:?}");
    }

    #[test]
    fn unchanged_variables_are_described() {
        let pairs = [
            ("REDIS_URL", "rediss://:pw@h:6379"),
            ("HEROKU_REDIS_PLAIN_URL", "redis://h:6379"),
            ("HEROKU_REDIS_NESTED_URL", "redis://127.0.0.1:6371"),
            ("HEROKU_REDIS_NESTED_URL_STUNNEL", "redis://127.0.0.1:6371"),
        ];
        let plan = plan(&["--rediss", "passthrough"], &pairs).unwrap();
        assert_eq!(plan.describe(&ports([1]))[0], "REDIS_URL=rediss://:***@h:6379");
        let changed: Vec<_> = plan.changes(&ports([1])).into_iter().map(|(name, _)| name).collect();
        assert_eq!(changed, ["HEROKU_REDIS_PLAIN_URL", "HEROKU_REDIS_PLAIN_URL_STUNNEL"]);
    }

    #[test]
    fn debug_output_of_a_plan_shows_no_secret() {
        let plan =
            plan(&[], &[("REDIS_URL", "redis://user:hunter2@h/0?password=hunter2")]).unwrap();
        assert!(!format!("{plan:?}").contains("hunter2"));
    }
}
