//! Finds out whether the server has refused the client certificate, or requires one. In TLS 1.3 a
//! server reports this only after the handshake (RFC 8446 section 4.4.2.4).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::Tunnel;
use super::upstream::{connect_tcp, handshake, look_up};
use crate::tls::Misconfiguration;

/// The time limit for a server to refuse a client certificate after the handshake.
const LATE: Duration = Duration::from_secs(1);

/// The refusal behind `error`, with which a server ended a connection before it sent a byte; `None`
/// if the error has another cause. A reset may have overtaken the alert with the reason. In that
/// case, this makes another connection to learn the reason, once for all connections that fail in
/// this way.
pub async fn behind(tunnel: &Tunnel, error: &io::Error) -> Option<Misconfiguration> {
    if error.kind() != io::ErrorKind::ConnectionReset {
        return Misconfiguration::after_handshake(error);
    }
    // At the limit of connections, do not ask.
    let _slot = tunnel.limit.try_slot()?;
    let ask = async {
        let stream = connect_tcp(look_up(tunnel).await.ok()?).await.ok()?;
        let connected = handshake(tunnel, &tunnel.connector, stream, &Arc::default()).await;
        let (mut tls, _) = connected.ok()?;
        Misconfiguration::after_handshake(&tls.stream.read_u8().await.err()?)
    };
    let limit = tunnel.settings.connect_timeout.min(LATE);
    tunnel.inquiries.late_refusal.answer(limit, ask).await
}
