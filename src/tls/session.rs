//! Resumes TLS sessions. In a resumed handshake, the server sends no certificate and no signature
//! (RFC 8446 section 2.2), so both sides need less CPU time.
//!
//! native-tls gives no access to OpenSSL's connection object. So this module registers two
//! callbacks. OpenSSL calls the first callback when a handshake begins, and the second callback for
//! each session ticket from the server.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContextBuilder, SslRef, SslSession, SslSessionCacheMode};
use openssl::x509::{X509StoreContext, X509StoreContextRef};
use tokio::sync::SetOnce;
use tokio::time::Instant;

use super::raw;
use super::stream::Facts;

/// The longest time after a full handshake for which the launcher resumes sessions from this
/// handshake. After this time, the server must present its certificate again.
const FULL_HANDSHAKE_EVERY: Duration = Duration::from_secs(3600);
/// The number of failed resumptions in a row after which the launcher offers no session for the
/// time [`PAUSE`].
const FAILURES: u32 = 2;
const PAUSE: Duration = Duration::from_secs(600);

/// The latest TLS session with one server under one set of trust settings.
#[derive(Default)]
pub struct Sessions {
    known: Mutex<Known>,
    /// Set when connections no longer need to wait for the first session, because the first session
    /// has arrived, or because the wait has ended for another reason.
    pub wait_over: SetOnce<()>,
}

#[derive(Default)]
struct Known {
    latest: Option<Session>,
    /// The launcher stores only sessions from a full handshake that began after this time.
    after: Option<Instant>,
    /// The number of failed resumptions since the last successful resumption.
    failures: u32,
}

#[derive(Clone)]
struct Session {
    session: SslSession,
    /// The time of the latest full handshake before this session was issued. In a full handshake,
    /// the server presents its certificate.
    full_handshake: Instant,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Known {
    /// Returns the session to offer at the time `now`, or `None` if no stored session is recent
    /// enough.
    fn to_offer(&self, now: Instant) -> Option<&Session> {
        let within = |then: Instant, time| now.saturating_duration_since(then) < time;
        self.latest.as_ref().filter(|latest| within(latest.full_handshake, FULL_HANDSHAKE_EVERY))
    }
}

impl Sessions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the stored session. The launcher also ignores the sessions that the server sends
    /// later on connections that are open now.
    pub fn forget(&self) {
        let mut known = self.known();
        known.latest = None;
        known.after = known.after.max(Some(Instant::now()));
    }

    /// True if the next handshake offers a session.
    pub fn is_usable(&self) -> bool {
        self.known().to_offer(Instant::now()).is_some()
    }

    /// Makes the next handshake on this thread offer the latest session. The caller must begin the
    /// handshake before another task of this thread runs.
    pub fn offer(self: &Arc<Self>) -> (Watch<'_>, Arc<Facts>) {
        let began = Instant::now();
        let offered = self.known().to_offer(began).cloned();
        let offered_since = offered.as_ref().map(|offered| offered.full_handshake);
        let (sessions, facts) = (self.clone(), Arc::<Facts>::default());
        let connection = Connection { sessions, began, offered_since, facts: facts.clone() };
        TO_OFFER.set(Some((connection, offered.map(|offered| offered.session))));
        (Watch { sessions: self, offered_since }, facts)
    }
}

/// Watches a handshake. If the watch is dropped before [`Watch::succeeded`] is called, the
/// handshake has returned an error, timed out or been cancelled. Then the launcher forgets the
/// offered session, because the session may be the cause of the failure.
#[must_use]
pub struct Watch<'a> {
    sessions: &'a Sessions,
    /// The time of the latest full handshake before the offered session was issued; `None` if no
    /// session was offered.
    offered_since: Option<Instant>,
}

impl Watch<'_> {
    pub fn succeeded(mut self, resumed: bool) {
        self.offered_since = None;
        if resumed {
            self.sessions.known().failures = 0;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(since) = self.offered_since else { return };
        let mut known = self.sessions.known();
        // If several handshakes that offered the same session fail, only the first failure counts.
        if known.latest.take_if(|latest| latest.full_handshake <= since).is_some() {
            known.failures += 1;
            let pause = (known.failures >= FAILURES).then(|| Instant::now() + PAUSE);
            known.after = known.after.max(pause).max(Some(since));
        }
    }
}

/// The data that OpenSSL keeps with each connection: where to store the connection's sessions, and
/// how old these sessions are.
struct Connection {
    sessions: Arc<Sessions>,
    began: Instant,
    /// The time of the latest full handshake before the offered session was issued.
    offered_since: Option<Instant>,
    facts: Arc<Facts>,
}

