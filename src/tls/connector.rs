//! Makes TLS connections with one set of trust settings.

use std::io;
use std::sync::Arc;

use openssl::error::ErrorStack;
use openssl::ssl::{SslContextBuilder, SslOptions};
use openssl::x509::verify::X509VerifyFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio_native_tls::TlsConnector;

use super::handshake::{HandshakeError, Misconfiguration};
use super::session::Sessions;
use super::stream::TlsStream;
use super::trust::{Trust, Verify};
use super::{bounds, raw, roots, session};
use crate::threads;

/// The groups that the launcher offers for the key exchange. The ClientHello contains a key share
/// for the first group. If a server prefers another group, the handshake takes one more round trip
/// (RFC 8446 section 4.1.4). By default, OpenSSL 3.5 also sends a key share for ML-KEM. This key
/// share makes the ClientHello 1.2 kB longer, takes a tenth of a handshake's time, and uses 8 kB of
/// memory until the connection closes.
///
/// The list of groups has no finite-field group (ffdhe), because a handshake with such a group
/// takes up to a third of a second and delays every other connection.
const GROUPS: &str = "X25519:X25519MLKEM768:P-256:P-384:P-521";
/// The groups for the key exchange if OpenSSL is older than 3.5. Such an OpenSSL rejects every list
/// that contains ML-KEM.
const GROUPS_WITHOUT_ML_KEM: &str = "X25519:P-256:P-384:P-521";

/// The ciphers for TLS 1.2. The list is native-tls's list without finite-field Diffie-Hellman
/// (kDHE). With kDHE, the server chooses the size of the prime, and a prime of 10,000 bits would
/// delay all connections by a second.
const CIPHERS: &str =
    "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK:!kDHE";
/// The ciphers for TLS 1.3. The list is OpenSSL's default list, but with AES-128 first, as in
/// browsers. The AES-128 suite derives keys with SHA-256, which is faster than SHA-384 and saves a
/// tenth of a handshake's time.
const CIPHER_SUITES: &str =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/// OpenSSL's option SSL_OP_NO_RX_CERTIFICATE_COMPRESSION, which the openssl crate lacks. Compressed
/// certificates save few bytes, and a hostile server could make decompression expensive. OpenSSL
/// before 3.2 ignores this option.
const NO_CERTIFICATE_COMPRESSION: SslOptions = SslOptions::from_bits_retain(1 << 33);

/// Makes TLS connections with one set of trust settings. Reading the system's certificates would
/// delay the launcher's start, so the connector sets up OpenSSL only for the first connection, or
/// in [`Connector::prepare`].
#[derive(Debug)]
pub struct Connector {
    trust: Trust,
    built: OnceCell<TlsConnector>,
}

impl Connector {
    pub fn new(trust: Trust) -> Arc<Connector> {
        Arc::new(Connector { trust, built: OnceCell::new() })
    }

    /// Makes a connector that accepts every certificate, so that `--check` can describe the
    /// certificate. Callers must send no secret over a connection of this connector.
    pub fn unverified(trust: &Trust) -> Arc<Connector> {
        let (verify, ca, pins) = (Verify::None, None, Vec::new());
        Connector::new(Trust { verify, ca, pins, ..trust.clone() })
    }

