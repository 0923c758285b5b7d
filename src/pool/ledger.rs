//! Follows one connection's requests and replies. Finds out how many replies are outstanding, and
//! whether RESET clears the effects of all requests.

use super::commands::{self, Effect};
use crate::resp::{Opaque, ReplyFramer, RequestFramer};

/// If one app connection sends more requests than this, the pool does not reuse the connection to
/// Redis. Reuse would gain little, because a handshake costs little compared with 1,000 requests.
const REQUESTS: u16 = 1_000;

/// A record of one connection's requests and replies, which tells at any moment whether another app
/// may use the connection. A ledger copies no bytes and allocates no memory.
#[derive(Default)]
pub struct Ledger {
    requests: RequestFramer,
    replies: ReplyFramer,
    /// The number of complete requests.
    count: u16,
    /// The number of complete requests that lack a complete reply.
    owed: u16,
    /// Tells which outstanding reply must be an error: 1 for the next reply, 2 for the second reply
    /// from now, and so on. The number is 0 if there is no such reply.
    refusal_in: u16,
    /// True if a reply has shown that the server is a replica or not ready.
    role_changed: bool,
    /// True if no other app may use the connection.
    is_spoiled: bool,
}

/// The codes of top-level errors after which the pool must not reuse existing connections. The
/// server has become a replica (READONLY), has lost its master (MASTERDOWN), is loading its data
/// (LOADING), or its cluster is incomplete (CLUSTERDOWN).
const ROLE_CHANGES: [&[u8]; 4] = [b"READONLY", b"MASTERDOWN", b"LOADING", b"CLUSTERDOWN"];

/// The error if a request has an effect that RESET may not clear, or if the bytes are not valid
/// RESP. After this error, no other app may use the connection, and the ledger ignores all later
/// requests.
struct Spoiled;

impl From<Opaque> for Spoiled {
    fn from(_: Opaque) -> Spoiled {
        Spoiled
    }
}

impl Ledger {
    /// Updates the ledger with the next bytes that the app has sent. The caller must call this
    /// function before the caller passes the replies to `received`.
    pub fn sent(&mut self, bytes: &[u8]) {
        if !self.is_spoiled && self.follow_requests(bytes).is_err() {
            self.is_spoiled = true;
        }
    }

