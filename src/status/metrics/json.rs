//! The same metrics for `/status.json`.

use serde_json::{Value as Json, json};

use super::table::{LAUNCHER, Metric, Samples, TUNNEL, Value};
use crate::figures::TunnelSnapshot;
use crate::status::StatusReport;

/// Adds a tunnel's metrics to an object.
pub fn add_of_tunnel(object: &mut Json, tunnel: &TunnelSnapshot) {
    TUNNEL.iter().for_each(|metric| add(object, metric, tunnel));
}

/// Adds the launcher's metrics to an object.
pub fn add_of_launcher(object: &mut Json, report: &StatusReport) {
    LAUNCHER.iter().for_each(|metric| add(object, metric, report));
}

fn add<T>(object: &mut Json, metric: &Metric<T>, measured: &T) {
    let Some(path) = metric.json else { return };
    match (metric.samples)(measured) {
        Samples::One(value) => set(object, path, value.map_or(Json::Null, json_of)),
        Samples::ByWord(_, values) => {
            for (word, value) in values {
                set(object, &format!("{path}.{word}"), json_of(value));
            }
        }
        Samples::Info(_) => {}
    }
}

/// Sets the member at `path`, and makes the objects on the way to it. A member of null stays unset.
fn set(object: &mut Json, path: &str, value: Json) {
    let mut member = object;
    for name in path.split('.') {
        if member.is_null() {
            return;
        }
        let members = member.as_object_mut().expect("paths lead through objects only");
        member = members.entry(name).or_insert_with(|| json!({}));
    }
    *member = value;
}

fn json_of(value: Value) -> Json {
    match value {
        Value::Whole(value) => json!(value),
        Value::Real(value) => json!(value),
        Value::Durations(histogram) => {
            json!({ "count": histogram.count(), "seconds": histogram.seconds() })
        }
    }
}
