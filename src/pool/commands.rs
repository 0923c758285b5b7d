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
    let mut key = Key::default();
    key.push(name)?;
    if let Some(effect) = row(key.get()) {
        return Some(effect);
    }
    key.push(b"|")?;
    key.push(argument?)?;
    row(key.get())
}

fn row(key: &[u8]) -> Option<Effect> {
    let beginning = beginning(key);
    let first = BEGINNINGS.partition_point(|other| *other < beginning);
    let rows = COMMANDS[first..].iter().zip(&BEGINNINGS[first..]);
    let mut rows = rows.take_while(|(_, other)| **other == beginning);
    rows.find(|((name, _), _)| name.as_bytes() == key).map(|((_, effect), _)| *effect)
}

/// The names' beginnings, in their order. Searching them takes less than half the time of
/// comparing names, and every request is looked up.
const BEGINNINGS: [u64; COMMANDS.len()] = {
    let mut beginnings = [0; COMMANDS.len()];
    let mut index = 0;
    while index < COMMANDS.len() {
        beginnings[index] = beginning(COMMANDS[index].0.as_bytes());
        index += 1;
    }
    beginnings
};

/// The first eight bytes as a number that sorts as they do.
const fn beginning(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let mut index = 0;
    while index < name.len() && index < bytes.len() {
        bytes[index] = name[index];
        index += 1;
    }
    u64::from_be_bytes(bytes)
}

/// A name in lower case, as the table has them.
#[derive(Default)]
struct Key {
    length: usize,
    bytes: [u8; Key::LONGEST],
}

impl Key {
    const LONGEST: usize = 32;