    /// Returns the name to send in SNI to a server at `host`, and to verify in the server's
    /// certificate. The name has no final dot, because names in SNI (RFC 6066 section 3) and in
    /// certificates (RFC 5280 section 4.2.1.6) have no final dot.
    pub fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        let name = self.trust.server_name.as_deref().unwrap_or(host);
        name.strip_suffix('.').unwrap_or(name)
    }

    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// True if this connector resumes sessions. A connector with a client certificate resumes no
    /// session, because the server may require the certificate in each handshake.
    pub fn resumes(&self) -> bool {
        self.trust.identity.is_none()
    }

    /// Sets up OpenSSL on another thread, unless OpenSSL has been set up already.
    ///
    /// # Errors
    /// If OpenSSL cannot be set up, or no thread is available (EAGAIN).
    pub async fn prepare(&self) -> io::Result<&TlsConnector> {
        let build = || async {
            let trust = self.trust.clone();
            threads::run(move || build(&trust)).await?
        };
        self.built.get_or_try_init(build).await
    }

    /// Performs a TLS handshake over `stream`, and checks the server's certificate and pin. The
    /// handshake offers the latest session in `sessions`. All sessions in `sessions` must belong to
    /// this connector and this server.
    ///
    /// # Errors
    /// If the handshake fails, or if the server's certificate or pin is rejected.
    pub async fn connect<S>(
        &self,
        host: &str,
        stream: S,
        sessions: &Arc<Sessions>,
    ) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = self.prepare().await.map_err(HandshakeError::Internal)?;
        let none = Arc::default();
        let sessions = if self.resumes() { sessions } else { &none };
        let name = self.server_name(host);
        let (watch, facts) = sessions.offer();
        let connected = connector.connect(name, stream).await;
        let stream = connected.map_err(|error| HandshakeError::classify(error, &facts, name))?;
        let stream = TlsStream { stream, facts };
        if self.trust.is_pinned() {
            let unreadable = Misconfiguration::unreadable_certificate;
            let shown = stream.certificate().ok_or_else(unreadable);
            let pin = shown.map_err(HandshakeError::Misconfigured)?.pin;
            if !self.trust.pin_holds(&pin) {
                // Forget the sessions with this server, whose key matches no pin. A TLS 1.2 server
                // sends its session during the handshake, before this check of the pin.
                sessions.forget();
                return Err(HandshakeError::Misconfigured(Misconfiguration::Pin(pin)));
            }
        }
        watch.succeeded(stream.resumed());
        Ok(stream)
    }
}

fn build(trust: &Trust) -> io::Result<TlsConnector> {
    let mut builder = native_tls::TlsConnector::builder();
    // Do not set `danger_accept_invalid_certs`, which would also turn off the limits on keys. With
    // `--verify none`, the module `bounds` accepts every chain.
    builder.danger_accept_invalid_hostnames(trust.verify != Verify::Full);
    let own_roots = trust.ca.is_some() || roots::own_directories().is_some();
    builder.disable_built_in_roots(own_roots || trust.verify == Verify::None);
    let (connector, context) = raw::catch(|| builder.build());
    let connector = connector.map_err(io::Error::other)?;
    let mut context = context.ok_or_else(|| io::Error::other("OpenSSL has no memory"))?;
    set_up(&mut context, trust)?;
    Ok(connector.into())
}

/// Applies all settings that native-tls does not support.
fn set_up(context: &mut SslContextBuilder, trust: &Trust) -> Result<(), ErrorStack> {
    context.set_min_proto_version(Some(trust.min_tls))?;
    // Without NO_RENEGOTIATION, a server could request one handshake after another.
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
    // Like curl, trust each of these certificates, even if the certificate is not a root.
    context.cert_store_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
    for root in roots {
        context.cert_store_mut().add_cert(root.clone())?;
    }
    if let Some(identity) = &trust.identity {
        identity.set_in(context)?;
    }
    session::resume_in(context)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream as ServerStream;
    use std::thread;

    use super::*;
    use openssl::ssl::{Ssl, SslMethod};

    /// The types of the TLS extensions that the tests read (RFC 8446 section 4.2).
    const SUPPORTED_GROUPS: u16 = 10;
    const KEY_SHARE: u16 = 51;

    /// Returns the ClientHello that a connection sends, without the headers of the TLS record and
    /// of the message.
    fn client_hello() -> Vec<u8> {
        let mut context = SslContextBuilder::new(SslMethod::tls_client()).unwrap();
        set_up(&mut context, &Trust::none()).unwrap();
        let ssl = Ssl::new(&context.build()).unwrap();
        let (client, mut server) = ServerStream::pair().unwrap();
        let handshake = thread::spawn(move || ssl.connect(client).is_err());
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

    /// Returns the first field in `bytes`, and the bytes after the field. The first two bytes are
    /// the field's length.
    fn field(bytes: &[u8]) -> (&[u8], &[u8]) {
        bytes[2..].split_at(number(bytes).into())
    }

    fn numbers(bytes: &[u8]) -> Vec<u16> {
        bytes.chunks_exact(2).map(number).collect()
    }

    #[test]
    fn client_hello_offers_cheap_algorithms_only() {
        let message = client_hello();
        // A ClientHello begins with a version, a random number and a session id (RFC 8446 section
        // 4.1.2).
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
