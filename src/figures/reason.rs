//! The words by which ends, failures and sources of connections are told apart: labels of metrics,
//! and part of log lines and pages.

/// Declares an enum whose variants have a word each, in the order in which they are shown.
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
            pub const ALL: &[$name] = &[$($name::$variant,)+];
            pub const COUNT: usize = Self::ALL.len();
            /// In the same order.
            pub const WORDS: [&str; Self::COUNT] = [$($word,)+];

            pub const fn word(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }
    };
}

words! {
    /// Why a connection of the app's ended that had reached Redis, or that was no failure of
    /// Redis's.
    CloseReason {
        /// Both sides closed, or the app spoke TLS itself.
        Closed = "closed",
        /// Nothing moved for the idle timeout.
        Idle = "idle",
        AppReset = "app_reset",
        RedisReset = "redis_reset",
        /// It was still open when the drain was over.
        Drain = "drain",
    }
}

words! {
    /// Why a connection of the app's got no connection to Redis.
    FailureReason {
        Dns = "dns",
        TcpRefused = "tcp_refused",
        TcpTimeout = "tcp_timeout",
        TcpOther = "tcp_other",
        /// The server closed the connection in the handshake.
        TlsEof = "tls_eof",
        TlsTimeout = "tls_timeout",
        NoTls = "no_tls",
        Certificate = "certificate",
        Pin = "pin",
        ClientCertificate = "client_certificate",
        TlsVersion = "tls_version",
        TlsOther = "tls_other",
        /// Of the process, or of the system.
        Descriptors = "descriptors",
        /// The system refuses to start a thread for the name lookup.
        Threads = "threads",
        /// None of the limited number became free in time, or its turn to make one did not come.
        QueueTimeout = "queue_timeout",
        Internal = "internal",
    }
}

words! {
    /// Where the connection to Redis came from that a connection of the app's got.
    PoolResult {
        /// The app had used and closed it before.
        Reused = "reused",
        /// It was made beforehand.
        Spare = "spare",
        New = "new",
    }
}
