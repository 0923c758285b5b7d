//! TLS sessions that are resumed: a connection to a known server spares both sides the
//! certificate, its verification and the server's signature (RFC 8446 section 2.2).
//!
//! native-tls gives no access to OpenSSL's object for a connection, so OpenSSL's callbacks do this:
//! they offer the session when a handshake starts, and collect tickets as the server sends them.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::ssl::{Ssl, SslContextBuilder, SslRef, SslSession, SslSessionCacheMode};
use tokio::sync::SetOnce;
use tokio::time::Instant;

use super::raw::{self, Observer};
use super::stream::Facts;

/// How long sessions may follow from one another until the server has to show its certificate
/// again.
const FULL_HANDSHAKE_EVERY: Duration = Duration::from_secs(3600);
/// So many sessions in a row that were of no use, and the server is offered none for a while.
const FAILURES: u32 = 2;
/// For how long.
const NONE_OFFERED: Duration = Duration::from_secs(600);

/// The latest session with one server, for one set of trust settings.
#[derive(Default)]
pub struct Sessions {
    known: Mutex<Known>,
    /// Set with the first session.
    first: SetOnce<()>,
}

#[derive(Default)]
struct Known {
    latest: Option<Session>,
    /// Sessions that go back to a full handshake of this time, or before, are not taken in any
    /// more.
    forgotten: Option<Instant>,
    /// Sessions that failed since one was resumed, and when the last of them did.
    failures: u32,
    failed: Option<Instant>,
}

/// A session, and when the full handshake was that it goes back to, in which the server showed its
/// certificate.
#[derive(Clone)]
struct Session {
    session: SslSession,
    full_handshake: Instant,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Known {
    fn to_offer(&self, now: Instant) -> Option<&Session> {
        let within = |then: Instant, time| now.saturating_duration_since(then) < time;
        let useless = self.failures >= FAILURES
            && self.failed.is_some_and(|failed| within(failed, NONE_OFFERED));
        let latest = self.latest.as_ref();
        latest.filter(|latest| !useless && within(latest.full_handshake, FULL_HANDSHAKE_EVERY))
    }

    fn keep(&mut self, session: Session) {
        let since = session.full_handshake;
        let outdated = self.latest.as_ref().is_some_and(|latest| latest.full_handshake > since);
        if !outdated && self.forgotten.is_none_or(|forgotten| forgotten < since) {
            self.latest = Some(session);
        }
    }

    /// Forgets what goes back to a full handshake of `until`, or before; says whether there was
    /// something.
    fn forget(&mut self, until: Instant) -> bool {
        self.forgotten = self.forgotten.max(Some(until));
        self.latest.take_if(|latest| latest.full_handshake <= until).is_some()
    }
}

impl Sessions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all sessions, those included that open connections may still be given.
    pub fn forget(&self) {
        self.known().forget(Instant::now());
    }

    /// Waits for the first session.
    pub async fn first(&self) {
        self.first.wait().await;
    }

    /// What the next handshake offers, and the watch over it.
    pub fn offer(self: &Arc<Self>) -> (Offer, Watch) {
        let began = Instant::now();
        let offered = self.known().to_offer(began).cloned();
        let offered_since = offered.as_ref().map(|offered| offered.full_handshake);
        let (sessions, facts) = (self.clone(), Arc::default());
        let connection = Connection { sessions, began, offered_since, facts };
        let session = offered.map(|offered| offered.session);
        let (sessions, suspected_since, has_failed) = (self.clone(), offered_since, false);
        let watch = Watch { sessions, began, suspected_since, has_failed };
        (Offer { connection, session }, watch)
    }
}

/// A handshake that is given up sooner says nothing about its session: its app has left.
const HUNG: Duration = Duration::from_secs(1);

/// What one handshake offers.
pub struct Offer {
    connection: Connection,
    session: Option<SslSession>,
}