impl Connection {
    /// Stores `session`. Each session goes back to a full handshake: the one of its connection or,
    /// if the connection was resumed, the one of the resumed session. Does nothing if this full
    /// handshake did not begin after [`Known::after`], or if the stored session goes back to a
    /// later one.
    fn keep(&self, session: SslSession, resumed: bool) {
        let inherited = self.offered_since.filter(|_| resumed);
        let full_handshake = inherited.unwrap_or(self.began);
        let mut known = self.sessions.known();
        let latest = known.latest.as_ref().map(|latest| latest.full_handshake);
        if known.after < Some(full_handshake) && latest <= Some(full_handshake) {
            known.latest = Some(Session { session, full_handshake });
        }
        // Setting the value fails only if the wait is already over, so ignore the error.
        let _ = self.sessions.wait_over.set(());
    }
}

thread_local! {
    /// The data for the next handshake on this thread, and the session that this handshake offers,
    /// if there is a session.
    static TO_OFFER: RefCell<Option<(Connection, Option<SslSession>)>> =
        const { RefCell::new(None) };
}

/// The index under which OpenSSL keeps a [`Connection`] for each TLS connection. `None` if OpenSSL
/// has no memory.
static INDEX: LazyLock<Option<Index<Ssl, Connection>>> = LazyLock::new(|| Ssl::new_ex_index().ok());

/// Makes the TLS connections of `context` resume sessions, and store new sessions in their
/// [`Sessions`].
///
/// # Errors
/// If OpenSSL has no memory.
pub fn resume_in(context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    let index = INDEX.ok_or_else(ErrorStack::get)?;
    raw::call_at_handshakes(context, begin_handshake);
    let ours = SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL;
    context.set_session_cache_mode(ours);
    context.set_new_session_callback(move |ssl, session| {
        let resumed = ssl.session_reused();
        let Some(connection) = ssl.ex_data(index) else { return };
        if !connection.facts.count_ticket() {
            raw::end_reading(ssl);
        } else if let Some(session) = raw::copy_of(&session) {
            connection.keep(session, resumed);
        }
    });
    Ok(())
}

/// Makes the handshake of `ssl` offer the session in [`TO_OFFER`]. OpenSSL calls this function when
/// the handshake begins. After this call, the launcher stores the sessions that the server sends.
fn begin_handshake(ssl: &mut SslRef) {
    let (Some(index), Some((connection, session))) = (*INDEX, TO_OFFER.take()) else { return };
    ssl.set_ex_data(index, connection);
    if let Some(session) = &session {
        // If OpenSSL rejects the session, the connection performs a full handshake.
        // SAFETY: a `Sessions` belongs to one connector, so the session comes from a connection
        // with the same context as this connection.
        let _ = unsafe { ssl.set_session(session) };
    }
}

