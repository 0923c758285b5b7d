//! Bounds on the work that a server can cause. All traffic shares one thread, so an expensive
//! handshake would hold up every connection.
//!
//! OpenSSL itself bounds the rest: keys of EC certificates are of the groups that we offer, and RSA
//! keys have 16,384 bits at most.

use openssl::pkey::Id;
use openssl::ssl::SslContextBuilder;
use openssl::x509::{X509Ref, X509StoreContextRef, X509VerifyResult};

use super::raw::{self, Verifier};
use super::trust::Verify;

/// The longest certificate chain in bytes. Usual chains have 2 to 6 KiB. Reading the 100 KiB that
/// OpenSSL allows can take 60 ms.
pub const LONGEST_CHAIN: usize = 16 * 1024;
/// The longest RSA key that a server may use, and the longest public exponent; nearly all servers
/// use 2048 to 4096 bits and the exponent 65537. OpenSSL allows 3072 bits for both, with which each
/// signature takes 20 ms.
const LONGEST_RSA_KEY: u32 = 8192;
const LONGEST_RSA_EXPONENT: i32 = 32;

/// OpenSSL's verdict on a certificate whose key exceeds the bounds.
pub const KEY_TOO_LONG: X509VerifyResult = X509VerifyResult::APPLICATION_VERIFICATION;

/// Sets the bounds for a context whose connections verify as `verify` demands.
pub fn set_in(context: &mut SslContextBuilder, verify: Verify) {
    raw::set_longest_chain(context, LONGEST_CHAIN);
    match verify {
        Verify::None => raw::verify_by::<KeyAlone>(context),
        Verify::Ca | Verify::Full => raw::verify_by::<KeyAndChain>(context),
    }
}

/// Accepts every chain with a usual key, without a look at the chain.
struct KeyAlone;

impl Verifier for KeyAlone {
    fn verify(chain: &mut X509StoreContextRef) -> bool {
        has_usual_key(chain)
    }
}

/// Verifies a chain as OpenSSL does by itself, if its key is a usual one.
struct KeyAndChain;

impl Verifier for KeyAndChain {
    fn verify(chain: &mut X509StoreContextRef) -> bool {
        has_usual_key(chain) && chain.verify_cert().unwrap_or(false)
    }
}

/// Whether the server's key is within the bounds. The server's signature, the next step of the
/// handshake, is verified with it.
fn has_usual_key(chain: &mut X509StoreContextRef) -> bool {
    let usual = raw::first_of(chain).is_none_or(is_usual);
    chain.set_error(if usual { X509VerifyResult::OK } else { KEY_TOO_LONG });
    usual
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
