//! Enums that are labels of metrics. The same words appear in log lines and on the page.

/// Declares an enum with a word for each variant, in the order in which they are shown.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub const ALL: [$name; Self::COUNT] = [$($name::$variant,)+];
            pub const COUNT: usize = [$($word,)+].len();
            /// The words, in the order of `ALL`.
            pub const WORDS: [&str; Self::COUNT] = [$($word,)+];

            pub const fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }
    };
}

words! {
    /// Why an app connection ended that did not fail.
    CloseReason {
        /// Both sides closed, or the app spoke TLS itself.
        Closed = "closed",
        /// Nothing moved for the idle timeout.
        Idle = "idle",
        AppReset = "app_reset",
        RedisReset = "redis_reset",
        /// The app gave up while it waited for Redis.
        Abandoned = "abandoned",
        /// The connection was still open at the end of the drain.
        Drain = "drain",
    }
}

words! {
    /// Why an app connection got no connection to Redis.
    FailureReason {
        Dns = "dns",
        TcpRefused = "tcp_refused",
        TcpTimeout = "tcp_timeout",
        TcpOther = "tcp_other",
        /// The server closed the connection during the handshake.
        TlsEof = "tls_eof",
        TlsTimeout = "tls_timeout",
        NoTls = "no_tls",
        Certificate = "certificate",
        Pin = "pin",
        ClientCertificate = "client_certificate",
        TlsVersion = "tls_version",
        TlsOther = "tls_other",
        /// The process, or the system, has no free file descriptor.
        Descriptors = "descriptors",
        /// The system refuses to start a thread for the name lookup.
        Threads = "threads",
        /// The connection timed out in the queue of `--max-connections`, or while it waited for
        /// another connection's handshake.
        QueueTimeout = "queue_timeout",
        Internal = "internal",
    }
}

words! {
    /// What a connection to Redis is doing.
    UpstreamState {
        /// It serves an app connection.
        Relaying = "relaying",
        /// It waits for its next user.
        Idle = "idle",
        /// It is being opened, or reset for its next user.
        Connecting = "connecting",
    }
}

words! {
    /// Which kind of connection to Redis an app connection got.
    PoolResult {
        /// An earlier app connection had used and left it.
        Reused = "reused",
        New = "new",
    }
}

words! {
    /// How a TLS handshake went.
    Handshake {
        Full = "full",
        /// It resumed an earlier session.
        Resumed = "resumed",
    }
}

words! {
    /// What COMMAND is doing.
    CommandState {
        Running = "running",
        Stopped = "stopped",
        /// COMMAND has exited; its last bytes are being sent.
        Draining = "draining",
    }
}
