//! The words for the values of the metrics' labels, and for some log events. The metrics, the log
//! and the status page use the same words.

/// Declares an enum, and a word for each of its variants. The status page shows the words in the
/// order of the variants.
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
            pub const COUNT: usize = [$($word,)+].len();
            /// The words for all variants, in the order of the variants.
            pub const WORDS: [&str; Self::COUNT] = [$($word,)+];

            pub const fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }
    };
}

words! {
    /// The reason why an app connection ended without a failure.
    CloseReason {
        /// The app and Redis closed the connection without an error, or the app closed the
        /// connection and the pool kept the connection to Redis. This reason also counts app
        /// connections that the launcher closes because the app speaks TLS to the local port.
        Closed = "closed",
        /// Neither the app nor Redis sent a byte during the idle timeout.
        Idle = "idle",
        AppReset = "app_reset",
        RedisReset = "redis_reset",
        /// The app closed the connection before a connection to Redis was ready.
        Abandoned = "abandoned",
        /// The launcher closed the app connection at the end of the drain.
        Drain = "drain",
    }
}

words! {
    /// The reason why an app connection got no connection to Redis.
    FailureReason {
        Dns = "dns",
        TcpRefused = "tcp_refused",
        TcpTimeout = "tcp_timeout",
        TcpOther = "tcp_other",
        /// The server closed the connection during the TLS handshake.
        TlsEof = "tls_eof",
        TlsTimeout = "tls_timeout",
        NoTls = "no_tls",
        Certificate = "certificate",
        Pin = "pin",
        ClientCertificate = "client_certificate",
        TlsVersion = "tls_version",
        TlsOther = "tls_other",
        /// The launcher or the system has no free file descriptor.
        Descriptors = "descriptors",
        /// The system did not let the launcher start a thread, usually for a name lookup.
        Threads = "threads",
        /// The app connection timed out in the queue of `--max-connections`.
        QueueTimeout = "queue_timeout",
        Internal = "internal",
    }
}

words! {
    /// The state of a connection to Redis.
    UpstreamState {
        /// An app uses the connection to Redis.
        Relaying = "relaying",
        /// The connection to Redis waits in the pool for the next app connection.
        Idle = "idle",
        /// The launcher opens the connection to Redis, or resets the connection for the next app
        /// connection.
        Connecting = "connecting",
    }
}

words! {
    /// The kind of connection to Redis that the pool gave to an app connection.
    PoolResult {
        /// An earlier app connection has already used the connection to Redis.
        Reused = "reused",
        New = "new",
    }
}

words! {
    /// The kind of a TLS handshake.
    Handshake {
        Full = "full",
        /// The handshake resumed an earlier TLS session.
        Resumed = "resumed",
    }
}

words! {
    /// The state of COMMAND.
    CommandState {
        Running = "running",
        Stopped = "stopped",
        /// COMMAND has exited, and the launcher sends the last bytes that COMMAND has written.
        Draining = "draining",
    }
}

words! {
    /// The log events that warn about a tunnel's connections.
    Event {
        AcceptFailed = "accept-failed",
        AppSpeaksTls = "app-speaks-tls",
        Failed = "connection-failed",
        Refused = "connection-refused",
        Unanswered = "connection-unanswered",
        QueueStuck = "queue-stuck",
        QueueTimeout = "queue-timeout",
        QueueWaiting = "queue-waiting",
    }
}
