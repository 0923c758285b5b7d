//! TLS sessions that are resumed: a connection to a server that is known spares both sides the certificate, its
//! check and the server's signature (RFC 8446 section 2.2).
//!
//! native-tls has no words for this, so OpenSSL is asked directly, by its documented hooks: in the [`super::context`]
//! the session is offered when a handshake starts (SSL_CTX_set_info_callback(3)), and tickets are collected
//! as the server sends them (SSL_CTX_sess_set_new_cb(3)).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_void};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use foreign_types_shared::ForeignType;
use openssl::ssl::SslSession;
use openssl_sys as ffi;

use super::context::NewContext;

/// How long sessions may follow from one another until the server has to show its certificate again.
const FULL_HANDSHAKE_EVERY: Duration = Duration::from_secs(3600);
/// SSL_CB_HANDSHAKE_START of <openssl/ssl.h>.
const HANDSHAKE_START: c_int = 0x10;

unsafe extern "C" {
    /// SSL_CTX_set_info_callback(3), which openssl-sys leaves out.
    fn SSL_CTX_set_info_callback(
        context: *mut ffi::SSL_CTX,
        callback: Option<unsafe extern "C" fn(ssl: *const ffi::SSL, at: c_int, value: c_int)>,
    );
}

/// The latest session with one server, for one set of trust settings.
#[derive(Default)]
pub struct Sessions {
    latest: Mutex<Latest>,
}

#[derive(Default)]
struct Latest {
    session: Option<SslSession>,
    /// When the server last showed its certificate.
    full_handshake: Option<Instant>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

impl Sessions {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a session that the next handshake offers.
    pub fn any(&self) -> bool {
        self.to_offer().is_some()
    }

    pub fn forget(&self) {
        self.latest().session = None;
    }

    fn to_offer(&self) -> Option<SslSession> {
        let latest = self.latest();
        let recent =
            latest.full_handshake.is_some_and(|then| then.elapsed() < FULL_HANDSHAKE_EVERY);
        latest.session.clone().filter(|_| recent)
    }

    fn keep(&self, session: SslSession, resumed: bool) {
        let mut latest = self.latest();
        latest.session = Some(session);
        if !resumed {
            latest.full_handshake = Some(Instant::now());
        }
    }
}

thread_local! {
    /// Where the handshake that is polled now belongs.
    static CURRENT: RefCell<Option<Arc<Sessions>>> = const { RefCell::new(None) };
}

/// Has a context's connections resume sessions, those of [`with_sessions`].
pub fn resume_in(context: &NewContext) {
    // SAFETY: `context` keeps it alive, and no connection uses it yet; the callbacks live as long as the program.
    unsafe {
        let mode = ffi::SSL_SESS_CACHE_CLIENT | ffi::SSL_SESS_CACHE_NO_INTERNAL;
        ffi::SSL_CTX_set_session_cache_mode(context.as_ptr(), mode);
        ffi::SSL_CTX_sess_set_new_cb(context.as_ptr(), Some(keep_session));
        SSL_CTX_set_info_callback(context.as_ptr(), Some(offer_session));
    }
}

/// A handshake that resumes the latest of `sessions`, if it can, and keeps those that it is given.
pub async fn with_sessions<T>(sessions: &Arc<Sessions>, handshake: impl Future<Output = T>) -> T {
    let mut handshake = pin!(handshake);
    poll_fn(|cx| {
        CURRENT.set(Some(sessions.clone()));
        let polled = handshake.as_mut().poll(cx);
        CURRENT.set(None);
        polled
    })
    .await
}

/// Where a connection's [`Sessions`] hang at its SSL object.
fn index() -> c_int {
    static INDEX: OnceLock<c_int> = OnceLock::new();
    // SAFETY: registers a callback that lives as long as the program.
    *INDEX.get_or_init(|| unsafe {
        ffi::SSL_get_ex_new_index(0, ptr::null_mut(), None, None, Some(release_sessions))
    })
}

unsafe extern "C" fn release_sessions(
    _: *mut c_void,
    sessions: *mut c_void,
    _: *mut ffi::CRYPTO_EX_DATA,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    if !sessions.is_null() {
        // SAFETY: `offer_session` put it there with `into_raw`; the SSL object is being freed.
        drop(unsafe { Arc::from_raw(sessions.cast::<Sessions>()) });
    }
}

unsafe extern "C" fn offer_session(ssl: *const ffi::SSL, at: c_int, _: c_int) {
    if at & HANDSHAKE_START == 0 {
        return;
    }
    let Some(sessions) = CURRENT.take() else { return };
    // SAFETY: OpenSSL calls this with a live object whose handshake begins on this thread; it takes a reference of its own
    // to the session, and `release_sessions` gives back what hangs at the object.
    unsafe {
        let ssl = ssl.cast_mut();
        if !ffi::SSL_get_ex_data(ssl, index()).is_null() {
            return;
        }
        if let Some(session) = sessions.to_offer() {
            // Refused, it is a full handshake.
            ffi::SSL_set_session(ssl, session.as_ptr());
        }
        let hung = Arc::into_raw(sessions).cast_mut();
        if ffi::SSL_set_ex_data(ssl, index(), hung.cast()) != 1 {
            drop(Arc::from_raw(hung));
        }
    }
}

unsafe extern "C" fn keep_session(ssl: *mut ffi::SSL, session: *mut ffi::SSL_SESSION) -> c_int {
    // SAFETY: OpenSSL calls this with live objects; the reference to the session is ours if we return 1, and what hangs at
    // the SSL object stays there until that is freed.
    unsafe {
        let sessions = ffi::SSL_get_ex_data(ssl, index()).cast::<Sessions>();
        let Some(sessions) = sessions.as_ref() else { return 0 };
        sessions.keep(SslSession::from_ptr(session), ffi::SSL_session_reused(ssl) == 1);
    }
    1
}
