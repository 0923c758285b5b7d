//! Follows one connection's requests and replies: which replies are outstanding, and whether the
//! user leaves anything behind that RESET does not clear.

use super::commands::{self, Effect};
use crate::resp::Opaque;
use crate::resp::replies::ReplyFramer;
use crate::resp::requests::RequestFramer;

/// Number of requests that a ledger follows. After 1,000 requests, a saved handshake is negligible.
const REQUESTS: u16 = 1_000;

/// Tells, at any moment, whether the connection may get another user. A ledger copies no bytes and
/// allocates no memory.
#[derive(Default)]
pub struct Ledger {
    requests: RequestFramer,
    replies: ReplyFramer,
    /// Complete requests.
    count: u16,
    /// Requests whose reply is not complete.
    owed: u16,
    /// Number of replies up to and including the reply that must be an error; 0: no reply must be
    /// an error.
    refusal_in: u16,
    /// A reply has shown that the server is a replica or not ready.
    role_changed: bool,
    /// See [`GaveUp`].
    gave_up: bool,
}

/// Codes of top-level errors after which older connections must not be reused: the server has
/// become a replica (READONLY), has lost its master (MASTERDOWN), is loading its data (LOADING), or
/// its cluster is incomplete (CLUSTERDOWN).
const ROLE_CHANGES: [&[u8]; 4] = [b"READONLY", b"MASTERDOWN", b"LOADING", b"CLUSTERDOWN"];

/// The user may have left something that RESET does not clear, so the ledger follows the connection
/// no further.
struct GaveUp;

impl From<Opaque> for GaveUp {
    fn from(_: Opaque) -> GaveUp {
        GaveUp
    }
}

impl Ledger {
    /// Follows the app's next bytes. Call this before `received` gets their replies.
    pub fn sent(&mut self, bytes: &[u8]) {
        if !self.gave_up && self.follow_requests(bytes).is_err() {
            self.gave_up = true;
        }
    }

    /// Follows Redis's next bytes.
    pub fn received(&mut self, bytes: &[u8]) {
        if !self.gave_up && self.follow_replies(bytes).is_err() {
            self.gave_up = true;
        }
    }

    /// True if the connection may be kept for another user: every request is complete and answered,
    /// and RESET clears everything the user left.
    pub fn is_settled(&self) -> bool {
        !self.gave_up && self.requests.is_at_boundary() && self.owed == 0
    }

    /// True if the ledger has given up: the connection must not be reused.
    pub fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// True if a reply since the last call has shown that the server is a replica or not ready.
    pub fn take_role_change(&mut self) -> bool {
        std::mem::take(&mut self.role_changed)
    }

    fn follow_requests(&mut self, mut bytes: &[u8]) -> Result<(), GaveUp> {
        while let Some(request) = self.requests.next(&mut bytes)? {
            let effect = request
                .command
                .and_then(|name| commands::effect(name, request.argument))
                .ok_or(GaveUp)?;
            if self.count == REQUESTS {
                return Err(GaveUp);
            }
            self.count += 1;
            self.owed += 1;
            if effect == Effect::NoneIfRefused {
                // The ledger follows only one such request at a time, because no client sends a
                // second.
                if self.refusal_in > 0 {
                    return Err(GaveUp);
                }
                self.refusal_in = self.owed;
            }
        }
        Ok(())
    }

