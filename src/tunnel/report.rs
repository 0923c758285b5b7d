//! Tells the log, and the app where it can be told, why a connection did not work.

use std::io;

use super::app::AppStream;
use super::failure::Failure;
use super::refusal::FirstRequest;
use super::warnings::{UpstreamEvent, Warning};
use super::{Tunnel, hints, refusal};
use crate::figures::{Arrival, CloseReason};
use crate::logging::{debug, info};

/// What the log and the status page say when Redis closes instead of answering.
const UNANSWERED: &str = "the server closed the connection without an answer";

/// Reports why a connection to Redis failed; to the app only if no outage is the cause.
pub async fn failure(
    failure: &Failure,
    app: &mut AppStream,
    first: FirstRequest,
    arrival: &mut Arrival,
    tunnel: &Tunnel,
) {
    let hint = failure.hint(tunnel);
    arrival.failed(failure.reason(), failure.to_string(), hint.clone());
    let (upstream, var) = (&tunnel.route.upstream, tunnel.variable());
    tunnel.warnings.warn(failure.warning(hint.clone()));
    if failure.is_outage() {
        return;
    }
    let answer = format!("{upstream}: {failure}; {hint}");
    if let Err(error) = refusal::refuse(app, &answer, first).await {
        if app.speaks_tls() {
            return app_speaks_tls(app, tunnel).await;
        }
        debug!(at = "connection-gone", var, error = %error);
    }
}

/// Closes the connection of an app that speaks TLS, and says which client setting to remove. Redis
/// has not failed.
pub async fn app_speaks_tls(app: &mut AppStream, tunnel: &Tunnel) {
    let (var, peer) = (tunnel.variable(), app.peer());
    if let Err(error) = app.hang_up().await {
        debug!(at = "connection-gone", var, error = %error);
    }
    let (peer, msg) = (peer.to_string(), hints::APP_SPEAKS_TLS);
    tunnel.warnings.warn(Warning::AppSpeaksTls { peer, msg });
}

/// Counts and logs an app that gave up while it waited for Redis.
pub fn abandoned(
    reset: Option<&io::Error>,
    app: &AppStream,
    arrival: &mut Arrival,
    tunnel: &Tunnel,
) {
    arrival.closed(CloseReason::Abandoned);
    info!(
        at = "connection-abandoned",
        var = tunnel.variable(),
        peer = %app.peer(),
        waited_ms = arrival.accepted().elapsed().as_millis() as u64,
        error = reset.map(ToString::to_string),
    );
}

/// Counts and logs that Redis closed a connection instead of answering. A TLS front does so whose
/// Redis is down or at its maxclients: the reset overtakes Redis's error message.
pub fn unanswered(tunnel: &Tunnel) {
    let (error, hint) = (UNANSWERED.to_owned(), hints::unanswered(tunnel));
    tunnel.figures.unanswered(error.clone(), hint.clone());
    let event = UpstreamEvent::Unanswered;
    tunnel.warnings.warn(Warning::Upstream { event, reason: None, error, hint });
}
