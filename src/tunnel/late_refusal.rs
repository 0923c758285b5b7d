//! Finds out whether the server refuses the client certificate, or requires a client certificate. A
//! TLS 1.3 server reports these two problems only after the handshake (RFC 8446 section 4.4.2.4).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::Tunnel;
use super::upstream::{connect_tcp, handshake, look_up};
use crate::tls::Misconfiguration;

/// The time limit for a server to refuse a client certificate after the handshake.
const LATE: Duration = Duration::from_secs(1);

/// Returns the reason if the server has refused the client certificate, or requires a client
/// certificate. `error` is a read error on a connection on which the server has sent no data. The
/// server's TLS alert contains the reason, but the alert may be lost if the server has reset the
/// connection. After a reset, this function opens an extra connection to get the alert, at most
/// once a minute.
pub async fn behind(tunnel: &Tunnel, error: &io::Error) -> Option<Misconfiguration> {
    if error.kind() != io::ErrorKind::ConnectionReset {
        return Misconfiguration::after_handshake(error);
    }
    if let Some(answer) = tunnel.late_refusal.known() {
        return answer;
    }
    // Do not ask the server if `--max-connections` allows no extra connection.
    let _slot = tunnel.limit.try_slot()?;
    let ask = async {
        let stream = connect_tcp(look_up(tunnel).await.ok()?).await.ok()?;
        let connected = handshake(tunnel, &tunnel.connector, stream, &Arc::default()).await;
        let (mut tls, _) = connected.ok()?;
        Misconfiguration::after_handshake(&tls.stream.read_u8().await.err()?)
    };
    let limit = tunnel.settings.connect_timeout.min(LATE);
    tunnel.late_refusal.answer(limit, ask).await
}
