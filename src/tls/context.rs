//! OpenSSL's context behind a connector of native-tls, for what native-tls has no words for.
//!
//! native-tls keeps it to itself, so it is caught when OpenSSL makes it: OpenSSL tells whoever has asked for room
//! for own data in every context (CRYPTO_get_ex_new_index(3)).

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::ptr;
use std::sync::OnceLock;

use openssl_sys as ffi;

use super::session;

/// Key exchange groups, the first with a key share in the first message. OpenSSL 3.5's own list would send a share
/// of ML-KEM as well, which costs 1.2 kB a handshake, a tenth of its time, and 8 kB of memory as long as the
/// connection lives. Here a server that wants it asks for it (RFC 8446 section 4.1.4), one round trip later.
const GROUPS: &CStr = c"X25519:X25519MLKEM768:P-256:P-384:P-521";
/// SSL_CTRL_SET_GROUPS_LIST of <openssl/ssl.h>, behind SSL_CTX_set1_groups_list(3).
const SET_GROUPS_LIST: c_int = 92;

thread_local! {
    /// The context that OpenSSL made last on this thread.
    static CONTEXT: Cell<*mut ffi::SSL_CTX> = const { Cell::new(ptr::null_mut()) };
}

/// Runs `build`, which makes one context, and sets it up; with `resume` its connections resume sessions.
pub fn set_up<T>(resume: bool, build: impl FnOnce() -> T) -> T {
    static CATCH: OnceLock<c_int> = OnceLock::new();
    // SAFETY: registers a callback that lives as long as the program, and takes no data.
    CATCH.get_or_init(|| unsafe {
        ffi::SSL_CTX_get_ex_new_index(0, ptr::null_mut(), Some(catch_context), None, None)
    });
    CONTEXT.set(ptr::null_mut());
    let built = build();
    let context = CONTEXT.replace(ptr::null_mut());
    if !context.is_null() {
        // SAFETY: `context` was made on this thread just now, and `built` holds it; nobody else has it yet.
        unsafe {
            // An OpenSSL that knows no ML-KEM refuses, and keeps its own list, which has none.
            let groups = GROUPS.as_ptr().cast_mut().cast();
            if ffi::SSL_CTX_ctrl(context, SET_GROUPS_LIST, 0, groups) != 1 {
                ffi::ERR_clear_error();
            }
            if resume {
                session::resume_in(context);
            }
        }
    }
    built
}

unsafe extern "C" fn catch_context(
    parent: *mut c_void,
    _: *mut c_void,
    _: *mut ffi::CRYPTO_EX_DATA,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    CONTEXT.set(parent.cast());
}