impl Offer {
    /// Filled in by the handshake that makes this offer, and by its connection.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.connection.facts
    }

    /// Makes the handshake of `ssl` offer the session, and collects the sessions that the server
    /// sends.
    fn put_into(self, ssl: &mut SslRef) {
        let Ok(index) = index() else { return };
        self.connection.facts.begin();
        ssl.set_ex_data(index, self.connection);
        if let Some(session) = &self.session {
            // If OpenSSL does not take the session, this is a full handshake.
            // SAFETY: a `Sessions` belongs to one connector, so the session comes from a connection
            // with the same context as this one.
            let _ = unsafe { ssl.set_session(session) };
        }
    }
}

/// What each connection carries: where its sessions go, and how old they are.
struct Connection {
    sessions: Arc<Sessions>,
    began: Instant,
    /// When the full handshake took place that the offered session goes back to.
    offered_since: Option<Instant>,
    facts: Arc<Facts>,
}

impl Connection {
    /// Stores a session, as old as the certificate that this connection relies on.
    fn keep(&self, session: SslSession, resumed: bool) {
        let inherited = self.offered_since.filter(|_| resumed);
        let full_handshake = inherited.unwrap_or(self.began);
        self.sessions.known().keep(Session { session, full_handshake });
        // Later sessions find it set.
        let _ = self.sessions.first.set(());
    }
}

/// Watches over a handshake that may offer a session. Unless the session is cleared, it is
/// forgotten, also when the handshake is dropped because its time is up.
#[must_use]
pub struct Watch {
    sessions: Arc<Sessions>,
    began: Instant,
    suspected_since: Option<Instant>,
    has_failed: bool,
}

impl Watch {
    /// Whether a session was offered.
    pub fn suspects(&self) -> bool {
        self.suspected_since.is_some()
    }

    /// The session did no harm.
    pub fn clear(mut self) {
        self.suspected_since = None;
    }

    /// The handshake has failed, and the session may be the cause.
    pub fn failed(mut self) {
        self.has_failed = true;
    }

    /// The server resumed the session.
    pub fn resumed(self) {
        self.sessions.known().failures = 0;
        self.clear();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(since) = self.suspected_since else { return };
        let mut known = self.sessions.known();
        // Of several handshakes that offered the same session, one counts.
        let counts = self.has_failed || self.began.elapsed() >= HUNG;
        if known.forget(since) && counts {
            known.failures = known.failures.saturating_add(1);
            known.failed = Some(Instant::now());
        }
    }
}

thread_local! {
    /// What the handshake that is being polled offers, until it begins.
    static TO_OFFER: RefCell<Option<Offer>> = const { RefCell::new(None) };
}

/// Runs a handshake that makes the offer, with a connector whose context is set up by
/// [`resume_in`].
pub async fn offering<T>(offer: Offer, handshake: impl Future<Output = T>) -> T {
    let mut handshake = pin!(handshake);
    let mut offer = Some(offer);
    poll_fn(|cx| {
        TO_OFFER.set(offer.take());
        let polled = handshake.as_mut().poll(cx);
        offer = TO_OFFER.take();
        polled
    })
    .await
}

