//! Limits the CPU time that a server can cost the launcher. All traffic shares one thread, so an
//! expensive handshake would delay every connection.
//!
//! OpenSSL itself sets two further limits: an EC key must belong to one of the groups that the
//! launcher offers, and an RSA key has at most 16,384 bits.

use openssl::pkey::Id;
use openssl::ssl::SslContextBuilder;
use openssl::x509::{X509Ref, X509StoreContextRef, X509VerifyResult};

use super::trust::Verify;
use super::{raw, session};

/// The longest certificate chain that the launcher accepts, in bytes. Usual chains have 2 to 6 KiB.
/// OpenSSL's own limit is 100 KiB, but reading a chain of 100 KiB can take 60 ms.
pub const LONGEST_CHAIN: usize = 16 * 1024;
/// The longest RSA key and the longest public exponent that the launcher accepts, in bits. Nearly
/// all servers have a key of 2048 to 4096 bits and the exponent 65537. OpenSSL also accepts a key
/// of 3072 bits with an exponent of 3072 bits: verifying one signature of this key takes 20 ms.
const LONGEST_RSA_KEY: u32 = 8192;
const LONGEST_RSA_EXPONENT: i32 = 32;

/// The verification result for a certificate whose RSA key or exponent is too long.
pub const KEY_TOO_LONG: X509VerifyResult = X509VerifyResult::APPLICATION_VERIFICATION;

/// Makes the TLS connections of `context` enforce the limits on chains and keys, and verify
/// certificates at the level `verify`.
pub fn set_in(context: &mut SslContextBuilder, verify: Verify) {
    raw::set_longest_chain(context, LONGEST_CHAIN);
    raw::verify_by(
        context,
        match verify {
            Verify::None => |chain| check(chain, false),
            Verify::Ca | Verify::Full => |chain| check(chain, true),
        },
    );
}

/// Checks that the server's key is within the limits. If `whole` is true, also verifies the chain,
/// as OpenSSL does by default.
fn check(chain: &mut X509StoreContextRef, whole: bool) -> bool {
    // Check the key before the next step of the handshake, which uses the key.
    let is_usual = raw::sent_by_server(chain).and_then(|sent| sent.get(0)).is_none_or(is_usual);
    chain.set_error(if is_usual { X509VerifyResult::OK } else { KEY_TOO_LONG });
    let accepted = is_usual && (!whole || chain.verify_cert().unwrap_or(false));
    if let Some(facts) = session::facts_of(chain) {
        facts.note_chain(chain);
    }
    accepted
}

fn is_usual(certificate: &X509Ref) -> bool {
    // Accept an unreadable key here, because OpenSSL rejects the key in the next step of the
    // handshake.
    let Ok(key) = certificate.public_key() else { return true };
    if key.id() != Id::RSA && key.id() != Id::RSA_PSS {
        return true;
    }
    key.bits() <= LONGEST_RSA_KEY
        && key.rsa().is_ok_and(|rsa| rsa.e().num_bits() <= LONGEST_RSA_EXPONENT)
}
