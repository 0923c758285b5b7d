//! Wraps functions of OpenSSL that native-tls and the openssl crate lack, so that other modules can
//! call the functions without `unsafe`.
//!
//! native-tls hides its OpenSSL context. But OpenSSL can call a function for each new context, and
//! passes the context to this function. [`catch`] registers such a function, by the call that
//! reserves an index for a program's own data (CRYPTO_get_ex_new_index(3)).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_long, c_void};
use std::mem;
use std::ptr;
use std::sync::{Once, OnceLock};

use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use openssl::ssl::{SslContextBuilder, SslRef, SslSession, SslSessionRef};
use openssl::stack::StackRef;
use openssl::x509::{X509, X509StoreContextRef};
use openssl_sys as ffi;

/// The values of SSL_CTRL_SET_MAX_CERT_LIST and SSL_CB_HANDSHAKE_START in <openssl/ssl.h>.
const SET_MAX_CERT_LIST: c_int = 51;
const HANDSHAKE_START: c_int = 0x10;

type InfoCallback = unsafe extern "C" fn(*const ffi::SSL, c_int, c_int);
type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;

// These functions of OpenSSL are missing in the crate openssl-sys.
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
    /// The latest context that OpenSSL has created on this thread.
    static CAUGHT: RefCell<Option<SslContextBuilder>> = const { RefCell::new(None) };
}

/// Runs `build`. Returns the result of `build` and the latest context that `build` created. The
/// caller can change the context until the first connection is made.
pub fn catch<T>(build: impl FnOnce() -> T) -> (T, Option<SslContextBuilder>) {
    static REGISTER: Once = Once::new();
    // SAFETY: the callback lives as long as the program. It gets no argument of ours (0 and null).
    REGISTER.call_once(|| unsafe {
        ffi::SSL_CTX_get_ex_new_index(0, ptr::null_mut(), Some(catch_context), None, None);
    });
    CAUGHT.set(None);
    (build(), CAUGHT.take())
}

unsafe extern "C" fn catch_context(
    parent: *mut c_void,
    _: *mut c_void,
    _: *mut ffi::CRYPTO_EX_DATA,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    let context = parent.cast::<ffi::SSL_CTX>();
    // SAFETY: OpenSSL calls this function with the context that OpenSSL is creating, whose
    // reference count is already set (SSL_CTX_new in OpenSSL's ssl_lib.c). The builder owns the
    // added reference, so the context stays alive even if native-tls drops its own reference.
    unsafe {
        if ffi::SSL_CTX_up_ref(context) == 1 {
            CAUGHT.set(Some(SslContextBuilder::from_ptr(context)));
        }
    }
}

/// Sets the longest certificate chain that a peer may send, in bytes.
pub fn set_longest_chain(context: &mut SslContextBuilder, bytes: usize) {
    let bytes = c_long::try_from(bytes).unwrap_or(c_long::MAX);
    // SAFETY: `context` keeps the SSL_CTX alive.
    unsafe { ffi::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, bytes, ptr::null_mut()) };
}

/// A function that replaces OpenSSL's verification of a server's certificate chain. The function
/// returns whether to accept the chain, and sets the chain's error, which becomes OpenSSL's
/// verification result.
pub type Verifier = fn(&mut X509StoreContextRef) -> bool;

/// Makes the TLS connections of `context` verify the server's certificate chain with the function
/// `verify`.
pub fn verify_by(context: &mut SslContextBuilder, verify: Verifier) {
    // SAFETY: `context` keeps the SSL_CTX alive; both functions live as long as the program.
    unsafe {
        SSL_CTX_set_cert_verify_callback(
            context.as_ptr(),
            Some(verify_chain),
            verify as *mut c_void,
        );
    }
}

unsafe extern "C" fn verify_chain(chain: *mut ffi::X509_STORE_CTX, verify: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls this function with a live object that is not used elsewhere during the
    // call, and with the function that `verify_by` registered.
    unsafe {
        let verify = mem::transmute::<*mut c_void, Verifier>(verify);
        verify(X509StoreContextRef::from_ptr_mut(chain)).into()
    }
}

/// Returns the certificates that the server has sent. The server's own certificate comes first.
pub fn sent_by_server(chain: &X509StoreContextRef) -> Option<&StackRef<X509>> {
    // SAFETY: `chain` is alive, and the certificates live as long as `chain`.
    unsafe {
        let sent = X509_STORE_CTX_get0_untrusted(chain.as_ptr());
        (!sent.is_null()).then(|| StackRef::from_ptr(sent))
    }
}

/// The function that OpenSSL calls when a handshake begins. [`call_at_handshakes`] sets this
/// function.
static AT_HANDSHAKE: OnceLock<fn(&mut SslRef)> = OnceLock::new();

/// Makes OpenSSL call `begins` at the beginning of each handshake of the context's connections,
/// before OpenSSL sends a byte. All calls of `call_at_handshakes` must pass the same function.
pub fn call_at_handshakes(context: &mut SslContextBuilder, begins: fn(&mut SslRef)) {
    AT_HANDSHAKE.get_or_init(|| begins);
    // SAFETY: `context` keeps the SSL_CTX alive, and the callback lives as long as the program.
    unsafe { SSL_CTX_set_info_callback(context.as_ptr(), Some(observe)) };
}

unsafe extern "C" fn observe(ssl: *const ffi::SSL, at: c_int, _: c_int) {
    if at == HANDSHAKE_START
        && let Some(begins) = AT_HANDSHAKE.get()
    {
        // SAFETY: OpenSSL calls this function with a live object, on the thread that uses the
        // object. The pointer is declared const, but OpenSSL allows this callback to change the
        // connection.
        begins(unsafe { SslRef::from_ptr_mut(ssl.cast_mut()) });
    }
}

/// Makes OpenSSL discard the records that OpenSSL has read from the peer, and report the end of the
/// stream to readers.
pub fn end_reading(ssl: &mut SslRef) {
    // SAFETY: `ssl` is alive.
    unsafe { ffi::SSL_set_shutdown(ssl.as_ptr(), ffi::SSL_RECEIVED_SHUTDOWN) };
}

/// Copies a TLS session. If a connection ends without close_notify, `SSL_free` makes the
/// connection's session unusable, but not the copy. Returns `None` if OpenSSL has no memory.
pub fn copy_of(session: &SslSessionRef) -> Option<SslSession> {
    // SAFETY: `session` is alive, and the copy belongs to the caller alone.
    unsafe {
        let copy = SSL_SESSION_dup(session.as_ptr());
        (!copy.is_null()).then(|| SslSession::from_ptr(copy))
    }
}

#[cfg(test)]
mod tests {
    use openssl::ssl::{SslContext, SslMethod};

    use super::*;

    fn make() -> SslContext {
        SslContextBuilder::new(SslMethod::tls()).unwrap().build()
    }

    #[test]
    fn caught_context_stays_alive_after_its_creator_drops_it() {
        // If OpenSSL refuses a setting, native-tls drops the context that it has just created.
        let ((), context) = catch(|| drop(make()));
        context.unwrap().set_cipher_list("DEFAULT").unwrap();
    }

    #[test]
    fn catch_returns_only_a_context_that_its_own_call_created() {
        let before = catch(make).0;
        let (context, caught) = catch(make);
        assert_eq!(caught.unwrap().as_ptr(), context.as_ptr());
        assert_ne!(before.as_ptr(), context.as_ptr());
        assert!(catch(|| ()).1.is_none());
    }
}
