//! A network link with delay and packet loss, which a test can cut. Runs the program `slow-link`.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Process;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/slow-link");

/// A network link, which ends when this value is dropped.
pub struct SlowLink {
    /// The network namespace that acts as the other host.
    pub namespace: String,
    /// The other host's address.
    pub address: String,
    /// The program's standard input. When this pipe closes, the program removes the link.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    process: Process,
}

impl SlowLink {
    /// Makes a link. If the system does not allow that, prints that the test is skipped and returns
    /// `None`.
    pub fn make(options: &[&str]) -> Option<SlowLink> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("test-{}-{count}", std::process::id());
        let mut program = Command::new(PROGRAM);
        program.arg(&namespace).args(options);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().expect("slow-link starts");
        let (orders, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (mut answers, mut address) = (BufReader::new(answers), String::new());
        answers.read_line(&mut address).unwrap();
        if address.is_empty() {
            let output = child.wait_with_output().unwrap();
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason.lines().last().unwrap_or_default();
            super::skip(&format!(
                "a network namespace with a TUN device is impossible here ({reason})"
            ));
            return None;
        }
        let address = address.trim().to_owned();
        let (orders, process) = (Some(orders), Process(child));
        Some(SlowLink { namespace, address, orders, answers, process })
    }

    /// Sends "cut" or "mend" to the program, and waits until the program has obeyed.
    pub fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut done = String::new();
        self.answers.read_line(&mut done).unwrap();
        assert_eq!(done, "done\n");
    }

    /// A command that runs `program` on the other host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.orders = None;
        self.process.wait();
    }
}
