//! Which commands leave a connection fit for another user, by allow-list.
//!
//! Drawn from the descriptions that servers give of their own commands (COMMAND of Redis 7.0, and
//! the release notes of Redis up to 8.6 and Valkey up to 9.1). Left out, and so the end of a
//! connection's reuse, is what RESET does not undo, or not on every server:
//!
//! - what makes replies stay away or come unasked: the forms of SUBSCRIBE and UNSUBSCRIBE,
//!   MONITOR, SYNC, PSYNC, REPLCONF, CLIENT REPLY, TRACKING (whose table RESET does not empty) and
//!   CACHING;
//! - what else stays: CLIENT NO-EVICT and NO-TOUCH (cleared from Redis 7.2 on), CAPA and
//!   IMPORT-SOURCE (of Valkey), SCRIPT DEBUG, DEBUG, PFDEBUG;
//! - what tells the connection's id, which others may then use, or uses others': CLIENT ID, INFO,
//!   LIST, KILL, UNBLOCK. (HELLO tells it as well; clients send HELLO to speak RESP3.)
//! - what ends the connection or the server: QUIT, SHUTDOWN;
//! - what an administrator does to a server or a cluster, CLIENT PAUSE among it: rare, and such a
//!   connection is no loss;
//! - whatever is not known: new, renamed, a module's.
//!
//! A command that MULTI queues counts as if it were executed.

use std::sync::LazyLock;

use Effect::{Changes, NoneIfRefused, Queues, Reads, SetsUp};

/// What a command leaves on the connection that it came by. One reply is owed for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing, and it changes nothing elsewhere: it may be executed twice.
    Reads,
    /// Nothing. It changes data or the server's other state, waits for a change, or may do so (a
    /// script, a module's command); executed twice, it might do something else.
    Changes,
    /// What RESET clears: login, database, protocol, name, mode. (SETINFO's stays, for people who
    /// read CLIENT LIST; WATCH and MULTI are [`Effect::Queues`].) It belongs to a connection, and
    /// is sent again to another one.
    SetsUp,
    /// A transaction, which RESET clears. Never sent again: what it is about may have changed.
    Queues,
    /// Nothing if it is answered with an error, as by every server but Redis Cloud and Redis
    /// Software; else pushes. Clients send it when they set up a connection.
    NoneIfRefused,
}

impl Effect {
    /// Whether the command may be sent again on another connection, though it may have been
    /// executed.
    pub fn is_repeatable(self) -> bool {
        matches!(self, Effect::Reads | Effect::SetsUp | Effect::NoneIfRefused)
    }
}

/// What a command of this name and first argument leaves behind, if both are listed.
pub fn effect(name: &[u8], argument: Option<&[u8]>) -> Option<Effect> {
    let name = match name.iter().position(|byte| matches!(byte, b'.' | b'|')) {
        None => name,
        // A module's commands have its name and a dot in front.
        Some(dot) if name[dot] == b'.' => &name[..=dot],
        // The table's way of writing, not the protocol's.
        Some(_) => return None,
    };
    let name = name.iter();
    listed(name.clone()).or_else(|| listed(name.chain(b"|").chain(argument?)))
}

/// The effect of a name of the table, in any case.
fn listed<'a>(name: impl Iterator<Item = &'a u8> + Clone) -> Option<Effect> {
    let name = name.map(u8::to_ascii_lowercase);
    let found = COMMANDS.binary_search_by(|(other, _)| other.bytes().cmp(name.clone()));
    found.ok().map(|index| COMMANDS[index].1)
}

/// Every harmless command, in order of names.
static COMMANDS: LazyLock<Vec<(&str, Effect)>> = LazyLock::new(|| {
    let names =
        |(effect, names): (Effect, &'static str)| names.split(' ').map(move |name| (name, effect));
    let mut commands: Vec<_> = BY_EFFECT.into_iter().flat_map(names).collect();
    commands.sort_unstable_by_key(|(name, _)| *name);
    commands
});

/// The harmless commands by what they leave: `command`, `container|subcommand` as ACLs name them
/// (nothing behind the bar stands for no subcommand), or `module.` for all of a module.
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

    /// What COMMAND of Redis 7.0 says: a line for each command and subcommand, with its flags and
    /// its categories.
    const REDIS_7_0: &str = include_str!("redis-7.0-commands.txt");

    /// What of it ends reuse, and why, though no flag says so.
    const LEFT_OUT: &[(&str, &str)] = &[
        (
            "replies come unasked, or more than one",
            "subscribe unsubscribe psubscribe punsubscribe ssubscribe sunsubscribe",
        ),
        ("replies stay away", "client|reply"),
        ("the tracking table stays", "client|tracking client|caching"),
        ("others know the connection by its id", "client|id client|info"),
        ("the next EVAL enters the debugger", "script|debug"),
        ("the server closes", "quit"),
        ("for cluster nodes only", "restore-asking"),
    ];

    /// What of it reads, though a flag says that it is for administrators.
    const READS_FOR_ADMINISTRATORS: &str = "acl|dryrun acl|getuser acl|list acl|users \
        cluster|count-failure-reports cluster|replicas cluster|slaves config|get latency|doctor \
        latency|graph latency|histogram latency|history latency|latest module|list slowlog|get \
        slowlog|len";

    /// What of it RESET clears.
    const CLEARED: &str = "asking auth client|setname hello ping readonly readwrite reset select";
    const TRANSACTIONS: &str = "discard exec multi unwatch watch";

    /// What of it neither reads nor writes keys, but is more than a question: a script may do
    /// anything but change its connection, and WAIT is about the writes of its own connection.
    const CHANGES_NO_KEY: &str = "eval evalsha fcall function|kill memory|purge publish \
        script|flush script|kill script|load spublish wait";

    /// What later versions have.
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

    /// The effect of a name of the table.
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
                // What has no flag of either kind asks about the server or this connection.
                Some(Reads)
            };
            assert_eq!(of(name), expected, "{line}");
            if expected.is_some() {
                listed.insert(name);
            }
        }
        assert_eq!(seen, left_out.len(), "a reason for what is not there");
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
    fn questions_without_a_flag_are_these() {
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
