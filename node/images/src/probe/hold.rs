//! Hold: one connection to an echo server, kept open, a line there and back at each attempt.

use super::attempt::Failure;
use super::tcp::Connection;
use super::{Attempt, ErrorKind, ProbeRequest};

pub(super) async fn attempt(
    request: &ProbeRequest,
    kept: &mut Option<Connection>,
    opened: &mut u32,
) -> Result<Attempt, Failure> {
    let mut connection = if let Some(connection) = kept.take() {
        connection
    } else {
        let connection = Connection::open(request).await?;
        *opened += 1;
        connection
    };
    let line = request.send.as_deref().unwrap_or("hold").trim_end_matches('\n');
    connection.write_line(line).await?;
    let mut answer = connection.read_line().await?;
    if answer != line && connection.greeting.is_none() {
        // The server spoke first.
        connection.greeting = Some(answer);
        answer = connection.read_line().await?;
    }
    if answer != line {
        return Err(Failure::new(ErrorKind::Mismatch, format!("sent {line:?}, got {answer:?}")));
    }
    let attempt = Attempt {
        local: connection.local,
        peer: connection.peer,
        reply: connection.greeting.clone(),
        ..Attempt::default()
    };
    *kept = Some(connection);
    Ok(attempt)
}
