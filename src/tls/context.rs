//! What all connections of a tunnel share: a connector of native-tls, and OpenSSL's context behind
//! it, for the settings that native-tls does not have.

use std::io;

use native_tls::TlsConnector;
use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslOptions};

use super::trust::{Trust, Verify};
use super::{bounds, raw, roots};

/// Key exchange groups. The first one's key share goes into the first message; a server that
/// prefers another group asks for it, one round trip later (RFC 8446 section 4.1.4). OpenSSL 3.5
/// would send a share of ML-KEM as well, which costs 1.2 kB and a tenth of a handshake's time, and
/// 8 kB of memory as long as the connection lives.
///
/// The list has no finite-field group (ffdhe): one handshake with such a group takes up to a third
/// of a second, in which no other connection moves.
const GROUPS: &str = "X25519:X25519MLKEM768:P-256:P-384:P-521";
/// The same for an OpenSSL that does not know ML-KEM (before 3.5), which rejects the whole list.
const GROUPS_WITHOUT_ML_KEM: &str = "X25519:P-256:P-384:P-521";

/// Ciphers for TLS 1.2: those of native-tls, but without Diffie-Hellman over finite fields (kDHE),
/// where the server picks the size of the numbers: with 10,000 bits it would stop all connections
/// for a second.
const CIPHERS: &str =
    "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK:!kDHE";
/// Ciphers for TLS 1.3: OpenSSL's own, but AES-128 first, as browsers have it. Its SHA-256 derives
/// keys faster than the SHA-384 of AES-256, which saves a tenth of a handshake's time.
const CIPHER_SUITES: &str =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/// SSL_OP_NO_RX_CERTIFICATE_COMPRESSION, which the openssl crate lacks: a compressed certificate
/// saves little, and decompression is work for a server to cause. OpenSSL before 3.2 ignores it.
const NO_CERTIFICATE_COMPRESSION: SslOptions = SslOptions::from_bits_retain(1 << 33);

/// Makes a connector that trusts servers by `trust`, and its context, which can be set up further.
///
/// # Errors
/// When OpenSSL cannot be set up.
pub fn connector(trust: &Trust) -> io::Result<(TlsConnector, SslContextBuilder)> {
    let mut builder = TlsConnector::builder();
    // No `danger_accept_invalid_certs` for `none`: OpenSSL would ignore the bounds on keys as well.
    // Instead, the verification of `bounds` accepts every chain.
    builder.danger_accept_invalid_hostnames(trust.verify != Verify::Full);
    let own_roots = trust.ca.is_some() || roots::own_directories().is_some();
    builder.disable_built_in_roots(own_roots || trust.verify == Verify::None);
    let (connector, contexts) = raw::catch(|| builder.build()).map_err(io::Error::other)?;
    let Ok([mut context]) = <[_; 1]>::try_from(contexts) else {
        return Err(io::Error::other("the context of native-tls cannot be set up"));
    };
    set_up(&mut context, trust)?;
    Ok((connector, context))
}

/// Sets what native-tls does not have, or only in a form of its own.
fn set_up(context: &mut SslContextBuilder, trust: &Trust) -> Result<(), ErrorStack> {
    context.set_min_proto_version(Some(trust.min_tls))?;
    // A server must not renegotiate, again and again.
    context.set_options(SslOptions::NO_RENEGOTIATION | NO_CERTIFICATE_COMPRESSION);
    context.set_cipher_list(CIPHERS)?;
    context.set_ciphersuites(CIPHER_SUITES)?;
    context.set_groups_list(GROUPS).or_else(|_| context.set_groups_list(GROUPS_WITHOUT_ML_KEM))?;
    bounds::set_in(context, trust.verify);
    let roots = match (&trust.ca, trust.verify) {
        (Some(authorities), _) => authorities,
        (None, Verify::None) => &[][..],
        (None, Verify::Ca | Verify::Full) => roots::loaded(),
    };
    for root in roots {
        context.cert_store_mut().add_cert(root.clone())?;
    }
    trust.identity.iter().try_for_each(|identity| identity.set_in(context))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// Types of extensions (RFC 8446 section 4.2).
    const SUPPORTED_GROUPS: u16 = 10;
    const KEY_SHARE: u16 = 51;

    /// The first message of a handshake, without the record's header and the message's.
    fn client_hello() -> Vec<u8> {
        let (connector, _context) = connector(&Trust::none()).unwrap();
        let (client, mut server) = UnixStream::pair().unwrap();
        let handshake = thread::spawn(move || connector.connect("redis.test", client).is_err());
        let mut header = [0; 9];
        server.read_exact(&mut header).unwrap();
        let mut message = vec![0; usize::from(number(&header[7..]))];
        server.read_exact(&mut message).unwrap();
        drop(server);
        assert!(handshake.join().unwrap());
        message
    }

    fn number(bytes: &[u8]) -> u16 {
        u16::from_be_bytes([bytes[0], bytes[1]])
    }

    /// Splits a field off that begins with its length.
    fn field(bytes: &[u8]) -> (&[u8], &[u8]) {
        bytes[2..].split_at(number(bytes).into())
    }

    fn numbers(bytes: &[u8]) -> Vec<u16> {
        bytes.chunks_exact(2).map(number).collect()
    }

    #[test]
    fn handshakes_offer_what_is_cheap_and_nothing_expensive() {
        let message = client_hello();
        // Version, random and session id come first (RFC 8446 section 4.1.2).
        let session = usize::from(message[34]);
        let (ciphers, rest) = field(&message[35 + session..]);
        let ciphers = numbers(ciphers);
        assert_eq!(ciphers[0], 0x1301, "TLS_AES_128_GCM_SHA256: {ciphers:x?}");
        let dhe = [0x33, 0x39, 0x67, 0x6b, 0x9e, 0x9f, 0xccaa];
        assert!(!ciphers.iter().any(|cipher| dhe.contains(cipher)), "{ciphers:x?}");
        let (mut extensions, _) = field(&rest[2..]);
        let (mut groups, mut shares) = (Vec::new(), Vec::new());
        while !extensions.is_empty() {
            let (content, following) = field(&extensions[2..]);
            match number(extensions) {
                SUPPORTED_GROUPS => groups = numbers(field(content).0),
                KEY_SHARE => shares = field(content).0.to_vec(),
                _ => {}
            }
            extensions = following;
        }
        let x25519 = 0x1d;
        assert_eq!(groups[0], x25519, "{groups:x?}");
        assert!(groups.iter().all(|group| !(0x100..0x200).contains(group)), "ffdhe: {groups:x?}");
        assert_eq!((number(&shares), shares.len()), (x25519, 4 + 32), "{shares:x?}");
    }
}
