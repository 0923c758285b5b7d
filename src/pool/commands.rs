//! Lists the commands after which the pool may reuse a connection. After any other command, the
//! pool does not reuse the connection.
//!
//! The list is based on the output of the Redis command `COMMAND` in Redis 7.0, and on the release
//! notes of Redis up to 8.6 and of Valkey up to 9.1. The list leaves out the following commands,
//! because RESET does not undo their effects on every server, or because reuse would gain little:
//!
//! - Commands that suppress replies or cause unrequested replies: all forms of SUBSCRIBE and
//!   UNSUBSCRIBE, MONITOR, SYNC, PSYNC, REPLCONF, CLIENT REPLY, CLIENT TRACKING (RESET does not
//!   empty the tracking table), and CLIENT CACHING.
//! - Commands that make other lasting changes: CLIENT NO-EVICT and NO-TOUCH (cleared only from
//!   Redis 7.2), CLIENT CAPA and IMPORT-SOURCE (Valkey), SCRIPT DEBUG, DEBUG, PFDEBUG.
//! - Commands that act on other connections: CLIENT KILL, CLIENT UNBLOCK.
//! - Commands that reveal this connection's id: CLIENT ID, CLIENT INFO, CLIENT LIST. With the id,
//!   other clients can act on this connection. (HELLO also reveals the id, but clients need HELLO
//!   for RESP3.)
//! - Commands that end the connection or the server: QUIT, SHUTDOWN.
//! - Commands that administer a server or a cluster, such as CLIENT PAUSE. Such commands are rare.
//!
//! The pool treats a command that MULTI queues like a command that was executed.

use std::sync::LazyLock;

/// The effect of a listed command on its connection. Every listed command gets exactly one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// `RESET` undoes the changes that the command makes to its connection, for example to the
    /// user, database, protocol, name, or transaction. There is one exception: `RESET` does not
    /// clear the library name and version from `CLIENT SETINFO`, but only `CLIENT LIST` and
    /// `CLIENT INFO` show these values.
    Harmless,
    /// The command has no effect if the reply is an error. Only Redis Cloud and Redis Software
    /// accept the command, and then send pushes. All other servers reply with an error. Clients
    /// send the command when they set up a connection.
    NoneIfRefused,
}

/// Returns the effect of the command with this name and first argument, or `None` if the command is
/// not listed.
pub fn effect(name: &[u8], argument: Option<&[u8]>) -> Option<Effect> {
    let name = match name.iter().position(|byte| matches!(byte, b'.' | b'|')) {
        None => name,
        // The name of a module's command begins with the module's name and a dot.
        Some(dot) if name[dot] == b'.' => &name[..=dot],
        // The table puts a bar between a command and its subcommand. No command's own name contains
        // a bar.
        Some(_) => return None,
    };
    let name = name.iter();
    listed(name.clone()).or_else(|| listed(name.chain(b"|").chain(argument?)))
}

/// Looks a name up in the table of commands. The case of letters does not matter.
fn listed<'a>(name: impl Iterator<Item = &'a u8> + Clone) -> Option<Effect> {
    let name = name.map(u8::to_ascii_lowercase);
    let found = COMMANDS.binary_search_by(|other| other.bytes().cmp(name.clone()));
    Some(match COMMANDS[found.ok()?] {
        "client|maint_notifications" => Effect::NoneIfRefused,
        _ => Effect::Harmless,
    })
}

static COMMANDS: LazyLock<Vec<&str>> = LazyLock::new(|| LISTED.split(' ').collect());

