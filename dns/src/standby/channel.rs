//! What a server and its stand-by say to each other: words of one octet, and sockets that come along with some of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// More sockets than any server has.
const SOCKETS_MAX: usize = 128;

/// One word. Versions that follow each other have to understand them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// A server asks for what is held.
    Take,
    /// The answer: these.
    Sockets,
    /// The answer: another server lives, and has them.
    Busy,
    /// A server says what it listens at.
    Hold,
    /// Nothing is to be held any more: the stand-by may end.
    Release,
}

impl Word {
    const ALL: [Self; 5] = [Self::Take, Self::Sockets, Self::Busy, Self::Hold, Self::Release];

    fn octet(self) -> u8 {
        match self {
            Self::Take => b'T',
            Self::Sockets => b'S',
            Self::Busy => b'B',
            Self::Hold => b'H',
            Self::Release => b'R',
        }
    }
}

pub(super) fn say(stream: impl AsFd, word: Word, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets to hold"));
    }
    let text = [word.octet()];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// The next word, and the sockets that came with it; `None`: the other side is gone.
pub(super) fn hear(stream: impl AsFd) -> io::Result<Option<(Word, Vec<OwnedFd>)>> {
    let mut octet = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let into = &mut [IoSliceMut::new(&mut octet)];
        rustix::net::recvmsg(stream.as_fd(), into, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut sockets = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            sockets.extend(descriptors);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let word = Word::ALL.into_iter().find(|word| word.octet() == octet[0]);
    let word = word.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a word that nobody knows"))?;
    Ok(Some((word, sockets)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockets_come_with_their_word() {
        let (here, there) = UnixStream::pair().unwrap();
        let sockets: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        say(&here, Word::Take, &[]).unwrap();
        say(&here, Word::Hold, &descriptors).unwrap();
        say(&here, Word::Release, &[]).unwrap();
        drop(here);
        let mut heard = Vec::new();
        while let Some((word, sockets)) = hear(&there).unwrap() {
            let addresses = sockets.into_iter().map(|one| UdpSocket::from(one).local_addr().unwrap());
            heard.push((word, addresses.collect::<Vec<_>>()));
        }
        let all = sockets.iter().map(|one| one.local_addr().unwrap()).collect();
        assert_eq!(heard, [(Word::Take, vec![]), (Word::Hold, all), (Word::Release, vec![])]);
    }
}
