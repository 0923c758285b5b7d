//! Safe functions for what native-tls and the openssl crate lack.
//!
//! native-tls hides its context, so [`catch`] takes it when OpenSSL makes it: OpenSSL then calls
//! everybody who has registered for data in contexts (CRYPTO_get_ex_new_index(3)).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::sync::OnceLock;

use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use openssl::ssl::{SslContextBuilder, SslRef, SslSession, SslSessionRef};
use openssl::x509::{X509Ref, X509StoreContextRef};
use openssl_sys as ffi;

/// SSL_CTRL_SET_MAX_CERT_LIST, SSL_CB_HANDSHAKE_START and SSL_CB_CONNECT_EXIT of <openssl/ssl.h>.
const SET_MAX_CERT_LIST: c_int = 51;
const HANDSHAKE_START: c_int = 0x10;
const CONNECT_EXIT: c_int = 0x1002;

type InfoCallback = unsafe extern "C" fn(*const ffi::SSL, c_int, c_int);
type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;

// What openssl-sys lacks.
unsafe extern "C" {
    fn SSL_CTX_set_info_callback(context: *mut ffi::SSL_CTX, callback: Option<InfoCallback>);
    fn SSL_CTX_set_cert_verify_callback(
        context: *mut ffi::SSL_CTX,
        callback: Option<VerifyCallback>,
        argument: *mut c_void,
    );
    fn SSL_SESSION_dup(session: *const ffi::SSL_SESSION) -> *mut ffi::SSL_SESSION;
    fn X509_STORE_CTX_get0_cert(context: *const ffi::X509_STORE_CTX) -> *mut ffi::X509;
}

thread_local! {
    /// The contexts that OpenSSL has made on this thread since [`catch`] began; `None`: it is not
    /// running.
    static CAUGHT: RefCell<Option<Vec<SslContextBuilder>>> = const { RefCell::new(None) };
}

/// Runs `build`, and returns the contexts that it made as well. They can be set up until the first
/// connection is made with the result.
///
/// # Errors
/// Those of `build`.
pub fn catch<T, E>(build: impl FnOnce() -> Result<T, E>) -> Result<(T, Vec<SslContextBuilder>), E> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    // SAFETY: the callback lives as long as the program, and has no argument.
    REGISTERED.get_or_init(|| unsafe {
        ffi::SSL_CTX_get_ex_new_index(0, ptr::null_mut(), Some(catch_context), None, None)
    });
    CAUGHT.set(Some(Vec::new()));
    let built = build();
    let caught = CAUGHT.take().unwrap_or_default();
    Ok((built?, caught))
}

unsafe extern "C" fn catch_context(
    parent: *mut c_void,
    _: *mut c_void,
    _: *mut ffi::CRYPTO_EX_DATA,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    CAUGHT.with_borrow_mut(|caught| {
        let Some(caught) = caught else { return };
        let context = parent.cast::<ffi::SSL_CTX>();
        // SAFETY: OpenSSL calls this with the context that it is making, whose reference count is
        // already set (SSL_CTX_new in OpenSSL's ssl_lib.c). The builder owns the added reference,
        // which keeps the context alive whatever native-tls does with its own.
        unsafe {
            if ffi::SSL_CTX_up_ref(context) == 1 {
                caught.push(SslContextBuilder::from_ptr(context));
            }
        }
    });
}

/// Limits the certificate chain that a peer may send.
pub fn set_longest_chain(context: &mut SslContextBuilder, bytes: usize) {
    let bytes = c_long::try_from(bytes).unwrap_or(c_long::MAX);
    // SAFETY: `context` keeps the SSL_CTX alive.
    unsafe { ffi::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, bytes, ptr::null_mut()) };
}

/// Verifies a server's certificate chain, in place of OpenSSL's own verification.
pub trait Verifier {
    /// Whether to accept the chain. Sets the chain's error, which is OpenSSL's verdict.
    fn verify(chain: &mut X509StoreContextRef) -> bool;
}

/// Makes `V` verify the chains of a context's connections.
pub fn verify_by<V: Verifier>(context: &mut SslContextBuilder) {
    // SAFETY: `context` keeps the SSL_CTX alive; the callback lives as long as the program, and has
    // no argument.
    unsafe {
        SSL_CTX_set_cert_verify_callback(context.as_ptr(), Some(verify::<V>), ptr::null_mut());
    }
}

