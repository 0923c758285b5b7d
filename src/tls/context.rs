//! OpenSSL's context behind a connector of native-tls, for what native-tls does not expose.
//!
//! native-tls hides it, so it is caught when OpenSSL makes it: OpenSSL tells whoever has registered
//! for data of their own in every context (CRYPTO_get_ex_new_index(3)). What is caught is an owned
//! reference: the context lives at least as long as that, whatever native-tls does with its own,
//! above all when building fails and frees it.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::ptr;
use std::sync::OnceLock;

use foreign_types::ForeignType;
use openssl::ssl::SslContext;
use openssl_sys as ffi;

use super::session;

/// Key exchange groups, the first with a key share in the first message. OpenSSL 3.5's own list
/// would send a share of ML-KEM as well, which costs 1.2 kB a handshake, a tenth of its time, and 8
/// kB of memory as long as the connection lives. Here a server that wants it asks for it (RFC 8446
/// section 4.1.4), one round trip later.
const GROUPS: &CStr = c"X25519:X25519MLKEM768:P-256:P-384:P-521";

/// A context that [`set_up`] has just had made, and that no connection uses yet.
pub struct NewContext(SslContext);

impl NewContext {
    /// Valid as long as `self` lives.
    pub fn as_ptr(&self) -> *mut ffi::SSL_CTX {
        self.0.as_ptr()
    }

    fn set_groups(&self) {
        // SAFETY: `self` keeps the context alive, and OpenSSL copies what it needs of the list.
        unsafe {
            // An OpenSSL that knows no ML-KEM refuses, and keeps its own list, which has none.
            if ffi::SSL_CTX_set1_groups_list(self.as_ptr(), GROUPS.as_ptr()) != 1 {
                ffi::ERR_clear_error();
            }
        }
    }
}

thread_local! {
    /// The contexts that OpenSSL has made on this thread since [`set_up`] began to watch; `None`:
    /// nobody watches.
    static CAUGHT: RefCell<Option<Vec<NewContext>>> = const { RefCell::new(None) };
}

/// Runs `build`, which makes a context, and sets that up; with `resume` its connections resume
/// sessions. When `build` fails nothing is set up.
pub fn set_up<T, E>(resume: bool, build: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    static CATCH: OnceLock<c_int> = OnceLock::new();
    // SAFETY: registers a callback that lives as long as the program, and takes no data.
    CATCH.get_or_init(|| unsafe {
        ffi::SSL_CTX_get_ex_new_index(0, ptr::null_mut(), Some(catch_context), None, None)
    });
    CAUGHT.set(Some(Vec::new()));
    let built = build();
    let caught = CAUGHT.take().unwrap_or_default();
    let built = built?;
    for context in &caught {
        context.set_groups();
        if resume {
            session::resume_in(context);
        }
    }
    Ok(built)
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
        // SAFETY: OpenSSL calls this with the context that it is making, whose count of references
        // it has set before (SSL_CTX_new in its ssl_lib.c); the reference that is added here
        // belongs to the SslContext, which gives it back.
        unsafe {
            if ffi::SSL_CTX_up_ref(context) == 1 {
                caught.push(NewContext(SslContext::from_ptr(context)));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use openssl::ssl::{SslContextBuilder, SslMethod};

    use super::*;

    fn make() -> Result<SslContext, openssl::error::ErrorStack> {
        SslContextBuilder::new(SslMethod::tls()).map(SslContextBuilder::build)
    }

    /// How often `context` has been caught, while somebody watches.
    fn caught(context: &SslContext) -> usize {
        CAUGHT.with_borrow(|caught| {
            let known = caught.as_deref().unwrap_or_default();
            known.iter().filter(|known| known.as_ptr() == context.as_ptr()).count()
        })
    }

    #[test]
    fn a_context_whose_building_fails_is_alive_until_it_is_let_go_of() {
        let failed = set_up(true, || {
            // As native-tls does when it is given what OpenSSL refuses: made, and dropped.
            drop(make().unwrap());
            Err::<(), _>("refused")
        });
        assert_eq!(failed, Err("refused"));
    }

    #[test]
    fn a_context_is_caught_only_while_somebody_watches() {
        let watched = set_up(false, || {
            let context = make()?;
            assert_eq!(caught(&context), 1);
            Ok::<_, openssl::error::ErrorStack>(context)
        });
        assert_eq!(caught(&watched.unwrap()), 0);
        assert_eq!(caught(&make().unwrap()), 0);
    }
}
