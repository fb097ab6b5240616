//! What delayed work is often built on, to be put beside the broker: a Redis server of this harness's own,
//! every write synced before it is answered, and the few words of its protocol that are needed.
//!
//! The server is the one found on the path, on a loopback port and a directory of its own, ended with its
//! handle.

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Outcome;
use super::process::{Guard, READY_WITHIN, resident_bytes};

/// No answer takes longer: a rewrite of the append-only file may come between.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Somebody else may take a port between its choice and its use.
const ATTEMPTS: usize = 5;
/// The longest answer this client takes: a page of what is due.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A server of this harness's own.
#[derive(Debug)]
pub(crate) struct Server {
    child: Guard,
    address: SocketAddr,
}

impl Server {
    /// Starts the program on an empty directory, with an append-only file that is synced for every answer.
    pub(crate) fn start(program: &Path, dir: &Path) -> Outcome<Self> {
        fs::create_dir_all(dir)?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(program, dir) {
                Ok(server) => return Ok(server),
                Err(why) => last = Some(why),
            }
        }
        Err(last.unwrap_or_else(|| "no attempt was made".into()))
    }

    fn attempt(program: &Path, dir: &Path) -> Outcome<Self> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--save", "", "--daemonize", "no", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut server = Self {
            child: Guard::spawn(&mut command)?,
            address,
        };
        let begun = Instant::now();
        while begun.elapsed() < READY_WITHIN {
            server.child.still_runs()?;
            let asked = server.connect().and_then(|mut line| {
                line.send(&[b"PING"])?;
                line.answer()
            });
            if asked.is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("redis-server did not answer within {READY_WITHIN:?}").into())
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> Outcome<Line> {
        let stream = TcpStream::connect_timeout(&self.address, ANSWER_WITHIN)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Line {
            answers: BufReader::with_capacity(1 << 16, stream.try_clone()?),
            requests: BufWriter::with_capacity(1 << 16, stream),
        })
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Outcome<u64> {
        resident_bytes(self.child.id())
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Line {
    answers: BufReader<TcpStream>,
    requests: BufWriter<TcpStream>,
}

/// What the server says; a refusal is an error of this client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A word.
    Word(String),
    /// A number.
    Number(i64),
    /// Bytes; none where there is nothing.
    Bytes(Option<Vec<u8>>),
    /// A list of answers.
    List(Vec<Answer>),
}

impl Line {
    /// Sends a command; its answer is asked for later, in turn.
    pub(crate) fn send(&mut self, words: &[&[u8]]) -> Outcome<()> {
        write!(self.requests, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.requests, "${}\r\n", word.len())?;
            self.requests.write_all(word)?;
            self.requests.write_all(b"\r\n")?;
        }
        Ok(self.requests.flush()?)
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> Outcome<Answer> {
        read_answer(&mut self.answers)
    }
}

fn read_answer(from: &mut impl BufRead) -> Outcome<Answer> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let rest = line.get(1..).unwrap_or_default();
    match line.as_bytes().first() {
        Some(b'+') => Ok(Answer::Word(rest.to_owned())),
        Some(b':') => Ok(Answer::Number(rest.parse()?)),
        Some(b'-') => Err(format!("redis-server refuses: {rest}").into()),
        Some(b'$') => read_bytes(from, rest.parse()?),
        Some(b'*') => {
            let count: i64 = rest.parse()?;
            let list = (0..count).map(|_| read_answer(from));
            Ok(Answer::List(list.collect::<Outcome<_>>()?))
        }
        _ => Err(format!("redis-server says what is no answer: {line:?}").into()),
    }
}

fn read_bytes(from: &mut impl BufRead, length: i64) -> Outcome<Answer> {
    let Ok(length) = usize::try_from(length) else {
        return Ok(Answer::Bytes(None));
    };
    if length > ANSWER_BYTES_MAX {
        return Err(format!("redis-server announces {length} bytes").into());
    }
    let mut bytes = vec![0; length + 2];
    from.read_exact(&mut bytes)?;
    bytes.truncate(length);
    Ok(Answer::Bytes(Some(bytes)))
}

/// The server's program, where there is one on the path.
pub(crate) fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|dir| dir.join("redis-server"));
    programs.find(|program| program.is_file())
}
