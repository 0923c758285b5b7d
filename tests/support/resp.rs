//! A small RESP client, which returns replies exactly as Redis sent them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::PATIENCE;

/// A connection to Redis, either direct or through the tunnel.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

/// A reply in RESP2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Line(String),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
}

impl Reply {
    pub fn line(text: &str) -> Reply {
        Reply::Line(text.to_owned())
    }

    pub fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }
}

impl Client {
    /// Connects to a port of 127.0.0.1, and sends nothing.
    pub fn open(port: u16) -> Client {
        Client::open_to("127.0.0.1", port)
    }

    fn open_to(address: &str, port: u16) -> Client {
        let stream = TcpStream::connect((address, port)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    /// Connects to a port of 127.0.0.1, and logs in.
    pub fn connect(port: u16, password: &str) -> Client {
        Client::connect_to("127.0.0.1", port, password)
    }

    /// Like `connect`, but to any address.
    pub fn connect_to(address: &str, port: u16, password: &str) -> Client {
        let mut client = Client::open_to(address, port);
        assert_eq!(client.ask(&["AUTH", password]), Reply::line("+OK"));
        client
    }

    pub fn ask(&mut self, words: &[&str]) -> Reply {
        self.try_ask(words).expect("a reply")
    }

    /// Like `ask`, for a connection that may break.
    pub fn try_ask(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.try_send(words)?;
        self.reply()
    }

    pub fn send(&mut self, words: &[&str]) {
        self.try_send(words).expect("send");
    }

    fn try_send(&mut self, words: &[&str]) -> io::Result<()> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.stream.get_mut().write_all(&request(&words))
    }

    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end_matches("\r\n");
        let length = || line[1..].parse::<i64>().map_err(io::Error::other);
        match &line[..1] {
            "$" if length()? < 0 => Ok(Reply::Nil),
            "$" => {
                let mut bulk = vec![0; length()? as usize + 2];
                self.stream.read_exact(&mut bulk)?;
                bulk.truncate(bulk.len() - 2);
                Ok(Reply::Bulk(bulk))
            }
            "*" if length()? < 0 => Ok(Reply::Nil),
            "*" => {
                (0..length()?).map(|_| self.reply()).collect::<io::Result<_>>().map(Reply::Array)
            }
            _ => Ok(Reply::line(line)),
        }
    }
}

/// A request in RESP.
pub fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend(format!("${}\r\n", word.len()).into_bytes());
        request.extend(*word);
        request.extend(b"\r\n");
    }
    request
}