/// The commands whose effect on the connection is known, sorted. There are four kinds of entries:
///
/// - `get` is a command with any arguments.
/// - `acl|cat` is a command with this subcommand, as in ACL rules.
/// - `command|` is a command without a subcommand.
/// - `bf.` stands for all commands of a module.
const LISTED: &str = "\
    acl|cat acl|dryrun acl|genpass acl|getuser acl|help acl|list acl|users acl|whoami append \
    asking auth bf. bitcount bitfield bitfield_ro bitop bitpos blmove blmpop blpop brpop \
    brpoplpush bzmpop bzpopmax bzpopmin cf. client|getname client|getredir client|help \
    client|maint_notifications client|setinfo client|setname client|trackinginfo clusterscan \
    cluster|count-failure-reports cluster|countkeysinslot cluster|getkeysinslot cluster|help \
    cluster|info cluster|keyslot cluster|links cluster|myid cluster|myshardid cluster|nodes \
    cluster|replicas cluster|shards cluster|slaves cluster|slot-stats cluster|slots cms. \
    commandlog|get commandlog|help commandlog|len command| command|count command|docs \
    command|getkeys command|getkeysandflags command|help command|info command|list config|get \
    config|help copy dbsize decr decrby del delex delifeq digest discard dump echo eval \
    eval_ro evalsha evalsha_ro exec exists expire expireat expiretime fcall fcall_ro flushall \
    flushdb ft. function|delete function|dump function|flush function|help function|kill \
    function|list function|load function|restore function|stats geoadd geodist geohash geopos \
    georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore get \
    getbit getdel getex getrange getset hdel hello hexists hexpire hexpireat hexpiretime hget \
    hgetall hgetdel hgetex hincrby hincrbyfloat hkeys hlen hmget hmset hpersist hpexpire \
    hpexpireat hpexpiretime hpttl hrandfield hscan hset hsetex hsetnx hstrlen httl hvals incr \
    incrby incrbyfloat info json. keys lastsave latency|doctor latency|graph latency|help \
    latency|histogram latency|history latency|latest lcs lindex linsert llen lmove lmpop \
    lolwut lpop lpos lpush lpushx lrange lrem lset ltrim memory|doctor memory|help \
    memory|malloc-stats memory|purge memory|stats memory|usage mget migrate module|help \
    module|list move mset msetex msetnx multi object|encoding object|freq object|help \
    object|idletime object|refcount persist pexpire pexpireat pexpiretime pfadd pfcount \
    pfmerge ping psetex pttl publish pubsub|channels pubsub|help pubsub|numpat pubsub|numsub \
    pubsub|shardchannels pubsub|shardnumsub randomkey readonly readwrite rename renamenx reset \
    restore role rpop rpoplpush rpush rpushx sadd scan scard script|exists script|flush \
    script|help script|kill script|load script|show sdiff sdiffstore select set setbit setex \
    setnx setrange sinter sintercard sinterstore sismember slowlog|get slowlog|help \
    slowlog|len smembers smismember smove sort sort_ro spop spublish srandmember srem sscan \
    strlen substr sunion sunionstore swapdb tdigest. time topk. touch ts. ttl type unlink \
    unwatch vadd vcard vdim vemb vgetattr vinfo vismember vlinks vrandmember vrange vrem \
    vsetattr vsim wait waitaof watch xack xackdel xadd xautoclaim xcfgset xclaim xdel xdelex \
    xgroup|create xgroup|createconsumer xgroup|delconsumer xgroup|destroy xgroup|help \
    xgroup|setid xinfo|consumers xinfo|groups xinfo|help xinfo|stream xlen xpending xrange \
    xread xreadgroup xrevrange xsetid xtrim zadd zcard zcount zdiff zdiffstore zincrby zinter \
    zintercard zinterstore zlexcount zmpop zmscore zpopmax zpopmin zrandmember zrange \
    zrangebylex zrangebyscore zrangestore zrank zrem zremrangebylex zremrangebyrank \
    zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion \
    zunionstore";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Effect::{Harmless, NoneIfRefused};
    use super::*;

    /// The commands and subcommands of Redis 7.0, from the output of the Redis command `COMMAND`.
    /// Each line contains a name and the flags of this command or subcommand.
    const REDIS_7_0: &str = include_str!("redis-7.0-commands.txt");

    /// The commands after which a connection is not reused, although these commands lack the flag
    /// `admin`. Each entry consists of a reason, and the commands to which the reason applies.
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

    /// The harmless commands that have the flag `admin`.
    const FOR_ADMINISTRATORS: &str = "acl|dryrun acl|getuser acl|list acl|users \
        cluster|count-failure-reports cluster|replicas cluster|slaves config|get latency|doctor \
        latency|graph latency|histogram latency|history latency|latest module|list slowlog|get \
        slowlog|len";

    /// The commands in `LISTED` that Redis 7.0 lacks. Each entry consists of the version or module
    /// that introduced the commands, and the commands.
    const LATER: &[(&str, &str)] = &[
        ("Redis 7.2", "client|setinfo cluster|myshardid waitaof"),
        ("Redis 7.4", "hexpire hexpireat hexpiretime hpersist hpexpire hpexpireat hpexpiretime"),
        ("Redis 7.4", "hpttl httl"),
        ("Redis 8.0", "hgetdel hgetex hsetex vadd vcard vdim vemb vgetattr vinfo vlinks"),
        ("Redis 8.0", "vrandmember vrem vsetattr vsim"),
        ("Redis 8.2", "cluster|slot-stats vismember xackdel xdelex"),
        ("Redis 8.4", "delex digest msetex vrange"),
        ("Redis 8.6", "xcfgset"),
        ("Redis Cloud", "client|maint_notifications"),
        ("Valkey 8.0", "script|show"),
        ("Valkey 8.1", "commandlog|get commandlog|help commandlog|len"),
        ("Valkey 9.0", "delifeq"),
        ("Valkey 9.1", "clusterscan"),
        ("RedisBloom", "bf. cf. cms. tdigest. topk."),
        ("RediSearch", "ft."),
        ("RedisJSON", "json."),
        ("RedisTimeSeries", "ts."),
    ];

    #[test]
    fn every_redis_command_is_listed_or_left_out_with_a_reason() {
        let mut expected = BTreeSet::from(["command|"]);
        let mut left_out: Vec<_> =
            LEFT_OUT.iter().flat_map(|(_, names)| names.split(' ')).collect();
        for line in REDIS_7_0.lines() {
            let (name, flags) = line.split_once(' ').expect("a name and flags");
            let has = |flag: &str| flags.split(',').any(|own| own == flag);
            if let Some(index) = left_out.iter().position(|other| *other == name) {
                left_out.swap_remove(index);
            } else if FOR_ADMINISTRATORS.split(' ').any(|other| other == name) {
                assert!(has("admin"), "{line}");
                expected.insert(name);
            } else if !has("container") && !has("admin") {
                expected.insert(name);
            }
        }
        assert!(left_out.is_empty(), "Redis does not have {left_out:?}");
        for name in LATER.iter().flat_map(|(_, names)| names.split(' ')) {
            assert!(expected.insert(name), "{name} is there twice");
        }
        assert_eq!(*COMMANDS, Vec::from_iter(expected));
    }

    #[test]
    fn commands_match_in_any_case_and_by_the_whole_name_only() {
        for (name, argument, expected) in [
            ("get", Some("k"), Some(Harmless)),
            ("GeT", None, Some(Harmless)),
            ("ge", Some("t"), None),
            ("gett", Some(""), None),
            ("get\0", Some("k"), None),
            ("", Some(""), None),
            ("zrangebyscore", None, Some(Harmless)),
            ("zrangebyscor", None, None),
            ("CLIENT", Some("SetName"), Some(Harmless)),
            ("CLIENT", Some("SETNAME "), None),
            ("CLIENT", Some(""), None),
            ("CLIENT", None, None),
            ("CLIENT|SETNAME", Some("a"), None),
            ("CLIENT|SETNAME", None, None),
            ("CLIENT|", Some("SETNAME"), None),
            ("CLIENT.", Some("SETNAME"), None),
            ("COMMAND", Some(""), Some(Harmless)),
            ("COMMAND", Some("something-new"), None),
            ("COMMAND|", Some(""), None),
            ("GET", Some("setname"), Some(Harmless)),
            ("Json.Get", Some("k"), Some(Harmless)),
            ("json", Some(".get"), None),
            ("jsonx.get", Some("k"), None),
            ("xjson.get", Some("k"), None),
            (".json.get", Some("k"), None),
            ("json.a|b", Some("k"), Some(Harmless)),
            ("cluster", Some("count-failure-reports"), Some(Harmless)),
            ("client", Some("maint_notifications"), Some(NoneIfRefused)),
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
