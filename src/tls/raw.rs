//! Safe functions that native-tls and the openssl crate lack.
//!
//! native-tls hides its OpenSSL context. So [`catch`] obtains the context when OpenSSL creates it:
//! for each new context, OpenSSL calls the function that was registered with a data index
//! (CRYPTO_get_ex_new_index(3)).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::sync::OnceLock;

use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use openssl::ssl::{SslContextBuilder, SslRef, SslSession, SslSessionRef};
use openssl::stack::StackRef;
use openssl::x509::{X509, X509StoreContextRef};
use openssl_sys as ffi;

/// SSL_CTRL_SET_MAX_CERT_LIST and SSL_CB_HANDSHAKE_START of <openssl/ssl.h>.
const SET_MAX_CERT_LIST: c_int = 51;
const HANDSHAKE_START: c_int = 0x10;

type InfoCallback = unsafe extern "C" fn(*const ffi::SSL, c_int, c_int);
type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;

// Functions that openssl-sys lacks.
unsafe extern "C" {
    fn SSL_CTX_set_info_callback(context: *mut ffi::SSL_CTX, callback: Option<InfoCallback>);
    fn SSL_CTX_set_cert_verify_callback(
        context: *mut ffi::SSL_CTX,
        callback: Option<VerifyCallback>,
        argument: *mut c_void,
    );
    fn SSL_SESSION_dup(session: *const ffi::SSL_SESSION) -> *mut ffi::SSL_SESSION;
    fn X509_STORE_CTX_get0_untrusted(
        context: *const ffi::X509_STORE_CTX,
    ) -> *mut ffi::stack_st_X509;
}

thread_local! {
    /// The contexts that OpenSSL has created on this thread since [`catch`] began; `None` if
    /// `catch` is not running.
    static CAUGHT: RefCell<Option<Vec<SslContextBuilder>>> = const { RefCell::new(None) };
}

/// Runs `build`. Returns the result of `build` and the contexts that `build` created. The caller
/// can change the contexts until the first connection is made.
///
/// # Errors
/// If `build` fails.
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
        // SAFETY: OpenSSL calls this with the context that it is creating, whose reference count is
        // already set (SSL_CTX_new in OpenSSL's ssl_lib.c). The builder owns the added reference,
        // so the context stays alive even if native-tls drops its own.
        unsafe {
            if ffi::SSL_CTX_up_ref(context) == 1 {
                caught.push(SslContextBuilder::from_ptr(context));
            }
        }
    });
}

/// Sets the longest certificate chain that a peer may send, in bytes.
pub fn set_longest_chain(context: &mut SslContextBuilder, bytes: usize) {
    let bytes = c_long::try_from(bytes).unwrap_or(c_long::MAX);
    // SAFETY: `context` keeps the SSL_CTX alive.
    unsafe { ffi::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, bytes, ptr::null_mut()) };
}

/// Replaces OpenSSL's verification of a server's certificate chain.
pub trait Verifier {
    /// Returns whether to accept the chain. Sets the chain's error, which becomes OpenSSL's
    /// verification result.
    fn verify(chain: &mut X509StoreContextRef) -> bool;
}

/// Makes the connections of a context verify chains with `V`.
pub fn verify_by<V: Verifier>(context: &mut SslContextBuilder) {
    // SAFETY: `context` keeps the SSL_CTX alive; the callback lives as long as the program, and has
    // no argument.
    unsafe {
        SSL_CTX_set_cert_verify_callback(context.as_ptr(), Some(verify::<V>), ptr::null_mut());
    }
}

unsafe extern "C" fn verify<V: Verifier>(chain: *mut ffi::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls this with a live object that is not used elsewhere during the call.
    V::verify(unsafe { X509StoreContextRef::from_ptr_mut(chain) }).into()
}

/// The certificates that the server has sent, its own certificate first.
pub fn sent_by_server(chain: &X509StoreContextRef) -> Option<&StackRef<X509>> {
    // SAFETY: `chain` is alive, and keeps the certificates alive as long as itself.
    unsafe {
        let sent = X509_STORE_CTX_get0_untrusted(chain.as_ptr());
        (!sent.is_null()).then(|| StackRef::from_ptr(sent))
    }
}

/// Observes the handshakes of a context's connections.
pub trait Observer {
    /// Called when a handshake begins, before OpenSSL sends a byte.
    fn begins(ssl: &mut SslRef);
}

/// Makes `O` observe the handshakes of a context's connections.
pub fn observe_by<O: Observer>(context: &mut SslContextBuilder) {
    // SAFETY: `context` keeps the SSL_CTX alive, and the callback lives as long as the program.
    unsafe { SSL_CTX_set_info_callback(context.as_ptr(), Some(observe::<O>)) };
}

unsafe extern "C" fn observe<O: Observer>(ssl: *const ffi::SSL, at: c_int, _: c_int) {
    if at == HANDSHAKE_START {
        // SAFETY: OpenSSL calls this with a live object, on the thread that uses the object. The
        // pointer is declared const, but OpenSSL allows this callback to change the connection.
        O::begins(unsafe { SslRef::from_ptr_mut(ssl.cast_mut()) });
    }
}

/// Makes OpenSSL discard the peer's records that it has read, and report the end of the stream to
/// readers.
pub fn end_reading(ssl: &mut SslRef) {
    // SAFETY: `ssl` is alive.
    unsafe { ffi::SSL_set_shutdown(ssl.as_ptr(), ffi::SSL_RECEIVED_SHUTDOWN) };
}

/// Copies a session. If a connection ends without close_notify, `SSL_free` makes the connection's
/// session unusable, but not the copy. `None` if OpenSSL has no memory.
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

    /// How often [`catch`] has caught `context` so far.
    fn caught(context: &SslContext) -> usize {
        let is_it = |builder: &&SslContextBuilder| builder.as_ptr() == context.as_ptr();
        CAUGHT.with_borrow(|caught| {
            caught.as_deref().unwrap_or_default().iter().filter(is_it).count()
        })
    }

    #[test]
    fn caught_context_stays_alive_after_its_creator_fails() {
        let failed = catch(|| {
            // native-tls creates and drops a context if OpenSSL refuses a setting.
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
