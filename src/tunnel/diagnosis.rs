//! Finds out why a connection to Redis failed, by opening an extra connection to the server.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Tunnel;
use super::read_ahead::Heard;

/// The time of silence during the handshake after which the launcher tests whether the server
/// speaks plaintext. A Redis without TLS stays silent, because it takes a ClientHello for the
/// beginning of a request.
const SILENCE: Duration = Duration::from_secs(1);
/// The time limit for a server's reply to a plaintext request.
const ANSWER: Duration = Duration::from_secs(1);

/// Waits until the server at `address` has been silent for [`SILENCE`], and tests whether the
/// server speaks plaintext. Returns if the handshake should be given up: the server speaks
/// plaintext, or `--max-connections` allows the test only after the handshake's connection is
/// closed. Otherwise, this future never resolves, so that a slow handshake can go on.
pub async fn question_silence(tunnel: &Tunnel, address: SocketAddr, heard: &Heard) {
    sleep(SILENCE).await;
    let may_be_plaintext = match tunnel.plaintext.known() {
        _ if heard.anything() => false,
        Some(answer) => answer == Some(address),
        None => match tunnel.limit.try_slot() {
            // Release the slot right after the test, and do not hold the slot while this future
            // waits for a slow handshake.
            Some(_slot) => speaks_plaintext(tunnel, address).await,
            None => true,
        },
    };
    if !may_be_plaintext {
        pending().await
    }
}

/// True if the server at `address` replies in plaintext within [`ANSWER`].
pub async fn speaks_plaintext(tunnel: &Tunnel, address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        // Redis replies with +PONG, or with an error such as -NOAUTH, -DENIED or -LOADING.
        matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(address)
    };
    tunnel.plaintext.answer(ANSWER, ask).await == Some(address)
}