    /// Updates the ledger with the next bytes that Redis has sent. The ledger follows the replies
    /// even if no other app may use the connection, because a role change concerns other
    /// connections, too.
    pub fn received(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.is_spoiled |= self.owed == 0;
            match self.replies.next(&mut bytes) {
                Ok(true) => self.take_reply(),
                Ok(false) => {}
                Err(Opaque) => {
                    self.is_spoiled = true;
                    return;
                }
            }
        }
    }

    /// True if another app may use the connection after RESET. In this case, every request is
    /// complete and has its reply, and RESET clears the effects of all requests.
    pub fn is_reusable(&self) -> bool {
        !self.is_spoiled && self.requests.is_at_boundary() && self.owed == 0
    }

    /// True if no other app may use the connection, now or later.
    pub fn is_spoiled(&self) -> bool {
        self.is_spoiled
    }

    /// Returns true if a reply since the last call has shown that the server is a replica or not
    /// ready.
    pub fn take_role_change(&mut self) -> bool {
        std::mem::take(&mut self.role_changed)
    }

    fn follow_requests(&mut self, mut bytes: &[u8]) -> Result<(), Spoiled> {
        while self.requests.next(&mut bytes)? {
            let [name, argument] = self.requests.words();
            let effect = name.and_then(|name| commands::effect(name, argument)).ok_or(Spoiled)?;
            if self.count == REQUESTS {
                return Err(Spoiled);
            }
            self.count += 1;
            self.owed += 1;
            if effect == Effect::NoneIfRefused {
                // The ledger cannot follow two outstanding requests with this effect. Clients need
                // only one, because they wait for the reply before they send the command again.
                if self.refusal_in > 0 {
                    return Err(Spoiled);
                }
                self.refusal_in = self.owed;
            }
        }
        Ok(())
    }

    /// Updates the ledger with the reply that is complete now.
    fn take_reply(&mut self) {
        let first = self.replies.first();
        self.role_changed |= first == b'-' && ROLE_CHANGES.contains(&self.replies.error_code());
        let is_accepted = self.refusal_in == 1 && !b"-!".contains(&first);
        // A push belongs to no request.
        self.is_spoiled |= is_accepted || first == b'>';
        self.owed = self.owed.saturating_sub(1);
        self.refusal_in = self.refusal_in.saturating_sub(1);
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

    /// The bytes that one end of a connection sends.
    #[derive(Debug, Clone)]
    enum Step {
        Sent(Vec<u8>),
        Received(Vec<u8>),
    }

    /// Returns a step in which the app sends a request. Spaces separate the words in
    /// `request_text`.
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
        Reusable,
        Busy,
        Spoiled,
    }

    fn state(ledger: &Ledger) -> State {
        match (ledger.is_reusable(), ledger.is_spoiled()) {
            (true, false) => State::Reusable,
            (false, false) => State::Busy,
            (false, true) => State::Spoiled,
            (true, true) => panic!("a spoiled connection is never reusable"),
        }
    }

    /// Returns a ledger after these steps, in which the app and Redis send bytes. Checks that the
    /// ledger is the same if the bytes arrive one by one.
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
        assert_eq!(state(&whole), state(&cut), "the size of pieces does not matter: {steps:?}");
        whole
    }

    #[track_caller]
    fn state_after(steps: &[Step]) -> State {
        state(&after(steps))
    }

    #[test]
    fn a_connection_is_reusable_only_between_requests() {
        assert_eq!(state_after(&[]), State::Reusable);
        let (request, reply) = (request(&["GET", "key"]), b"$5\r\nvalue\r\n");
        for end in 1..request.len() {
            assert_eq!(state_after(&[raw(&request[..end])]), State::Busy, "{end}");
        }
        for end in 0..reply.len() {
            let steps = [raw(&request), Step::Received(reply[..end].to_vec())];
            assert_eq!(state_after(&steps), State::Busy, "{end}");
        }
        let answered = [raw(&request), Step::Received(reply.to_vec())];
        assert_eq!(state_after(&answered), State::Reusable);
        // Two pipelined requests need two replies.
        let two = [sent("SET a 1"), sent("GET a"), received("+OK\r\n"), received("$1\r\n1\r\n")];
        assert_eq!(state_after(&two[..3]), State::Busy);
        assert_eq!(state_after(&two), State::Reusable);
    }

    #[test]
    fn a_reply_without_a_request_ends_reuse() {
        for reply in ["-ERR max number of clients reached\r\n", "-", "+OK\r\n", "\n"] {
            assert_eq!(state_after(&[received(reply)]), State::Spoiled, "{reply}");
            let half = [raw(b"*1\r\n$4\r\nPI"), received(reply)];
            assert_eq!(state_after(&half), State::Spoiled, "{reply}");
            let second = [sent("PING"), received("+PONG\r\n"), received(reply)];
            assert_eq!(state_after(&second), State::Spoiled, "{reply}");
            let at_once = [sent("PING"), received(&format!("+PONG\r\n{reply}"))];
            assert_eq!(state_after(&at_once), State::Spoiled, "{reply}");
        }
        assert_eq!(state_after(&[Step::Received(Vec::new())]), State::Reusable);
    }

    #[test]
    fn an_unlisted_command_ends_reuse_even_in_multi() {
        // A few commands are enough here, because the table of commands has its own test.
        for command in ["CLIENT REPLY SKIP", "SUBSCRIBE a b", "CLIENT", "SOMETHING-NEW"] {
            assert_eq!(state_after(&[sent(command)]), State::Spoiled, "{command}");
            let queued = [sent("MULTI"), received("+OK\r\n"), sent(command)];
            assert_eq!(state_after(&queued), State::Spoiled, "{command}");
            let half = request(&command.split(' ').collect::<Vec<_>>());
            let half = [raw(&half[..half.len() - 1])];
            assert_eq!(state_after(&half), State::Busy, "{command}");
        }
    }

    #[test]
    fn a_readonly_error_outside_an_array_means_a_role_change() {
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
    fn a_connection_that_is_not_reused_still_shows_a_role_change() {
        let changes = |before: &[Step], after_it: &str| {
            let mut ledger = after(&[before, &[received(after_it)]].concat());
            assert_eq!(state(&ledger), State::Spoiled, "{before:?}");
            ledger.take_role_change()
        };
        let readonly = "-READONLY You can't write\r\n";
        for before in [
            &[][..],
            &[raw(b"SET a b\r\n")],
            &[sent("MONITOR"), received("+OK\r\n"), received("+1.0 [0 a:1] \"GET\" \"a\"\r\n")],
            &[sent("SUBSCRIBE a"), received(">2\r\n+a\r\n:1\r\n")],
            &[sent("SUBSCRIBE a"), received("*2\r\n+a\r\n:1\r\n")],
        ] {
            assert!(changes(before, readonly), "{before:?}");
            // After bytes that are not RESP, the ledger finds no replies.
            assert!(!changes(&[before, &[received("HTTP/1.1\r\n")]].concat(), readonly));
        }
    }

    #[test]
    fn commands_whose_effect_reset_clears_allow_reuse() {
        for command in ["AUTH a b", "HELLO 3", "SELECT 7", "CLIENT SETNAME a", "READONLY"] {
            assert_eq!(state_after(&[sent(command), received("+OK\r\n")]), State::Reusable);
        }
        let steps = [sent("MULTI"), received("+OK\r\n"), sent("GET a"), received("+QUEUED\r\n")];
        assert_eq!(state_after(&steps), State::Reusable);
    }

    #[test]
    fn a_push_ends_reuse_even_inside_a_reply() {
        let push = ">2\r\n+invalidate\r\n_\r\n";
        for before in ["", "+PONG\r\n", "*2\r\n+OK\r\n", "%1\r\n+a\r\n", "|1\r\n", "*1\r\n*1\r\n"] {
            let steps = [sent("PING"), sent("EXEC"), received(&format!("{before}{push}"))];
            assert_eq!(state_after(&steps), State::Spoiled, "{before}");
        }
    }

    #[test]
    fn refused_maintenance_notifications_allow_reuse() {
        let maintenance = "CLIENT MAINT_NOTIFICATIONS ON";
        for (replies, expected) in [
            ("+OK\r\n-ERR unknown\r\n+OK\r\n", State::Reusable),
            ("-ERR old\r\n!3\r\nERR\r\n-ERR old\r\n", State::Reusable),
            ("+OK\r\n+OK\r\n+OK\r\n", State::Spoiled),
            ("-ERR\r\n+OK\r\n-ERR\r\n", State::Spoiled),
            ("+OK\r\n+QUEUED\r\n", State::Spoiled),
            ("+OK\r\n*1\r\n-ERR\r\n", State::Spoiled),
            ("+OK\r\n|0\r\n-ERR\r\n", State::Spoiled),
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
        assert_eq!(state_after(&[sent(maintenance), sent(maintenance)]), State::Spoiled);
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
            assert_eq!(state_after(&[raw(bytes)]), State::Spoiled, "{bytes:?}");
        }
        assert_eq!(state_after(&[sent("GET a"), received("$?\r\n")]), State::Spoiled);
    }

    #[test]
    fn a_connection_with_over_1000_requests_is_not_reused() {
        let steps = |count| {
            let (requests, replies) = (request(&["PING"]).repeat(count), "+PONG\r\n".repeat(count));
            [raw(&requests), received(&replies)]
        };
        assert_eq!(state_after(&steps(1_000)), State::Reusable);
        assert_eq!(state_after(&steps(1_001)), State::Spoiled);
    }

    #[test]
    fn a_ledger_takes_less_than_400_bytes() {
        assert!(size_of::<Ledger>() < 400, "{} bytes", size_of::<Ledger>());
    }

    fn must_fail(name: &[u8], argument: Option<&[u8]>) -> Option<bool> {
        commands::effect(name, argument).map(|effect| effect == Effect::NoneIfRefused)
    }

    /// Passes the pieces to a model, to a ledger, and in smaller parts to a second ledger. The
    /// model and both ledgers must agree after each piece.
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
                let known = (ledger.is_spoiled(), ledger.is_reusable());
                prop_assert_eq!(known, (model.is_spoiled, model.is_reusable), "{:?}", model);
            }
        }
        Ok(state(&ledger))
    }

    /// Generates bytes in one direction, which need not be valid RESP.
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

    /// Generates a valid reply that contains no push.
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

    /// Generates a request after which the connection may be reused.
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
        fn a_valid_conversation_is_reusable_after_its_last_reply(
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
                prop_assert_eq!(compare(&pieces, cut)?, State::Reusable);
            }
            pieces.push((Direction::Received, b"+".to_vec()));
            prop_assert_eq!(compare(&pieces, cut)?, State::Spoiled);
        }
    }
}
