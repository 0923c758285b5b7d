//! The commands after which a connection may be reused; all others are unknown.
//!
//! The list comes from the servers' own descriptions of their commands: COMMAND of Redis 7.0, and
//! the release notes of Redis up to 8.6 and of Valkey up to 9.1. It leaves out commands whose
//! effects RESET does not undo, or not on every server:
//!
//! - Commands that suppress replies or cause unrequested replies: all forms of SUBSCRIBE and
//!   UNSUBSCRIBE, MONITOR, SYNC, PSYNC, REPLCONF, CLIENT REPLY, CLIENT TRACKING (RESET does not
//!   empty the tracking table), and CLIENT CACHING.
//! - Other lasting changes: CLIENT NO-EVICT and NO-TOUCH (cleared only from Redis 7.2), CLIENT CAPA
//!   and IMPORT-SOURCE (Valkey), SCRIPT DEBUG, DEBUG, PFDEBUG.
//! - Commands that reveal this connection's id, by which others can act on it, or that act on other
//!   connections: CLIENT ID, INFO, LIST, KILL, UNBLOCK. (HELLO reveals the id as well, but clients
//!   need it for RESP3.)
//! - Commands that end the connection or the server: QUIT, SHUTDOWN.
//! - Administration of a server or a cluster, such as CLIENT PAUSE. Such commands are rare, so
//!   reuse would gain little.
//!
//! A command that MULTI queues counts as executed.

use std::sync::LazyLock;

use Effect::{Changes, NoneIfRefused, Queues, Reads, SetsUp};

/// A command's effect on its connection. Each command gets one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// No effect on the connection, the data or the server. The command may be executed twice.
    Reads,
    /// No effect on the connection. The command changes data or the server's state, waits for a
    /// change, or may do either (a script, a module's command). Executed twice, it might have
    /// another result.
    Changes,
    /// Changes that RESET clears: login, database, protocol, name, mode. (RESET does not clear
    /// SETINFO's names, but only CLIENT LIST shows them.) The command may be sent again on another
    /// connection.
    SetsUp,
    /// A transaction, which RESET clears. The command is never sent again, because the keys that
    /// the transaction watches may have changed.
    Queues,
    /// No effect on the connection if the reply is an error, as on every server except Redis Cloud
    /// and Redis Software. These two servers send pushes after the command. Clients send the
    /// command when they set up a connection.
    NoneIfRefused,
}

impl Effect {
    /// True if the command may be sent again on another connection, even if Redis has executed it.
    pub fn is_repeatable(self) -> bool {
        matches!(self, Effect::Reads | Effect::SetsUp | Effect::NoneIfRefused)
    }
}

/// The effect of the command with this name and first argument, if it is listed.
pub fn effect(name: &[u8], argument: Option<&[u8]>) -> Option<Effect> {
    let name = match name.iter().position(|byte| matches!(byte, b'.' | b'|')) {
        None => name,
        // Names of modules' commands begin with the module's name and a dot.
        Some(dot) if name[dot] == b'.' => &name[..=dot],
        // Only the table joins a command and its subcommand with a bar.
        Some(_) => return None,
    };
    let name = name.iter();
    listed(name.clone()).or_else(|| listed(name.chain(b"|").chain(argument?)))
}

/// Looks a name up in the table; case does not matter.
fn listed<'a>(name: impl Iterator<Item = &'a u8> + Clone) -> Option<Effect> {
    let name = name.map(u8::to_ascii_lowercase);
    let found = COMMANDS.binary_search_by(|(other, _)| other.bytes().cmp(name.clone()));
    found.ok().map(|index| COMMANDS[index].1)
}