    fn follow_replies(&mut self, mut bytes: &[u8]) -> Result<(), GaveUp> {
        while !bytes.is_empty() {
            if self.owed == 0 {
                return Err(GaveUp);
            }
            let Some(first) = self.replies.next(&mut bytes)? else { break };
            self.owed -= 1;
            self.role_changed |= first == b'-' && ROLE_CHANGES.contains(&self.replies.error_code());
            if self.refusal_in > 0 {
                self.refusal_in -= 1;
                if self.refusal_in == 0 && !b"-!".contains(&first) {
                    return Err(GaveUp);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "../../fuzz/src/ledger_model.rs"]
mod ledger_model;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ledger_model::{Direction, Model};
    use super::*;
    use crate::resp::request;

    /// Bytes from one end of a connection.
    #[derive(Debug, Clone)]
    enum Step {
        Sent(Vec<u8>),
        Received(Vec<u8>),
    }

    /// A request; spaces separate its words.
    fn sent(request_text: &str) -> Step {
        Step::Sent(request(&request_text.split(' ').collect::<Vec<_>>()))
    }

    fn raw(bytes: &[u8]) -> Step {
        Step::Sent(bytes.to_vec())
    }

    fn received(reply: &str) -> Step {
        Step::Received(reply.into())
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum State {
        Settled,
        Busy,
        GaveUp,
    }

    fn state(ledger: &Ledger) -> State {
        match (ledger.is_settled(), ledger.gave_up()) {
            (true, false) => State::Settled,
            (false, false) => State::Busy,
            (false, true) => State::GaveUp,
            (true, true) => panic!("a ledger that has given up is not settled"),
        }
    }

    /// The ledger after these steps, which is the same if the bytes come one by one.
    #[track_caller]
    fn after(steps: &[Step]) -> Ledger {
        let (mut whole, mut cut) = (Ledger::default(), Ledger::default());
        for step in steps {
            match step {
                Step::Sent(bytes) => {
                    whole.sent(bytes);
                    bytes.chunks(1).for_each(|byte| cut.sent(byte));
                }
                Step::Received(bytes) => {
                    whole.received(bytes);
                    bytes.chunks(1).for_each(|byte| cut.received(byte));
                }
            }
        }
        assert_eq!(state(&whole), state(&cut), "cutting changes nothing: {steps:?}");
        whole
    }

    #[track_caller]
    fn state_after(steps: &[Step]) -> State {
        state(&after(steps))
    }

    #[test]
    fn a_connection_is_settled_only_between_requests() {
        assert_eq!(state_after(&[]), State::Settled);
        let (request, reply) = (request(&["GET", "key"]), b"$5\r\nvalue\r\n");
        for end in 1..request.len() {
            assert_eq!(state_after(&[raw(&request[..end])]), State::Busy, "{end}");
        }
        for end in 0..reply.len() {
            let steps = [raw(&request), Step::Received(reply[..end].to_vec())];
            assert_eq!(state_after(&steps), State::Busy, "{end}");
        }
        let answered = [raw(&request), Step::Received(reply.to_vec())];
        assert_eq!(state_after(&answered), State::Settled);
        // Pipelined: as many replies as requests, no fewer.
        let two = [sent("SET a 1"), sent("GET a"), received("+OK\r\n"), received("$1\r\n1\r\n")];
        assert_eq!(state_after(&two[..3]), State::Busy);
        assert_eq!(state_after(&two), State::Settled);
    }

    #[test]
    fn a_reply_without_a_request_ends_reuse() {
        for reply in ["-ERR max number of clients reached\r\n", "-", "+OK\r\n", "\n"] {
            assert_eq!(state_after(&[received(reply)]), State::GaveUp, "{reply}");
            let half = [raw(b"*1\r\n$4\r\nPI"), received(reply)];
            assert_eq!(state_after(&half), State::GaveUp, "{reply}");
            let second = [sent("PING"), received("+PONG\r\n"), received(reply)];
            assert_eq!(state_after(&second), State::GaveUp, "{reply}");
            let at_once = [sent("PING"), received(&format!("+PONG\r\n{reply}"))];
            assert_eq!(state_after(&at_once), State::GaveUp, "{reply}");
        }
        assert_eq!(state_after(&[Step::Received(Vec::new())]), State::Settled);
    }

    #[test]
    fn an_unlisted_command_ends_reuse_even_in_multi() {
        // The table of commands has its own test.
        for command in ["CLIENT REPLY SKIP", "SUBSCRIBE a b", "CLIENT", "SOMETHING-NEW"] {
            assert_eq!(state_after(&[sent(command)]), State::GaveUp, "{command}");
            let queued = [sent("MULTI"), received("+OK\r\n"), sent(command)];
            assert_eq!(state_after(&queued), State::GaveUp, "{command}");
            let half = request(&command.split(' ').collect::<Vec<_>>());
            let half = [raw(&half[..half.len() - 1])];
            assert_eq!(state_after(&half), State::Busy, "{command}");
        }
    }

    #[test]
    fn a_top_level_error_shows_a_role_change() {
        let changes = |reply: &str| {
            let mut ledgers = [1, 1000].map(|size| {
                let mut ledger = after(&[sent("SET a b")]);
                reply.as_bytes().chunks(size).for_each(|piece| ledger.received(piece));
                ledger
            });
            let [whole, cut] = ledgers.each_mut().map(Ledger::take_role_change);
            assert_eq!(whole, cut);
            assert!(!ledgers[0].take_role_change(), "only once");
            whole
        };
        for code in ["READONLY You can't write", "MASTERDOWN Link", "LOADING", "CLUSTERDOWN The"] {
            assert!(changes(&format!("-{code}\r\n")), "{code}");
            assert!(!changes(&format!("+{code}\r\n")), "{code}");
            assert!(!changes(&format!("*1\r\n-{code}\r\n")), "{code}");
        }
        for code in ["READONLYX", "ERR READONLY", "CLUSTERDOWNS x", ""] {
            assert!(!changes(&format!("-{code}\r\n")), "{code}");
        }
    }

    #[test]
    fn effects_that_reset_clears_allow_reuse() {
        for command in ["AUTH a b", "HELLO 3", "SELECT 7", "CLIENT SETNAME a", "READONLY"] {
            assert_eq!(state_after(&[sent(command), received("+OK\r\n")]), State::Settled);
        }
        let steps = [sent("MULTI"), received("+OK\r\n"), sent("GET a"), received("+QUEUED\r\n")];
        assert_eq!(state_after(&steps), State::Settled);
    }

    #[test]
    fn a_push_ends_reuse_even_inside_a_reply() {
        let push = ">2\r\n+invalidate\r\n_\r\n";
        for before in ["", "+PONG\r\n", "*2\r\n+OK\r\n", "%1\r\n+a\r\n", "|1\r\n", "*1\r\n*1\r\n"] {
            let steps = [sent("PING"), sent("EXEC"), received(&format!("{before}{push}"))];
            assert_eq!(state_after(&steps), State::GaveUp, "{before}");
        }
    }

    #[test]
    fn refused_maintenance_notifications_allow_reuse() {
        let maintenance = "CLIENT MAINT_NOTIFICATIONS ON";
        for (replies, expected) in [
            ("+OK\r\n-ERR unknown\r\n+OK\r\n", State::Settled),
            ("-ERR old\r\n!3\r\nERR\r\n-ERR old\r\n", State::Settled),
            ("+OK\r\n+OK\r\n+OK\r\n", State::GaveUp),
            ("-ERR\r\n+OK\r\n-ERR\r\n", State::GaveUp),
            ("+OK\r\n+QUEUED\r\n", State::GaveUp),
            ("+OK\r\n*1\r\n-ERR\r\n", State::GaveUp),
            ("+OK\r\n|0\r\n-ERR\r\n", State::GaveUp),
            ("+OK\r\n-ERR unknown\r\n", State::Busy),
            ("+OK\r\n-ERR unkn", State::Busy),
            ("+OK\r\n", State::Busy),
        ] {
            let hello = sent("HELLO 3");
            let steps = [hello, sent(maintenance), sent("SELECT 0"), received(replies)];
            assert_eq!(state_after(&steps), expected, "{replies}");
        }
        let twice = [sent(maintenance), received("-ERR\r\n"), sent(maintenance)];
        assert_eq!(state_after(&twice), State::Busy);
        assert_eq!(state_after(&[sent(maintenance), sent(maintenance)]), State::GaveUp);
    }

    #[test]
    fn unusual_framing_ends_reuse() {
        for bytes in [
            &b"*0\r\n"[..],
            b"*-1\r\n",
            b"\r\n",
            b"\n",
            b"*1\r\n$4\r\nECHOxx",
            b"*1\rX$4\r\nPING\r\n",
            b"PING\r\n",
        ] {
            assert_eq!(state_after(&[raw(bytes)]), State::GaveUp, "{bytes:?}");
        }
        assert_eq!(state_after(&[sent("GET a"), received("$?\r\n")]), State::GaveUp);
    }

    #[test]
    fn a_long_connection_is_not_followed() {
        let steps = |count| {
            let (requests, replies) = (request(&["PING"]).repeat(count), "+PONG\r\n".repeat(count));
            [raw(&requests), received(&replies)]
        };
        assert_eq!(state_after(&steps(1_000)), State::Settled);
        assert_eq!(state_after(&steps(1_001)), State::GaveUp);
    }

    #[test]
    fn a_ledger_takes_less_than_256_bytes() {
        assert!(size_of::<Ledger>() < 256, "{} bytes", size_of::<Ledger>());
    }

    fn must_fail(name: &[u8], argument: Option<&[u8]>) -> Option<bool> {
        commands::effect(name, argument).map(|effect| effect == Effect::NoneIfRefused)
    }

    /// Follows pieces with the model, with a ledger, and with a ledger that gets smaller pieces.
    fn compare(pieces: &[(Direction, Vec<u8>)], cut: usize) -> Result<State, TestCaseError> {
        let mut model = Model::new(&must_fail);
        let (mut ledger, mut by_cut) = (Ledger::default(), Ledger::default());
        for (direction, piece) in pieces {
            model.step(*direction, piece);
            let follow: fn(&mut Ledger, &[u8]) = match direction {
                Direction::Sent => Ledger::sent,
                Direction::Received => Ledger::received,
            };
            follow(&mut ledger, piece);
            piece.chunks(cut).for_each(|part| follow(&mut by_cut, part));
            for ledger in [&ledger, &by_cut] {
                let known = (ledger.gave_up(), ledger.is_settled());
                prop_assert_eq!(known, (model.gave_up, model.is_settled), "{:?}", model);
            }
        }
        Ok(state(&ledger))
    }

    /// A piece of a conversation, valid or not.
    fn piece() -> impl Strategy<Value = (Direction, Vec<u8>)> {
        const OF_BOTH: [&str; 10] = ["*2\r\n", "*", "$", "1", "0", "-", "\r\n", "\r", "\n", "x"];
        let of = |own: &[&'static str]| prop::sample::select([own, &OF_BOTH].concat());
        let sent = of(&[
            "*1\r\n$4\r\nPING\r\n",
            "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
            "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\r\n\r\n",
            "*3\r\n$6\r\nCLIENT\r\n$19\r\nMAINT_NOTIFICATIONS\r\n$2\r\nON\r\n",
            "*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n",
            "PING\r\n",
            "*1\r\n",
            "$4\r\n",
            "$3\r\nGET",
            "PING",
            "get",
            " ",
        ]);
        let received = of(&[
            "+OK\r\n",
            "-ERR\r\n",
            "$1\r\nv\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "*0\r\n",
            "%1\r\n",
            "|1\r\n",
            "|0\r\n",
            "~1\r\n",
            "!3\r\nERR\r\n",
            "=5\r\ntxt:a\r\n",
            ":1\r\n",
            "_\r\n",
            "#t\r\n",
            ",1.5\r\n",
            "(1\r\n",
            ">1\r\n",
            "%",
        ]);
        prop_oneof![
            8 => sent.prop_map(|text| (Direction::Sent, text.into())),
            8 => received.prop_map(|text| (Direction::Received, text.into())),
            1 => any::<(bool, Vec<u8>)>().prop_map(|(is_sent, bytes)| {
                (if is_sent { Direction::Sent } else { Direction::Received }, bytes)
            }),
        ]
    }

    /// Any reply of limited depth without a push.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let bulk = |mark: char| {
            prop::collection::vec(prop::sample::select(&b"a\r\n*>$1"[..]), 0..9).prop_map(
                move |bytes| {
                    let head = format!("{mark}{}\r\n", bytes.len()).into_bytes();
                    [head, bytes, b"\r\n".to_vec()].concat()
                },
            )
        };
        let leaf = prop_oneof![
            prop::sample::select(vec![
                "+OK\r\n", "-ERR\r\n", ":-1\r\n", "_\r\n", "#f\r\n", ",nan\r\n", "(99\r\n",
                "$-1\r\n", "*-1\r\n",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
            bulk('$'),
            bulk('!'),
            bulk('='),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            let values = prop::collection::vec(inner.clone(), 0..6);
            (prop::sample::select(&b"*~%|"[..]), values, inner).prop_map(|(mark, values, value)| {
                let is_of_pairs = b"%|".contains(&mark);
                let count = values.len() / if is_of_pairs { 2 } else { 1 };
                let used = count * if is_of_pairs { 2 } else { 1 };
                let mut bytes = vec![mark];
                bytes.extend(format!("{count}\r\n").bytes());
                bytes.extend(values[..used].concat());
                if mark == b'|' {
                    bytes.extend(value);
                }
                bytes
            })
        })
    }

    /// A request after which the connection may be reused.
    fn harmless_request() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::sample::select(vec![
            "GET",
            "set",
            "HELLO",
            "BLPOP",
            "Client SetName",
            "MULTI",
            "EXEC",
            "json.get",
            "XINFO STREAM",
        ]);
        let arguments = prop::collection::vec("[a-z\r\n*$]{0,30}", 0..4);
        (words, arguments).prop_map(|(words, arguments)| {
            let arguments = arguments.iter().map(String::as_str);
            request(&words.split(' ').chain(arguments).collect::<Vec<_>>())
        })
    }

    proptest! {
        #[test]
        fn the_ledger_agrees_with_a_simple_model(
            pieces in prop::collection::vec(piece(), 0..30),
            cut in 1..5_usize,
        ) {
            compare(&pieces, cut)?;
        }

        #[test]
        fn a_valid_conversation_is_settled_after_its_last_reply(
            rounds in prop::collection::vec(
                prop::collection::vec((harmless_request(), reply()), 1..4), 1..5,
            ),
            cut in 1..9_usize,
        ) {
            let mut pieces = Vec::new();
            for round in &rounds {
                let requests = round.iter().flat_map(|(request, _)| request.clone()).collect();
                pieces.push((Direction::Sent, requests));
                prop_assert_eq!(compare(&pieces, cut)?, State::Busy);
                let replies: Vec<u8> = round.iter().flat_map(|(_, reply)| reply.clone()).collect();
                let (most, last) = replies.split_at(replies.len() - 1);
                pieces.push((Direction::Received, most.to_vec()));
                prop_assert_eq!(compare(&pieces, cut)?, State::Busy);
                pieces.push((Direction::Received, last.to_vec()));
                prop_assert_eq!(compare(&pieces, cut)?, State::Settled);
            }
            pieces.push((Direction::Received, b"+".to_vec()));
            prop_assert_eq!(compare(&pieces, cut)?, State::GaveUp);
        }
    }
}