/// Makes the connections of a context resume sessions, and hand theirs to the [`Sessions`] of
/// each.
///
/// # Errors
/// When OpenSSL has no memory.
pub fn resume_in(context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    let index = index()?;
    raw::observe_by::<Handshakes>(context);
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

struct Handshakes;

impl Observer for Handshakes {
    fn begins(ssl: &mut SslRef) {
        if let Some(offer) = TO_OFFER.take() {
            offer.put_into(ssl);
        }
    }

    fn pauses(ssl: &mut SslRef) {
        if let Some(connection) = INDEX.get().and_then(|index| ssl.ex_data(*index)) {
            connection.facts.update(ssl);
        }
    }
}

static INDEX: OnceLock<Index<Ssl, Connection>> = OnceLock::new();

/// Where OpenSSL keeps a [`Connection`].
fn index() -> Result<Index<Ssl, Connection>, ErrorStack> {
    match INDEX.get() {
        Some(index) => Ok(*index),
        None => Ssl::new_ex_index().map(|index| *INDEX.get_or_init(|| index)),
    }
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

    /// The two ends of a connection.
    fn pair() -> (UnixStream, ServerStream) {
        let (client, server) = ServerStream::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        (UnixStream::from_std(client).unwrap(), server)
    }

    fn connector(pins: Vec<Pin>) -> Arc<Connector> {
        Connector::new(Trust { pins, ..Trust::none() })
    }

    /// A server, a client of it, and the sessions between them. Time stands still unless it is told
    /// to go on.
    struct Scene {
        acceptor: SslAcceptor,
        connector: Arc<Connector>,
        sessions: Arc<Sessions>,
    }

    /// A connection over which the server has sent its tickets, but which nobody has read yet.
    struct Pair {
        client: TlsStream<UnixStream>,
        server: SslStream<ServerStream>,
    }

    impl Pair {
        /// Reads what the server says, behind its tickets, and takes leave: OpenSSL resumes no
        /// session of TLS 1.2 whose connection broke off (SSL_set_shutdown(3)).
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

        /// A handshake that a silent server never ends, and that is given up.
        async fn hang(&self) {
            let (client, _server) = pair();
            let handshake = self.connector.connect("redis.test", client, &self.sessions);
            assert!(timeout(MINUTE / 60, handshake).await.is_err());
        }

        /// When the full handshake was that the session goes back to which would be offered now.
        fn offered_since(&self) -> Option<Instant> {
            let known = self.sessions.known();
            known.to_offer(Instant::now()).map(|session| session.full_handshake)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_ticket_is_as_old_as_the_handshake_of_its_connection() {
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
    async fn resumed_tickets_age_from_the_full_handshake() {
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
        // Then the server shows its certificate again.
        scene.connect().await.read().await;
        assert_eq!(scene.offered_since(), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_does_not_replace_one_of_a_later_full_handshake() {
        let scene = Scene::new();
        let mut older = scene.connect().await;
        advance(MINUTE).await;
        let newer = Instant::now();
        scene.connect().await.read().await;
        older.read().await;
        assert_eq!(scene.offered_since(), Some(newer));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_handshake_forgets_the_session_it_offered() {
        let scene = Scene::new();
        let mut late = scene.connect().await;
        scene.connect().await.read().await;
        assert!(scene.offered_since().is_some());
        scene.hang().await;
        assert_eq!(scene.offered_since(), None);
        // Nor does one come back that is as old.
        late.read().await;
        assert_eq!(scene.offered_since(), None);
        let again = Instant::now();
        scene.connect().await.read().await;
        assert_eq!(scene.offered_since(), Some(again));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_offered_nothing_forgets_nothing() {
        let scene = Scene::new();
        let began = Instant::now();
        let mut connection = scene.connect().await;
        scene.hang().await;
        connection.read().await;
        assert_eq!(scene.offered_since(), Some(began));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_outlives_a_connection_that_breaks_off() {
        let scene = Scene::new();
        let mut first = scene.connect().await;
        first.server.write_all(b"+").unwrap();
        assert_eq!(first.client.stream.read_u8().await.unwrap(), b'+');
        // No close_notify: as after a reset, or when an idle connection is dropped.
        drop(first);
        let second = scene.connect().await;
        assert!(second.server.ssl().session_reused());
    }

    #[tokio::test(start_paused = true)]
    async fn apps_that_give_up_soon_do_not_end_resumption() {
        let scene = Scene::new();
        for _ in 0..3 {
            scene.connect().await.read().await;
            let (client, _server) = pair();
            let handshake = scene.connector.connect("redis.test", client, &scene.sessions);
            assert!(timeout(HUNG / 2, handshake).await.is_err());
        }
        scene.connect().await.read().await;
        assert!(scene.offered_since().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn after_two_failed_resumptions_none_is_offered_for_ten_minutes() {
        let scene = Scene::new();
        // One that was resumed in between makes good for it.
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
        advance(NONE_OFFERED).await;
        assert!(scene.offered_since().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_of_a_server_with_an_unpinned_key_is_not_kept() {
        let mut scene = Scene::new();
        scene.acceptor = acceptor(SslVersion::TLS1_2);
        // TLS 1.2 gives it in the handshake.
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
