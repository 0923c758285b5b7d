//! A link to another host, with delay and loss, that can be cut: `slow-link`.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Process;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/slow-link");

/// See the module's description.
pub struct SlowLink {
    /// The network namespace that stands for the other host.
    pub namespace: String,
    /// The other host's address.
    pub address: String,
    /// It ends when this is closed, and takes devices and namespace along.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    process: Process,
}

impl SlowLink {
    /// `None`, said aloud, where no such link can be made.
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
                "no network namespace with a TUN device can be made here ({reason})"
            ));
            return None;
        }
        let address = address.trim().to_owned();
        let (orders, process) = (Some(orders), Process(child));
        Some(SlowLink { namespace, address, orders, answers, process })
    }

    /// Has the link changed: "cut", "mend", "loss 5", "delay 100".
    pub fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut done = String::new();
        self.answers.read_line(&mut done).unwrap();
        assert_eq!(done, "done\n");
    }

    /// A program that runs on the other host.
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
