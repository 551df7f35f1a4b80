//! A server for tests and experiments: `serve DATA_DIR LISTEN_ADDRESS`, prints the path of the admin kubeconfig and serves
//! until it is interrupted.

use std::net::TcpListener;

use seaway_apiserver::ServerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
        .init();
    let mut args = std::env::args().skip(1);
    let (Some(data_dir), Some(address)) = (args.next(), args.next()) else {
        return Err("usage: serve DATA_DIR LISTEN_ADDRESS [SERVICE_CIDR...]".into());
    };
    let listener = TcpListener::bind(&address)?;
    let address = listener.local_addr()?;
    let mut config = ServerConfig::new(&data_dir, vec![listener]);
    config.advertise_addresses = vec![address.ip()];
    config.advertise_port = address.port();
    let cidrs: Vec<_> = args.map(|cidr| cidr.parse()).collect::<Result<_, _>>()?;
    if !cidrs.is_empty() {
        config.service_cidrs = cidrs;
    }
    config.load_balancer_pools = vec!["192.0.2.0/26".parse()?, "2001:db8::/120".parse()?];
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        stop.cancel();
    });
    println!("{data_dir}/admin.kubeconfig");
    seaway_apiserver::run(config, shutdown).await?;
    Ok(())
}
