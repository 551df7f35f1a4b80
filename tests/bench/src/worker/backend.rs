//! The pod behind the real Service.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

/// Connections that are served at once.
const THREADS: usize = 16;
const STREAM_THREADS: usize = 2;
const STREAM_BUFFER: usize = 256 * 1024;

/// Serves for ever.
pub fn run(port: u16, stream_port: u16) -> Result<()> {
    let bind = |port| {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen at port {port}"))
    };
    let (listener, streams) = (bind(port)?, bind(stream_port)?);
    println!("ready");
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| serve(&listener, answer));
        }
        for _ in 0..STREAM_THREADS {
            scope.spawn(|| serve(&streams, swallow));
        }
    });
    Ok(())
}

fn serve(listener: &TcpListener, with: fn(TcpStream) -> std::io::Result<()>) {
    for connection in listener.incoming().flatten() {
        // Clients reset their connections, so that no port has to wait.
        with(connection).ok();
    }
}

/// Every byte is answered with the last one of the address that it was sent to: it tells backends apart.
fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let own = match connection.local_addr()?.ip() {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    };
    let mut byte = [0];
    while connection.read(&mut byte)? == 1 {
        connection.write_all(&[own])?;
    }
    Ok(())
}

/// Reads as many bytes as the first eight say, and tells so with one.
fn swallow(mut connection: TcpStream) -> std::io::Result<()> {
    let mut length = [0; 8];
    connection.read_exact(&mut length)?;
    let mut left = u64::from_be_bytes(length) as usize;
    let mut buffer = vec![0; STREAM_BUFFER];
    while left > 0 {
        match connection.read(&mut buffer[..left.min(STREAM_BUFFER)])? {
            0 => return Ok(()),
            read => left -= read,
        }
    }
    connection.write_all(&[1])?;
    // The client ends the connection.
    connection.read(&mut [0]).map(|_| ())
}
