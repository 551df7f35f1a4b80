//! The socket to netfilter, one for each exchange: opening it costs microseconds, and no answer is ever left over from
//! an exchange that failed.

use netlink_sys::{Socket as Netlink, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

use crate::batch::Batch;
use crate::error::NftError;
use crate::wire::{Attributes, Message, messages};

/// How often a dump is begun anew when others change what it lists.
const ATTEMPTS: u32 = 10;

/// Carries out a batch. `action` is what an error says could not be done.
pub fn commit(batch: Batch, action: &str) -> Result<(), NftError> {
    if batch.is_empty() {
        return Ok(());
    }
    let (bytes, acknowledged) = batch.into_bytes();
    let mut socket = Socket::open()?;
    socket.make_room(bytes.len())?;
    socket.send(&bytes)?;
    loop {
        for message in messages(socket.receive()?) {
            match message.error() {
                Some(0) if message.sequence == acknowledged => return Ok(()),
                Some(0) | None => {}
                Some(code) => return Err(refused(action, code)),
            }
        }
    }
}

/// Asks for one object. None: there is no such object.
pub(crate) fn get<T>(
    request: &[u8],
    action: &str,
    mut read: impl FnMut(Attributes<'_>) -> Option<T>,
) -> Result<Option<T>, NftError> {
    let mut socket = Socket::open()?;
    socket.send(request)?;
    let answer = socket.receive()?;
    let Some(message) = messages(answer).next() else { return Ok(None) };
    match message.error() {
        Some(code) if code.abs() == libc::ENOENT => Ok(None),
        Some(code) => Err(refused(action, code)),
        None => Ok(read(message.attributes())),
    }
}

/// Asks for all objects that `request` names. What does not exist has none.
pub(crate) fn dump<T>(
    request: &[u8],
    action: &str,
    mut read: impl FnMut(&Message<'_>, &mut Vec<T>),
) -> Result<Vec<T>, NftError> {
    for _ in 0..ATTEMPTS {
        let mut socket = Socket::open()?;
        socket.send(request)?;
        let mut found = Vec::new();
        if socket.read_dump(action, |message| read(message, &mut found))? {
            return Ok(found);
        }
    }
    Err(NftError::Unsteady { action: action.to_owned(), attempts: ATTEMPTS })
}

/// Sends a request and waits for its acknowledgement.
pub(crate) fn ask(request: &[u8], action: &str) -> Result<(), NftError> {
    let mut socket = Socket::open()?;
    socket.send(request)?;
    match messages(socket.receive()?).find_map(|message| message.error()) {
        Some(0) | None => Ok(()),
        Some(code) => Err(refused(action, code)),
    }
}

struct Socket {
    netlink: Netlink,
    buffer: Vec<u8>,
}

impl Socket {
    fn open() -> Result<Self, NftError> {
        let failed = |action| move |source| NftError::Socket { action, source };
        let mut netlink = Netlink::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        netlink.bind_auto().map_err(failed("bind"))?;
        netlink.connect(&SocketAddr::new(0, 0)).map_err(failed("connect to the kernel"))?;
        netlink.set_cap_ack(true).map_err(failed("set NETLINK_CAP_ACK"))?;
        Ok(Self { netlink, buffer: vec![0; 64 * 1024] })
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NftError> {
        let sent = self.netlink.send(bytes, 0);
        sent.map(drop).map_err(|source| NftError::Socket { action: "send", source })
    }

    fn receive(&mut self) -> Result<&[u8], NftError> {
        loop {
            let mut slice = &mut self.buffer[..];
            match self.netlink.recv(&mut slice, 0) {
                Ok(length) => return Ok(&self.buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NftError::Socket { action: "receive", source }),
            }
        }
    }

    /// Reads up to the end of a dump. False: it was disturbed and says nothing.
    fn read_dump(&mut self, action: &str, mut read: impl FnMut(&Message<'_>)) -> Result<bool, NftError> {
        let mut steady = true;
        loop {
            for message in messages(self.receive()?) {
                steady &= !message.interrupted;
                match message.error().or(message.done()) {
                    Some(code) if code.abs() == libc::ENOENT || code == 0 => return Ok(steady),
                    Some(code) if code.abs() == libc::EINTR => return Ok(false),
                    Some(code) => return Err(refused(action, code)),
                    None => read(&message),
                }
            }
        }
    }

    /// A batch is one datagram: the send buffer has to hold it.
    fn make_room(&self, length: usize) -> Result<(), NftError> {
        const USUAL: usize = 100 * 1024;
        if length < USUAL {
            return Ok(());
        }
        rustix::net::sockopt::set_socket_send_buffer_size_force(&self.netlink, length + USUAL)
            .map_err(|error| NftError::Socket { action: "enlarge the send buffer", source: error.into() })
    }
}

fn refused(action: &str, code: i32) -> NftError {
    NftError::Refused { action: action.to_owned(), errno: Errno::from_raw_os_error(code.abs()) }
}
