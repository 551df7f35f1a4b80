//! TCP: connect, read a greeting, exchange a line.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::attempt::Failure;
use super::{Attempt, ErrorKind, ProbeRequest, connect};

/// The longest line that is read.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// An open connection.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) greeting: Option<String>,
}

impl Connection {
    pub(super) async fn open(request: &ProbeRequest) -> Result<Self, Failure> {
        let stream = connect::tcp(request, &request.target).await?;
        Ok(Self {
            local: stream.local_addr().ok(),
            peer: stream.peer_addr().ok(),
            stream: BufReader::new(stream),
            greeting: None,
        })
    }

    /// Reads a line; gives it without its end.
    pub(super) async fn read_line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut line).await.map_err(|error| Failure::io("read", &error))?;
        if line.pop() != Some(b'\n') {
            return Err(Failure::new(ErrorKind::Closed, "closed before the end of a line"));
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    pub(super) async fn write_line(&mut self, line: &str) -> Result<(), Failure> {
        let line = format!("{line}\n");
        self.stream.write_all(line.as_bytes()).await.map_err(|error| Failure::io("write", &error))
    }
}

pub(super) async fn attempt(
    request: &ProbeRequest,
    kept: &mut Option<Connection>,
) -> Result<Attempt, Failure> {
    // Taken out, so that an attempt that fails or runs out of time leaves nothing half-read behind.
    let mut connection = if let Some(connection) = kept.take() {
        connection
    } else {
        let mut connection = Connection::open(request).await?;
        if request.greeting {
            connection.greeting = Some(connection.read_line().await?);
        }
        connection
    };
    let mut attempt = Attempt {
        local: connection.local,
        peer: connection.peer,
        reply: connection.greeting.clone(),
        ..Attempt::default()
    };
    if let Some(line) = &request.send {
        connection.write_line(line.trim_end_matches('\n')).await?;
        let answer = connection.read_line().await?;
        if request.greeting { attempt.echo = Some(answer) } else { attempt.reply = Some(answer) }
    }
    if request.keep_alive {
        *kept = Some(connection);
    }
    Ok(attempt)
}
