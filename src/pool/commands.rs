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
    let index = COMMANDS.binary_search_by(|(name, _)| name.as_bytes().cmp(key)).ok()?;
    Some(COMMANDS[index].1)
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
    ("acl|log", Reads),
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