/// The table: every listed command, sorted by name.
static COMMANDS: LazyLock<Vec<(&str, Effect)>> = LazyLock::new(|| {
    let names =
        |(effect, names): (Effect, &'static str)| names.split(' ').map(move |name| (name, effect));
    let mut commands: Vec<_> = BY_EFFECT.into_iter().flat_map(names).collect();
    commands.sort_unstable_by_key(|(name, _)| *name);
    commands
});

/// The listed commands by effect: `command`, `container|subcommand` as in ACL rules (with nothing
/// behind the bar: without a subcommand), or `module.` for all commands of a module.
const BY_EFFECT: [(Effect, &str); 5] = [
    (
        Reads,
        "acl|cat acl|dryrun acl|genpass acl|getuser acl|help acl|list acl|users acl|whoami \
         bitcount bitfield_ro bitpos client|getname client|getredir client|help \
         client|trackinginfo clusterscan cluster|count-failure-reports cluster|countkeysinslot \
         cluster|getkeysinslot cluster|help cluster|info cluster|keyslot cluster|links \
         cluster|myid cluster|myshardid cluster|nodes cluster|replicas cluster|shards \
         cluster|slaves cluster|slot-stats cluster|slots commandlog|get commandlog|help \
         commandlog|len command| command|count command|docs command|getkeys \
         command|getkeysandflags command|help command|info command|list config|get config|help \
         dbsize digest dump echo eval_ro evalsha_ro exists expiretime fcall_ro function|dump \
         function|help function|list function|stats geodist geohash geopos georadius_ro \
         georadiusbymember_ro geosearch get getbit getrange hexists hexpiretime hget hgetall \
         hkeys hlen hmget hpexpiretime hpttl hrandfield hscan hstrlen httl hvals info keys \
         lastsave latency|doctor latency|graph latency|help latency|histogram latency|history \
         latency|latest lcs lindex llen lolwut lpos lrange memory|doctor memory|help \
         memory|malloc-stats memory|stats memory|usage mget module|help module|list \
         object|encoding object|freq object|help object|idletime object|refcount pexpiretime \
         pfcount pttl pubsub|channels pubsub|help pubsub|numpat pubsub|numsub \
         pubsub|shardchannels pubsub|shardnumsub randomkey role scan scard script|exists \
         script|help script|show sdiff sinter sintercard sismember slowlog|get slowlog|help \
         slowlog|len smembers smismember sort_ro srandmember sscan strlen substr sunion time \
         touch ttl type vcard vdim vemb vgetattr vinfo vismember vlinks vrandmember vrange vsim \
         xgroup|help xinfo|consumers xinfo|groups xinfo|help xinfo|stream xlen xpending xrange \
         xread xrevrange zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember \
         zrange zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore \
         zrevrank zscan zscore zunion",
    ),
    (
        Changes,
        "append bf. bitfield bitop blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin \
         cf. cms. copy decr decrby del delex delifeq eval evalsha expire expireat fcall flushall \
         flushdb ft. function|delete function|flush function|kill function|load function|restore \
         geoadd georadius georadiusbymember geosearchstore getdel getex getset hdel hexpire \
         hexpireat hgetdel hgetex hincrby hincrbyfloat hmset hpersist hpexpire hpexpireat hset \
         hsetex hsetnx incr incrby incrbyfloat json. linsert lmove lmpop lpop lpush lpushx lrem \
         lset ltrim memory|purge migrate move mset msetex msetnx persist pexpire pexpireat pfadd \
         pfmerge psetex publish rename renamenx restore rpop rpoplpush rpush rpushx sadd \
         script|flush script|kill script|load sdiffstore set setbit setex setnx setrange \
         sinterstore smove sort spop spublish srem sunionstore swapdb tdigest. topk. ts. unlink \
         vadd vrem vsetattr wait waitaof xack xackdel xadd xautoclaim xcfgset xclaim xdel xdelex \
         xgroup|create xgroup|createconsumer xgroup|delconsumer xgroup|destroy xgroup|setid \
         xreadgroup xsetid xtrim zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin \
         zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zunionstore",
    ),
    (
        SetsUp,
        "asking auth client|setinfo client|setname hello ping readonly readwrite reset select",
    ),
    (Queues, "discard exec multi unwatch watch"),
    (NoneIfRefused, "client|maint_notifications"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The output of COMMAND of Redis 7.0: each command and subcommand, its flags and its ACL
    /// categories.
    const REDIS_7_0: &str = include_str!("redis-7.0-commands.txt");

    /// Commands that end reuse although no flag marks them, with the reason.
    const LEFT_OUT: &[(&str, &str)] = &[
        (
            "sends unrequested replies, or several",
            "subscribe unsubscribe psubscribe punsubscribe ssubscribe sunsubscribe",
        ),
        ("suppresses replies", "client|reply"),
        ("the tracking table stays", "client|tracking client|caching"),
        ("reveals the connection's id", "client|id client|info"),
        ("the next EVAL enters the debugger", "script|debug"),
        ("the server closes", "quit"),
        ("for cluster nodes only", "restore-asking"),
    ];

    /// Commands that only read, though their flag is `admin`.
    const READS_FOR_ADMINISTRATORS: &str = "acl|dryrun acl|getuser acl|list acl|users \
        cluster|count-failure-reports cluster|replicas cluster|slaves config|get latency|doctor \
        latency|graph latency|histogram latency|history latency|latest module|list slowlog|get \
        slowlog|len";

    /// Commands whose effect RESET clears.
    const CLEARED: &str = "asking auth client|setname hello ping readonly readwrite reset select";
    const TRANSACTIONS: &str = "discard exec multi unwatch watch";

    /// Commands without the flag `write` that may not be executed twice. A script may do anything
    /// but change its connection; WAIT depends on the earlier writes of its connection.
    const CHANGES_NO_KEY: &str = "eval evalsha fcall function|kill memory|purge publish \
        script|flush script|kill script|load spublish wait";

    /// Commands of later versions and of modules.
    const LATER: &[(&str, Effect, &str)] = &[
        ("Redis 7.2", SetsUp, "client|setinfo"),
        ("Redis 7.2", Reads, "cluster|myshardid"),
        ("Redis 7.2", Changes, "waitaof"),
        ("Redis 7.4", Changes, "hexpire hexpireat hpersist hpexpire hpexpireat"),
        ("Redis 7.4", Reads, "hexpiretime hpexpiretime hpttl httl"),
        ("Redis 8.0", Changes, "hgetdel hgetex hsetex vadd vrem vsetattr"),
        ("Redis 8.0", Reads, "vcard vdim vemb vgetattr vinfo vlinks vrandmember vsim"),
        ("Redis 8.2", Reads, "cluster|slot-stats vismember"),
        ("Redis 8.2", Changes, "xackdel xdelex"),
        ("Redis 8.4", Changes, "delex msetex"),
        ("Redis 8.4", Reads, "digest vrange"),
        ("Redis 8.6", Changes, "xcfgset"),
        ("Redis Cloud", NoneIfRefused, "client|maint_notifications"),
        ("Valkey 8.0", Reads, "script|show"),
        ("Valkey 8.1", Reads, "commandlog|get commandlog|help commandlog|len"),
        ("Valkey 9.0", Changes, "delifeq"),
        ("Valkey 9.1", Reads, "clusterscan"),
        ("RedisBloom", Changes, "bf. cf. cms. tdigest. topk."),
        ("RediSearch", Changes, "ft."),
        ("RedisJSON", Changes, "json."),
        ("RedisTimeSeries", Changes, "ts."),
    ];

    /// The effect of a command by its name in the table.
    fn of(name: &str) -> Option<Effect> {
        let (command, subcommand) = name.split_once('|').unwrap_or((name, "an argument"));
        effect(command.as_bytes(), Some(subcommand.as_bytes()))
    }

    #[test]
    fn every_redis_command_is_listed_or_left_out_with_a_reason() {
        let mut listed = BTreeSet::from(["command|"]);
        assert_eq!(of("command|"), Some(Reads));
        let left_out: Vec<_> = LEFT_OUT.iter().flat_map(|(_, names)| names.split(' ')).collect();
        let mut seen = 0;
        for line in REDIS_7_0.lines() {
            let [name, flags, _categories] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("three fields: {line}")
            };
            let has = |flag: &str| flags.split(',').any(|own| own == flag);
            let is_in = |names: &str| names.split(' ').any(|other| other == name);
            let expected = if left_out.contains(&name) || has("container") {
                seen += usize::from(!has("container"));
                None
            } else if is_in(READS_FOR_ADMINISTRATORS) {
                assert!(has("admin"), "{line}");
                Some(Reads)
            } else if has("admin") {
                None
            } else if is_in(CLEARED) {
                Some(SetsUp)
            } else if is_in(TRANSACTIONS) {
                Some(Queues)
            } else if is_in(CHANGES_NO_KEY) || has("write") {
                assert!(!has("readonly"), "{line}");
                Some(Changes)
            } else {
                // Commands with neither flag ask about the server or this connection.
                Some(Reads)
            };
            assert_eq!(of(name), expected, "{line}");
            if expected.is_some() {
                listed.insert(name);
            }
        }
        assert_eq!(seen, left_out.len(), "a command is left out that Redis does not have");
        for (version, expected, names) in LATER {
            for name in names.split(' ') {
                assert_eq!(of(name), Some(*expected), "{version}: {name}");
                assert!(listed.insert(name), "{name} is there twice");
            }
        }
        let table: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(table, Vec::from_iter(listed));
    }

    #[test]
    fn read_commands_without_a_readonly_flag_are_known() {
        let mut questions = Vec::new();
        for line in REDIS_7_0.lines() {
            let (name, flags) = line.split_once(' ').unwrap();
            let flags = flags.split(' ').next().unwrap();
            let flagged =
                flags.split(',').any(|flag| ["readonly", "admin", "container"].contains(&flag));
            if of(name) == Some(Reads) && !flagged && !name.ends_with("|help") {
                questions.push(name);
            }
        }
        assert_eq!(
            questions.join(" "),
            "acl|cat acl|genpass acl|whoami client|getname client|getredir client|trackinginfo \
             cluster|countkeysinslot cluster|getkeysinslot cluster|info cluster|keyslot \
             cluster|links cluster|myid cluster|nodes cluster|shards cluster|slots command|count \
             command|docs command|getkeys command|getkeysandflags command|info command|list echo \
             function|dump function|list function|stats info lastsave memory|doctor \
             memory|malloc-stats memory|stats pubsub|channels pubsub|numpat pubsub|numsub \
             pubsub|shardchannels pubsub|shardnumsub role script|exists time"
        );
    }

    #[test]
    fn a_transaction_or_a_change_is_never_sent_twice() {
        let repeatable = [Reads, Changes, SetsUp, Queues, NoneIfRefused].map(Effect::is_repeatable);
        assert_eq!(repeatable, [true, false, true, false, true]);
    }

    #[test]
    fn commands_match_in_any_case_and_by_the_whole_name_only() {
        for (name, argument, expected) in [
            ("get", Some("k"), Some(Reads)),
            ("GeT", None, Some(Reads)),
            ("ge", Some("t"), None),
            ("gett", Some(""), None),
            ("get\0", Some("k"), None),
            ("", Some(""), None),
            ("zrangebyscore", None, Some(Reads)),
            ("zrangebyscor", None, None),
            ("CLIENT", Some("SetName"), Some(SetsUp)),
            ("CLIENT", Some("SETNAME "), None),
            ("CLIENT", Some(""), None),
            ("CLIENT", None, None),
            ("CLIENT|SETNAME", Some("a"), None),
            ("CLIENT|SETNAME", None, None),
            ("CLIENT|", Some("SETNAME"), None),
            ("CLIENT.", Some("SETNAME"), None),
            ("COMMAND", Some(""), Some(Reads)),
            ("COMMAND", Some("something-new"), None),
            ("COMMAND|", Some(""), None),
            ("GET", Some("setname"), Some(Reads)),
            ("Json.Get", Some("k"), Some(Changes)),
            ("json", Some(".get"), None),
            ("jsonx.get", Some("k"), None),
            ("xjson.get", Some("k"), None),
            (".json.get", Some("k"), None),
            ("json.a|b", Some("k"), Some(Changes)),
            ("cluster", Some("count-failure-reports"), Some(Reads)),
            ("a-name-of-thirty-two-characters-", Some("k"), None),
            ("a-name-of-thirty-three-characters", Some("k"), None),
            ("client", Some("twenty-five-characters..."), None),
            ("client", Some("twenty-six-characters....."), None),
        ] {
            let argument = argument.map(str::as_bytes);
            assert_eq!(effect(name.as_bytes(), argument), expected, "{name} {argument:?}");
        }
    }
}