    /// Adds to it; `None` if it gets longer than any name of the table.
    fn push(&mut self, more: &[u8]) -> Option<()> {
        let place = self.bytes.get_mut(self.length..self.length + more.len())?;
        place.copy_from_slice(more);
        place.make_ascii_lowercase();
        self.length += more.len();
        Some(())
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What is known to be harmless, in order of names: `command`, `container|subcommand` as ACLs
/// have it (nothing behind the bar stands for no subcommand), or `module.` for all of a module.
const COMMANDS: &[(&str, Effect)] = &[
    ("acl|cat", Reads),
    ("acl|dryrun", Reads),
    ("acl|genpass", Reads),
    ("acl|getuser", Reads),
    ("acl|help", Reads),
    ("acl|list", Reads),
    ("acl|users", Reads),
    ("acl|whoami", Reads),
    ("append", Changes),
    ("asking", SetsUp),
    ("auth", SetsUp),
    ("bf.", Changes),
    ("bitcount", Reads),
    ("bitfield", Changes),
    ("bitfield_ro", Reads),
    ("bitop", Changes),
    ("bitpos", Reads),
    ("blmove", Changes),
    ("blmpop", Changes),
    ("blpop", Changes),
    ("brpop", Changes),
    ("brpoplpush", Changes),
    ("bzmpop", Changes),
    ("bzpopmax", Changes),
    ("bzpopmin", Changes),
    ("cf.", Changes),
    ("client|getname", Reads),
    ("client|getredir", Reads),
    ("client|help", Reads),
    ("client|maint_notifications", NoneIfRefused),
    ("client|setinfo", SetsUp),
    ("client|setname", SetsUp),
    ("client|trackinginfo", Reads),
    ("clusterscan", Reads),
    ("cluster|count-failure-reports", Reads),
    ("cluster|countkeysinslot", Reads),
    ("cluster|getkeysinslot", Reads),
    ("cluster|help", Reads),
    ("cluster|info", Reads),
    ("cluster|keyslot", Reads),
    ("cluster|links", Reads),
    ("cluster|myid", Reads),
    ("cluster|myshardid", Reads),
    ("cluster|nodes", Reads),
    ("cluster|replicas", Reads),
    ("cluster|shards", Reads),
    ("cluster|slaves", Reads),
    ("cluster|slot-stats", Reads),
    ("cluster|slots", Reads),
    ("cms.", Changes),
    ("commandlog|get", Reads),
    ("commandlog|help", Reads),
    ("commandlog|len", Reads),
    ("command|", Reads),
    ("command|count", Reads),
    ("command|docs", Reads),
    ("command|getkeys", Reads),
    ("command|getkeysandflags", Reads),
    ("command|help", Reads),
    ("command|info", Reads),
    ("command|list", Reads),
    ("config|get", Reads),
    ("config|help", Reads),
    ("copy", Changes),
    ("dbsize", Reads),
    ("decr", Changes),
    ("decrby", Changes),
    ("del", Changes),
    ("delex", Changes),
    ("delifeq", Changes),
    ("digest", Reads),
    ("discard", Queues),
    ("dump", Reads),
    ("echo", Reads),
    ("eval", Changes),
    ("eval_ro", Reads),
    ("evalsha", Changes),
    ("evalsha_ro", Reads),
    ("exec", Queues),
    ("exists", Reads),
    ("expire", Changes),
    ("expireat", Changes),
    ("expiretime", Reads),
    ("fcall", Changes),
    ("fcall_ro", Reads),
    ("flushall", Changes),
    ("flushdb", Changes),
    ("ft.", Changes),
    ("function|delete", Changes),
    ("function|dump", Reads),
    ("function|flush", Changes),
    ("function|help", Reads),
    ("function|kill", Changes),
    ("function|list", Reads),
    ("function|load", Changes),
    ("function|restore", Changes),
    ("function|stats", Reads),
    ("geoadd", Changes),
    ("geodist", Reads),
    ("geohash", Reads),
    ("geopos", Reads),
    ("georadius", Changes),
    ("georadius_ro", Reads),
    ("georadiusbymember", Changes),
    ("georadiusbymember_ro", Reads),
    ("geosearch", Reads),
    ("geosearchstore", Changes),
    ("get", Reads),
    ("getbit", Reads),
    ("getdel", Changes),
    ("getex", Changes),
    ("getrange", Reads),
    ("getset", Changes),
    ("hdel", Changes),
    ("hello", SetsUp),
    ("hexists", Reads),
    ("hexpire", Changes),
    ("hexpireat", Changes),
    ("hexpiretime", Reads),
    ("hget", Reads),
    ("hgetall", Reads),
    ("hgetdel", Changes),
    ("hgetex", Changes),
    ("hincrby", Changes),
    ("hincrbyfloat", Changes),
    ("hkeys", Reads),
    ("hlen", Reads),
    ("hmget", Reads),
    ("hmset", Changes),
    ("hpersist", Changes),
    ("hpexpire", Changes),
    ("hpexpireat", Changes),
    ("hpexpiretime", Reads),
    ("hpttl", Reads),
    ("hrandfield", Reads),
    ("hscan", Reads),
    ("hset", Changes),
    ("hsetex", Changes),
    ("hsetnx", Changes),
    ("hstrlen", Reads),
    ("httl", Reads),
    ("hvals", Reads),
    ("incr", Changes),
    ("incrby", Changes),
    ("incrbyfloat", Changes),
    ("info", Reads),
    ("json.", Changes),
    ("keys", Reads),
    ("lastsave", Reads),
    ("latency|doctor", Reads),
    ("latency|graph", Reads),
    ("latency|help", Reads),
    ("latency|histogram", Reads),
    ("latency|history", Reads),
    ("latency|latest", Reads),
    ("lcs", Reads),
    ("lindex", Reads),
    ("linsert", Changes),
    ("llen", Reads),
    ("lmove", Changes),
    ("lmpop", Changes),
    ("lolwut", Reads),
    ("lpop", Changes),
    ("lpos", Reads),
    ("lpush", Changes),
    ("lpushx", Changes),
    ("lrange", Reads),
    ("lrem", Changes),
    ("lset", Changes),
    ("ltrim", Changes),
    ("memory|doctor", Reads),
    ("memory|help", Reads),
    ("memory|malloc-stats", Reads),
    ("memory|purge", Changes),
    ("memory|stats", Reads),
    ("memory|usage", Reads),
    ("mget", Reads),
    ("migrate", Changes),
    ("module|help", Reads),
    ("module|list", Reads),
    ("move", Changes),
    ("mset", Changes),
    ("msetex", Changes),
    ("msetnx", Changes),
    ("multi", Queues),
    ("object|encoding", Reads),
    ("object|freq", Reads),
    ("object|help", Reads),
    ("object|idletime", Reads),
    ("object|refcount", Reads),
    ("persist", Changes),
    ("pexpire", Changes),
    ("pexpireat", Changes),
    ("pexpiretime", Reads),
    ("pfadd", Changes),
    ("pfcount", Reads),
    ("pfmerge", Changes),
    ("ping", SetsUp),
    ("psetex", Changes),
    ("pttl", Reads),
    ("publish", Changes),
    ("pubsub|channels", Reads),
    ("pubsub|help", Reads),
    ("pubsub|numpat", Reads),
    ("pubsub|numsub", Reads),
    ("pubsub|shardchannels", Reads),
    ("pubsub|shardnumsub", Reads),
    ("randomkey", Reads),
    ("readonly", SetsUp),
    ("readwrite", SetsUp),
    ("rename", Changes),
    ("renamenx", Changes),
    ("reset", SetsUp),
    ("restore", Changes),
    ("role", Reads),
    ("rpop", Changes),
    ("rpoplpush", Changes),
    ("rpush", Changes),
    ("rpushx", Changes),
    ("sadd", Changes),
    ("scan", Reads),
    ("scard", Reads),
    ("script|exists", Reads),
    ("script|flush", Changes),
    ("script|help", Reads),
    ("script|kill", Changes),
    ("script|load", Changes),
    ("script|show", Reads),
    ("sdiff", Reads),
    ("sdiffstore", Changes),
    ("select", SetsUp),
    ("set", Changes),
    ("setbit", Changes),
    ("setex", Changes),
    ("setnx", Changes),
    ("setrange", Changes),
    ("sinter", Reads),
    ("sintercard", Reads),
    ("sinterstore", Changes),
    ("sismember", Reads),
    ("slowlog|get", Reads),
    ("slowlog|help", Reads),
    ("slowlog|len", Reads),
    ("smembers", Reads),
    ("smismember", Reads),
    ("smove", Changes),
    ("sort", Changes),
    ("sort_ro", Reads),
    ("spop", Changes),
    ("spublish", Changes),
    ("srandmember", Reads),
    ("srem", Changes),
    ("sscan", Reads),
    ("strlen", Reads),
    ("substr", Reads),
    ("sunion", Reads),
    ("sunionstore", Changes),
    ("swapdb", Changes),
    ("tdigest.", Changes),
    ("time", Reads),
    ("topk.", Changes),
    ("touch", Reads),
    ("ts.", Changes),
    ("ttl", Reads),
    ("type", Reads),
    ("unlink", Changes),
    ("unwatch", Queues),
    ("vadd", Changes),
    ("vcard", Reads),
    ("vdim", Reads),
    ("vemb", Reads),
    ("vgetattr", Reads),
    ("vinfo", Reads),
    ("vismember", Reads),
    ("vlinks", Reads),
    ("vrandmember", Reads),
    ("vrange", Reads),
    ("vrem", Changes),
    ("vsetattr", Changes),
    ("vsim", Reads),
    ("wait", Changes),
    ("waitaof", Changes),
    ("watch", Queues),
    ("xack", Changes),
    ("xackdel", Changes),
    ("xadd", Changes),
    ("xautoclaim", Changes),
    ("xcfgset", Changes),
    ("xclaim", Changes),
    ("xdel", Changes),
    ("xdelex", Changes),
    ("xgroup|create", Changes),
    ("xgroup|createconsumer", Changes),
    ("xgroup|delconsumer", Changes),
    ("xgroup|destroy", Changes),
    ("xgroup|help", Reads),
    ("xgroup|setid", Changes),
    ("xinfo|consumers", Reads),
    ("xinfo|groups", Reads),
    ("xinfo|help", Reads),
    ("xinfo|stream", Reads),
    ("xlen", Reads),
    ("xpending", Reads),
    ("xrange", Reads),
    ("xread", Reads),
    ("xreadgroup", Changes),
    ("xrevrange", Reads),
    ("xsetid", Changes),
    ("xtrim", Changes),
    ("zadd", Changes),
    ("zcard", Reads),
    ("zcount", Reads),
    ("zdiff", Reads),
    ("zdiffstore", Changes),
    ("zincrby", Changes),
    ("zinter", Reads),
    ("zintercard", Reads),
    ("zinterstore", Changes),
    ("zlexcount", Reads),
    ("zmpop", Changes),
    ("zmscore", Reads),
    ("zpopmax", Changes),
    ("zpopmin", Changes),
    ("zrandmember", Reads),
    ("zrange", Reads),
    ("zrangebylex", Reads),
    ("zrangebyscore", Reads),
    ("zrangestore", Changes),
    ("zrank", Reads),
    ("zrem", Changes),
    ("zremrangebylex", Changes),
    ("zremrangebyrank", Changes),
    ("zremrangebyscore", Changes),
    ("zrevrange", Reads),
    ("zrevrangebylex", Reads),
    ("zrevrangebyscore", Reads),
    ("zrevrank", Reads),
    ("zscan", Reads),
    ("zscore", Reads),
    ("zunion", Reads),
    ("zunionstore", Changes),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What COMMAND of Redis 7.0 says: a line for each command and subcommand, with its flags and
    /// its categories.
    const REDIS_7_0: &str = include_str!("redis-7.0-commands.txt");

    /// What of it ends reuse, and why, though no flag says so.
    const LEFT_OUT: &[(&str, &[&str])] = &[
        (
            "replies come unasked, or more than one",
            &[
                "subscribe",
                "unsubscribe",
                "psubscribe",
                "punsubscribe",
                "ssubscribe",
                "sunsubscribe",
            ],
        ),
        ("replies stay away", &["client|reply"]),
        ("the tracking table stays", &["client|tracking", "client|caching"]),
        ("others know the connection by its id", &["client|id", "client|info"]),
        ("the next EVAL enters the debugger", &["script|debug"]),
        ("the server closes", &["quit"]),
        ("for cluster nodes only", &["restore-asking"]),
    ];

    /// What of it reads, though a flag says that it is for administrators.
    const READS_FOR_ADMINISTRATORS: &[&str] = &[
        "acl|dryrun",
        "acl|getuser",
        "acl|list",
        "acl|users",
        "cluster|count-failure-reports",
        "cluster|replicas",
        "cluster|slaves",
        "config|get",
        "latency|doctor",
        "latency|graph",
        "latency|histogram",
        "latency|history",
        "latency|latest",
        "module|list",
        "slowlog|get",
        "slowlog|len",
    ];

    /// What of it RESET clears.
    const CLEARED: &[&str] = &[
        "asking",
        "auth",
        "client|setname",
        "hello",
        "ping",
        "readonly",
        "readwrite",
        "reset",
        "select",
    ];
    const TRANSACTIONS: &[&str] = &["discard", "exec", "multi", "unwatch", "watch"];

    /// What of it neither reads nor writes keys, but is more than a question.
    const CHANGES_NO_KEY: &[&str] = &[
        // A script may do anything but change its connection.
        "eval",
        "evalsha",
        "fcall",
        "function|kill",
        "memory|purge",
        "publish",
        "script|flush",
        "script|kill",
        "script|load",
        "spublish",
        // About the writes of its own connection.
        "wait",
    ];

    /// What later versions have.
    const LATER: &[(&str, &str, Effect)] = &[
        ("Redis 7.2", "client|setinfo", SetsUp),
        ("Redis 7.2", "cluster|myshardid", Reads),
        ("Redis 7.2", "waitaof", Changes),
        ("Redis 7.4", "hexpire", Changes),
        ("Redis 7.4", "hexpireat", Changes),
        ("Redis 7.4", "hexpiretime", Reads),
        ("Redis 7.4", "hpersist", Changes),
        ("Redis 7.4", "hpexpire", Changes),
        ("Redis 7.4", "hpexpireat", Changes),
        ("Redis 7.4", "hpexpiretime", Reads),
        ("Redis 7.4", "hpttl", Reads),
        ("Redis 7.4", "httl", Reads),
        ("Redis 8.0", "hgetdel", Changes),
        ("Redis 8.0", "hgetex", Changes),
        ("Redis 8.0", "hsetex", Changes),
        ("Redis 8.0", "vadd", Changes),
        ("Redis 8.0", "vcard", Reads),
        ("Redis 8.0", "vdim", Reads),
        ("Redis 8.0", "vemb", Reads),
        ("Redis 8.0", "vgetattr", Reads),
        ("Redis 8.0", "vinfo", Reads),
        ("Redis 8.0", "vlinks", Reads),
        ("Redis 8.0", "vrandmember", Reads),
        ("Redis 8.0", "vrem", Changes),
        ("Redis 8.0", "vsetattr", Changes),
        ("Redis 8.0", "vsim", Reads),
        ("Redis 8.2", "cluster|slot-stats", Reads),
        ("Redis 8.2", "vismember", Reads),
        ("Redis 8.2", "xackdel", Changes),
        ("Redis 8.2", "xdelex", Changes),
        ("Redis 8.4", "delex", Changes),
        ("Redis 8.4", "digest", Reads),
        ("Redis 8.4", "msetex", Changes),
        ("Redis 8.4", "vrange", Reads),
        ("Redis 8.6", "xcfgset", Changes),
        ("Redis Cloud", "client|maint_notifications", NoneIfRefused),
        ("Valkey 8.0", "script|show", Reads),
        ("Valkey 8.1", "commandlog|get", Reads),
        ("Valkey 8.1", "commandlog|help", Reads),
        ("Valkey 8.1", "commandlog|len", Reads),
        ("Valkey 9.0", "delifeq", Changes),
        ("Valkey 9.1", "clusterscan", Reads),
        ("RedisBloom", "bf.", Changes),
        ("RedisBloom", "cf.", Changes),
        ("RedisBloom", "cms.", Changes),
        ("RedisBloom", "tdigest.", Changes),
        ("RedisBloom", "topk.", Changes),
        ("RediSearch", "ft.", Changes),
        ("RedisJSON", "json.", Changes),
        ("RedisTimeSeries", "ts.", Changes),
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
        let left_out: Vec<_> = LEFT_OUT.iter().flat_map(|(_, names)| *names).collect();
        let mut seen = 0;
        for line in REDIS_7_0.lines() {
            let [name, flags, _categories] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("three fields: {line}")
            };
            let has = |flag: &str| flags.split(',').any(|own| own == flag);
            let is_in = |names: &[&str]| names.contains(&name);
            let expected = if left_out.contains(&&name) || has("container") {
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
        for (version, name, expected) in LATER {
            assert_eq!(of(name), Some(*expected), "{version}: {name}");
            assert!(listed.insert(name), "{name} is there twice");
        }
        let table: BTreeSet<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(table, listed);
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

    #[test]
    fn the_table_is_in_order_and_no_name_is_too_long() {
        assert!(COMMANDS.is_sorted_by(|(one, _), (next, _)| one < next));
        for (name, _) in COMMANDS {
            assert!(name.len() <= Key::LONGEST, "{name}");
            assert!(
                name.bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte == byte.to_ascii_lowercase())
            );
        }
        assert_eq!(beginning(b"ab"), 0x6162_0000_0000_0000);
        assert_eq!(beginning(b"abcdefghi"), 0x6162_6364_6566_6768);
    }
}