unsafe extern "C" fn verify<V: Verifier>(chain: *mut ffi::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls this with a live object that nobody else uses meanwhile.
    V::verify(unsafe { X509StoreContextRef::from_ptr_mut(chain) }).into()
}

/// The certificate that is to be verified, first in its chain.
pub fn first_of(chain: &X509StoreContextRef) -> Option<&X509Ref> {
    // SAFETY: the chain is alive, and keeps the certificate alive as long as itself.
    unsafe {
        let certificate = X509_STORE_CTX_get0_cert(chain.as_ptr());
        (!certificate.is_null()).then(|| X509Ref::from_ptr(certificate))
    }
}

/// Follows the handshakes of a context's connections.
pub trait Observer {
    /// A handshake begins. Nothing has been sent.
    fn begins(ssl: &mut SslRef);
    /// OpenSSL has done what it can for now: the handshake waits for the peer, has failed, or is
    /// done. After the handshake OpenSSL calls this for further messages, such as session tickets.
    fn pauses(ssl: &mut SslRef);
}

/// Makes `O` follow the handshakes of a context's connections.
pub fn observe_by<O: Observer>(context: &mut SslContextBuilder) {
    // SAFETY: `context` keeps the SSL_CTX alive, and the callback lives as long as the program.
    unsafe { SSL_CTX_set_info_callback(context.as_ptr(), Some(observe::<O>)) };
}

unsafe extern "C" fn observe<O: Observer>(ssl: *const ffi::SSL, at: c_int, _: c_int) {
    // SAFETY: OpenSSL calls this with a live object, on the thread that uses it. OpenSSL declares
    // the pointer const, but handshakes are changed in this callback by design.
    let ssl = unsafe { SslRef::from_ptr_mut(ssl.cast_mut()) };
    match at {
        HANDSHAKE_START => O::begins(ssl),
        CONNECT_EXIT => O::pauses(ssl),
        _ => {}
    }
}

/// Makes OpenSSL discard what it has of the peer's records, and end reading.
pub fn end_reading(ssl: &mut SslRef) {
    // SAFETY: `ssl` is alive.
    unsafe { ffi::SSL_set_shutdown(ssl.as_ptr(), ffi::SSL_RECEIVED_SHUTDOWN) };
}

/// A copy of a session that does not share its fate: OpenSSL makes the session of a connection that
/// ends without close_notify unusable, in `SSL_free`. `None`: there is no memory.
pub fn copy_of(session: &SslSessionRef) -> Option<SslSession> {
    // SAFETY: `session` is alive, and the copy belongs to the caller alone.
    unsafe {
        let copy = SSL_SESSION_dup(session.as_ptr());
        (!copy.is_null()).then(|| SslSession::from_ptr(copy))
    }
}

#[cfg(test)]
mod tests {
    use openssl::error::ErrorStack;
    use openssl::ssl::{SslContext, SslMethod};

    use super::*;

    fn make() -> Result<SslContext, ErrorStack> {
        SslContextBuilder::new(SslMethod::tls()).map(SslContextBuilder::build)
    }

    /// How often `context` has been caught, while [`catch`] is running.
    fn caught(context: &SslContext) -> usize {
        let is_it = |builder: &&SslContextBuilder| builder.as_ptr() == context.as_ptr();
        CAUGHT.with_borrow(|caught| {
            caught.as_deref().unwrap_or_default().iter().filter(is_it).count()
        })
    }

    #[test]
    fn context_whose_building_fails_outlives_its_maker() {
        let failed = catch(|| {
            // As native-tls does when OpenSSL refuses a setting: made, and dropped.
            drop(make().unwrap());
            CAUGHT.with_borrow_mut(|caught| {
                let context = &mut caught.as_mut().unwrap()[0];
                context.set_cipher_list("DEFAULT").unwrap();
            });
            Err::<(), _>("refused")
        });
        assert!(matches!(failed, Err("refused")));
    }

    #[test]
    fn context_is_caught_only_while_catching() {
        let (context, builders) = catch(|| {
            let context = make()?;
            assert_eq!(caught(&context), 1);
            Ok::<_, ErrorStack>(context)
        })
        .unwrap();
        assert_eq!((builders.len(), builders[0].as_ptr()), (1, context.as_ptr()));
        assert_eq!(caught(&context), 0);
        assert_eq!(caught(&make().unwrap()), 0);
    }
}