/// Returns the facts about the connection on which the server has sent `chain`.
pub fn facts_of(chain: &X509StoreContextRef) -> Option<&Facts> {
    let ssl = chain.ex_data(X509StoreContext::ssl_idx().ok()?)?;
    Some(&ssl.ex_data((*INDEX)?)?.facts)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as ServerStream;

    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::ssl::{SslAcceptor, SslMethod, SslStream, SslVersion};
    use openssl::x509::X509;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tokio::task::spawn_blocking;
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::tls::{Connector, Pin, TlsStream, Trust};

    const MINUTE: Duration = Duration::from_secs(60);

    fn acceptor(newest: SslVersion) -> SslAcceptor {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&builder.build()).unwrap();
        acceptor.set_max_proto_version(Some(newest)).unwrap();
        acceptor.build()
    }

    fn pair() -> (UnixStream, ServerStream) {
        let (client, server) = ServerStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        (UnixStream::from_std(client).unwrap(), server)
    }

    fn connector(pins: Vec<Pin>) -> Arc<Connector> {
        Connector::new(Trust { pins, ..Trust::none() })
    }

    /// A server, a client, and the client's sessions with the server. The clock stands still until
    /// a test advances the clock.
    struct Scene {
        acceptor: SslAcceptor,
        connector: Arc<Connector>,
        sessions: Arc<Sessions>,
    }

    /// A connection on which the server has sent session tickets that the client has not read.
    struct Pair {
        client: TlsStream<UnixStream>,
        server: SslStream<ServerStream>,
    }

    impl Pair {
        /// Reads the session tickets and the byte after the tickets, then sends close_notify.
        /// Without close_notify, OpenSSL would not resume a TLS 1.2 session (SSL_set_shutdown(3)).
        async fn read(&mut self) {
            self.server.write_all(b"+").unwrap();
            assert_eq!(self.client.stream.read_u8().await.unwrap(), b'+');
            self.client.stream.shutdown().await.unwrap();
        }
    }

    impl Scene {
        fn new() -> Scene {
            let sessions = Arc::default();
            let (acceptor, connector) = (acceptor(SslVersion::TLS1_3), connector(Vec::new()));
            Scene { acceptor, connector, sessions }
        }

        async fn connect(&self) -> Pair {
            let (client, server) = pair();
            let acceptor = self.acceptor.clone();
            let server = spawn_blocking(move || acceptor.accept(server).unwrap());
            let client = self.connector.connect("redis.test", client, &self.sessions);
            let (client, server) = tokio::join!(client, server);
            Pair { client: client.unwrap(), server: server.unwrap() }
        }

        /// Cancels a handshake with a silent server after a second.
        async fn hang(&self) {
            let (client, _server) = pair();
            let handshake = self.connector.connect("redis.test", client, &self.sessions);
            assert!(timeout(MINUTE / 60, handshake).await.is_err());
        }

        /// Returns the field `full_handshake` of the session that the client would offer now.
        fn offered_since(&self) -> Option<Instant> {
            let known = self.sessions.known();
            known.to_offer(Instant::now()).map(|session| session.full_handshake)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_that_arrives_late_is_as_old_as_its_handshake() {
        let scene = Scene::new();
        let began = Instant::now();
        let mut connection = scene.connect().await;
        advance(59 * MINUTE).await;
        connection.read().await;
        assert_eq!(scene.offered_since(), Some(began));
        advance(MINUTE).await;
        assert_eq!(scene.offered_since(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tickets_after_a_resumption_expire_with_the_first_session() {
        for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
            tickets_inherit(version).await;
        }
    }

    async fn tickets_inherit(version: SslVersion) {
        let mut scene = Scene::new();
        scene.acceptor = acceptor(version);
        let began = Instant::now();
        scene.connect().await.read().await;
        for _ in 0..5 {
            advance(10 * MINUTE).await;
            let mut connection = scene.connect().await;
            assert!(connection.server.ssl().session_reused(), "{version:?}");
            connection.read().await;
            assert_eq!(scene.offered_since(), Some(began));
        }
        let mut late = scene.connect().await;
        advance(10 * MINUTE).await;
        late.read().await;
        assert_eq!(scene.offered_since(), None);
        // The next handshake is full: the server presents its certificate again.
        scene.connect().await.read().await;
        assert_eq!(scene.offered_since(), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_session_does_not_replace_a_newer_one() {
        let scene = Scene::new();
        let mut older = scene.connect().await;
        advance(MINUTE).await;
        let newer = Instant::now();
        scene.connect().await.read().await;
        older.read().await;
        assert_eq!(scene.offered_since(), Some(newer));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_stays_usable_after_its_connection_breaks() {
        let scene = Scene::new();
        let mut first = scene.connect().await;
        first.server.write_all(b"+").unwrap();
        assert_eq!(first.client.stream.read_u8().await.unwrap(), b'+');
        // Close the connection without close_notify, as after a reset.
        drop(first);
        let second = scene.connect().await;
        assert!(second.server.ssl().session_reused());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failed_handshake_the_next_handshake_is_full() {
        let scene = Scene::new();
        let mut late = scene.connect().await;
        scene.connect().await.read().await;
        assert!(scene.offered_since().is_some());
        scene.hang().await;
        assert_eq!(scene.offered_since(), None);
        // The client does not store a ticket of an older connection either.
        late.read().await;
        assert_eq!(scene.offered_since(), None);
        let again = Instant::now();
        scene.connect().await.read().await;
        assert_eq!(scene.offered_since(), Some(again));
    }

    #[tokio::test(start_paused = true)]
    async fn after_two_failed_resumptions_none_is_offered_for_ten_minutes() {
        let scene = Scene::new();
        // A successful resumption resets the count of failed resumptions.
        for resumed in [false, true, false] {
            advance(MINUTE).await;
            scene.connect().await.read().await;
            if resumed {
                scene.connect().await.read().await;
            }
            assert!(scene.offered_since().is_some());
            scene.hang().await;
        }
        scene.connect().await.read().await;
        assert_eq!(scene.offered_since(), None);
        advance(PAUSE + MINUTE).await;
        scene.connect().await.read().await;
        assert!(scene.offered_since().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_with_an_unpinned_server_is_not_stored() {
        let mut scene = Scene::new();
        scene.acceptor = acceptor(SslVersion::TLS1_2);
        // A TLS 1.2 server sends its session during the handshake.
        scene.connect().await;
        assert!(scene.offered_since().is_some());
        scene.sessions = Arc::default();
        scene.connector = connector(vec![Pin::of(b"another key")]);
        let (client, server) = pair();
        let acceptor = scene.acceptor.clone();
        let server = spawn_blocking(move || acceptor.accept(server).map(drop).is_ok());
        let client = scene.connector.connect("redis.test", client, &scene.sessions);
        let (client, server) = tokio::join!(client, server);
        assert!(client.is_err() && server.unwrap());
        assert_eq!(scene.offered_since(), None);
    }
}
