//! Lines over a unix socket, and the descriptors that come along with some of them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::wire::Line;

/// As many bytes are gathered before they are sent.
const GATHERED_BYTES: usize = 64 * 1024;
/// No line is longer: ten thousand endpoints need a tenth of it.
const LINE_BYTES_MAX: usize = 16 << 20;

/// One end of a conversation.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    to_send: Vec<u8>,
    received: Vec<u8>,
    /// Lines before this one have been taken.
    taken: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (to_send, received, descriptors) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { stream, to_send, received, taken: 0, descriptors }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Says a line, sooner or later.
    pub(super) fn put(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.to_send, line)?;
        self.to_send.push(b'\n');
        if self.to_send.len() >= GATHERED_BYTES { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.to_send);
        self.to_send.clear();
        self.to_send.shrink_to(GATHERED_BYTES);
        sent
    }

    /// Says a line now.
    pub(super) fn send(&mut self, line: &Line) -> io::Result<()> {
        self.put(line)?;
        self.flush()
    }

    /// Says a line that a descriptor comes along with.
    pub(super) fn send_with(&mut self, line: &Line, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.flush()?;
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)
        })?;
        self.stream.write_all(&text[sent..])
    }

    /// The next line.
    pub(super) fn get(&mut self) -> io::Result<Line> {
        let mut searched = self.taken;
        loop {
            if let Some(length) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(&self.received[self.taken..searched + length])?;
                self.taken = searched + length + 1;
                return Ok(line);
            }
            self.received.drain(..self.taken);
            (self.taken, searched) = (0, self.received.len());
            if searched > LINE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
            }
            self.receive()?;
        }
    }

    /// The descriptor that came along with the line before.
    pub(super) fn descriptor(&mut self) -> io::Result<OwnedFd> {
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "a descriptor is missing");
        self.descriptors.pop_front().ok_or_else(missing)
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::io::retry_on_intr(|| {
            let into = &mut [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(&self.stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                self.descriptors.extend(descriptors);
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&bytes[..message.bytes]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn descriptors_come_with_their_lines() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut here, mut there) = (Channel::new(here), Channel::new(there));
        let sending = std::thread::spawn(move || {
            for number in 0..100_u16 {
                let flow = Line::Flow {
                    client: ([192, 0, 2, 1], number).into(),
                    target: (1, [10, 0, 0, 1].into(), 53),
                };
                let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
                let mut file = std::fs::File::from(file);
                write!(file, "{number}").unwrap();
                file.rewind().unwrap();
                here.send_with(&flow, file.as_fd()).unwrap();
                here.put(&Line::Taken).unwrap();
            }
            here.flush().unwrap();
        });
        for number in 0..100_u16 {
            let Line::Flow { client, .. } = there.get().unwrap() else { panic!("another line") };
            assert_eq!(client.port(), number);
            let mut text = String::new();
            std::fs::File::from(there.descriptor().unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
            assert!(matches!(there.get().unwrap(), Line::Taken));
        }
        sending.join().unwrap();
        assert_eq!(there.get().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
