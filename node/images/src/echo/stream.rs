//! TCP: a greeting line that says who answers, then every byte back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use crate::identity::{Answer, canonical};

/// Accepts until `stop`; open connections stay until their clients end them.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let requests = Arc::new(AtomicU64::new(0));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let request = requests.fetch_add(1, Ordering::Relaxed) + 1;
                let shared = Arc::clone(&shared);
                tasks.spawn(async move {
                    // A client that breaks off is the client's affair.
                    echo(stream, &shared, request).await.ok();
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn echo(mut stream: TcpStream, shared: &Shared, requests: u64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = Answer {
        identity: &shared.identity,
        protocol: "tcp",
        client: canonical(stream.peer_addr()?),
        local: canonical(stream.local_addr()?),
        requests,
    };
    stream.write_all(answer.line().as_bytes()).await?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
