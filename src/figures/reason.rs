//! The words of metrics' labels. Log lines and the page use the same words.

/// Declares an enum and the word of each variant, in the order in which the words are shown.
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
    /// The reason why an app connection ended, if the connection did not fail.
    CloseReason {
        /// Both sides closed the connection, or the app spoke TLS itself.
        Closed = "closed",
        /// No byte moved during the idle timeout.
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
    /// The reason why an app connection got no connection to Redis.
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
        /// The connection timed out in the queue of `--max-connections`.
        QueueTimeout = "queue_timeout",
        Internal = "internal",
    }
}

words! {
    /// The state of a connection to Redis.
    UpstreamState {
        /// The connection serves an app connection.
        Relaying = "relaying",
        /// The connection waits for its next user.
        Idle = "idle",
        /// The connection is being opened, or is being reset for its next user.
        Connecting = "connecting",
    }
}

words! {
    /// Which kind of connection to Redis an app connection got.
    PoolResult {
        /// A connection that an earlier app connection had used.
        Reused = "reused",
        New = "new",
    }
}

words! {
    /// The mode of a TLS handshake.
    Handshake {
        Full = "full",
        /// The handshake resumed an earlier session.
        Resumed = "resumed",
    }
}

words! {
    /// The state of COMMAND.
    CommandState {
        Running = "running",
        Stopped = "stopped",
        /// COMMAND has exited; its last bytes are being sent.
        Draining = "draining",
    }
}
