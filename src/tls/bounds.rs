//! Bounds on the work that a server can cause. All traffic shares one thread, so an expensive
//! handshake would hold up every connection.
//!
//! OpenSSL itself bounds the rest: keys of EC certificates are of the groups that we offer, and RSA
//! keys have 16,384 bits at most.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;

use foreign_types::ForeignTypeRef as _;
use openssl::pkey::Id;
use openssl::ssl::SslContextBuilder;
use openssl::x509::X509Ref;
use openssl_sys as ffi;

use super::trust::Verify;

/// The longest certificate chain in bytes. Usual chains have 2 to 6 KiB. Reading the 100 KiB that
/// OpenSSL allows can take 60 ms.
pub const LONGEST_CHAIN: usize = 16 * 1024;
/// The longest RSA key that a server may use, and the longest public exponent; nearly all servers
/// use 2048 to 4096 bits and the exponent 65537. OpenSSL allows 3072 bits for both, with which each
/// signature takes 20 ms.
const LONGEST_RSA_KEY: u32 = 8192;
const LONGEST_RSA_EXPONENT: i32 = 32;

/// SSL_CTRL_SET_MAX_CERT_LIST of <openssl/ssl.h>.
const SET_MAX_CERT_LIST: c_int = 51;
/// X509_V_ERR_APPLICATION_VERIFICATION of <openssl/x509_vfy.h>: OpenSSL's verdict on a certificate
/// whose key exceeds the bounds.
pub const KEY_TOO_LONG: c_int = ffi::X509_V_ERR_APPLICATION_VERIFICATION;

type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;

// What openssl-sys lacks.
unsafe extern "C" {
    fn SSL_CTX_set_cert_verify_callback(
        context: *mut ffi::SSL_CTX,
        callback: Option<VerifyCallback>,
        argument: *mut c_void,
    );
    fn X509_STORE_CTX_get0_cert(context: *const ffi::X509_STORE_CTX) -> *mut ffi::X509;
}

/// Sets the bounds for a context whose connections verify as `verify` demands.
pub fn set_in(context: &mut SslContextBuilder, verify: Verify) {
    let verification: VerifyCallback = match verify {
        Verify::None => accept,
        Verify::Ca | Verify::Full => verify_chain,
    };
    // SAFETY: `context` keeps the SSL_CTX alive, and the callbacks live as long as the program.
    unsafe {
        let longest = LONGEST_CHAIN as std::ffi::c_long;
        ffi::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, longest, ptr::null_mut());
        SSL_CTX_set_cert_verify_callback(context.as_ptr(), Some(verification), ptr::null_mut());
    }
}

/// Accepts every chain without a look at it.
unsafe extern "C" fn accept(chain: *mut ffi::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls this with a live context.
    unsafe { c_int::from(has_usual_key(chain)) }
}

/// Verifies a chain as OpenSSL does by itself.
unsafe extern "C" fn verify_chain(chain: *mut ffi::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: as above.
    unsafe { if has_usual_key(chain) { ffi::X509_verify_cert(chain) } else { 0 } }
}

/// Whether the server's key is within the bounds. The server's signature, the next step of the
/// handshake, is verified with it.
unsafe fn has_usual_key(chain: *mut ffi::X509_STORE_CTX) -> bool {
    // SAFETY: the context is alive, as the caller promises, and owns the certificate.
    unsafe {
        let certificate = X509_STORE_CTX_get0_cert(chain);
        let usual = certificate.is_null() || is_usual(X509Ref::from_ptr(certificate));
        let verdict = if usual { ffi::X509_V_OK } else { KEY_TOO_LONG };
        ffi::X509_STORE_CTX_set_error(chain, verdict);
        usual
    }
}

fn is_usual(certificate: &X509Ref) -> bool {
    // OpenSSL rejects an unreadable key in the next step.
    let Ok(key) = certificate.public_key() else { return true };
    if key.id() != Id::RSA && key.id() != Id::RSA_PSS {
        return true;
    }
    key.bits() <= LONGEST_RSA_KEY
        && key.rsa().is_ok_and(|rsa| rsa.e().num_bits() <= LONGEST_RSA_EXPONENT)
}
