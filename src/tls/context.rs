//! OpenSSL's context: what all connections of a tunnel share.

use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslMethod, SslMode, SslOptions, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;

use super::trust::{MinTls, Trust, Verify};
use super::{bounds, roots};

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

/// Ciphers for TLS 1.2: OpenSSL's choice without weak ones, and without Diffie-Hellman over finite
/// fields (kDHE), where the server picks the size of the numbers: with 10,000 bits it would stop
/// all connections for a second.
const CIPHERS: &str =
    "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK:!kDHE";
/// Ciphers for TLS 1.3: OpenSSL's own, but AES-128 first, as browsers have it. Its SHA-256 derives
/// keys faster than the SHA-384 of AES-256, which saves a tenth of a handshake's time.
const CIPHER_SUITES: &str =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/// SSL_OP_NO_RX_CERTIFICATE_COMPRESSION, which the openssl crate lacks: a compressed certificate
/// saves little, and decompression is work for a server to cause. OpenSSL before 3.2 ignores it.
const NO_CERTIFICATE_COMPRESSION: SslOptions = SslOptions::from_bits_retain(1 << 33);

/// Makes a context for clients that trust servers by `trust`.
pub fn builder(trust: &Trust) -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
    context.set_options(
        // Workarounds for old servers; a server must not renegotiate, again and again.
        SslOptions::ALL | SslOptions::NO_RENEGOTIATION | NO_CERTIFICATE_COMPRESSION,
    );
    // Without RELEASE_BUFFERS an idle connection would hold 34 kB more.
    context.set_mode(
        SslMode::AUTO_RETRY
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::RELEASE_BUFFERS,
    );
    context.set_min_proto_version(Some(number(trust.min_tls)))?;
    context.set_cipher_list(CIPHERS)?;
    context.set_ciphersuites(CIPHER_SUITES)?;
    context.set_groups_list(GROUPS).or_else(|_| context.set_groups_list(GROUPS_WITHOUT_ML_KEM))?;
    bounds::set_in(&mut context, trust.verify);
    trust_authorities(&mut context, trust)?;
    if let Some(identity) = &trust.identity {
        identity.show_in(&mut context)?;
    }
    Ok(context)
}

fn trust_authorities(context: &mut SslContextBuilder, trust: &Trust) -> Result<(), ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    match (trust.verify, &trust.ca) {
        (Verify::None, _) => {}
        (Verify::Ca | Verify::Full, Some(authorities)) => authorities.add_to(&mut store)?,
        (Verify::Ca | Verify::Full, None) => roots::add_to(&mut store)?,
    }
    context.set_cert_store(store.build());
    // Under `none`, the callback of `bounds` accepts every chain.
    context.set_verify(SslVerifyMode::PEER);
    Ok(())
}

/// Whether OpenSSL can be told to speak nothing older than `version`.
pub fn speaks(version: MinTls) -> bool {
    let context = SslContextBuilder::new(SslMethod::tls_client());
    context.is_ok_and(|mut context| context.set_min_proto_version(Some(number(version))).is_ok())
}

fn number(version: MinTls) -> SslVersion {
    match version {
        MinTls::V1_2 => SslVersion::TLS1_2,
        MinTls::V1_3 => SslVersion::TLS1_3,
    }
}
