//! Finds out why a connection to Redis failed, by asking the server again.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Tunnel;
use super::inquiry::Inquiry;
use super::read_ahead::Heard;
use crate::tls::Misconfiguration;

/// If a server is silent for this long in the handshake, ask whether it speaks RESP without TLS. A
/// plaintext Redis takes a ClientHello for the beginning of a request, and waits for the rest.
const SILENCE: Duration = Duration::from_secs(1);
/// The time limit for the answer to that question.
const ANSWER: Duration = Duration::from_secs(1);
/// Questions to a failing server, each on a connection of its own. Questions are rare, because they
/// add to the server's load.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// The question why the server resets connections before it sends a byte.
    pub late_refusal: Inquiry<Option<Misconfiguration>>,
    /// The question which address answers RESP without TLS.
    plaintext: Inquiry<Option<SocketAddr>>,
}

/// The result of questioning a server that is silent during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The server answers RESP in plaintext.
    Plaintext,
    /// `--max-connections` allows no second connection on which to ask.
    Unknown,
}

/// Resolves after the server at `address` was silent for [`SILENCE`], unless the server turns out
/// not to speak plaintext: then the handshake may take its time, and this never resolves.
pub async fn question_silence(tunnel: &Tunnel, address: SocketAddr, heard: &Heard) -> Silence {
    sleep(SILENCE).await;
    if heard.anything() {
        return pending().await;
    }
    let is_plaintext = match tunnel.inquiries.plaintext.known() {
        Some(answer) => answer == Some(address),
        None => {
            let Some(_slot) = tunnel.limit.try_slot() else { return Silence::Unknown };
            speaks_plaintext(tunnel, address).await
            // The slot is free again from here on: the handshake may take long.
        }
    };
    if is_plaintext { Silence::Plaintext } else { pending().await }
}

/// True if the server at `address` answers RESP in plaintext within [`ANSWER`].
pub async fn speaks_plaintext(tunnel: &Tunnel, address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        // +PONG, or -NOAUTH, -DENIED, -LOADING …
        matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(address)
    };
    tunnel.inquiries.plaintext.answer(ANSWER, ask).await == Some(address)
}
