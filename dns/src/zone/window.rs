//! Long lists of records, of which an answer takes a part.

/// Which part of a long list of addresses is wanted. A headless Service may have thousands; a packet takes some dozens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// With which address to begin (modulo their number): clients take the first one, so let it be another each time.
    pub turn: usize,
    /// How many records are of use, at most.
    pub records_max: usize,
}

impl Window {
    /// Everything, from the first on.
    pub const ALL: Self = Self { turn: 0, records_max: usize::MAX };

    pub(super) fn of<T, L: AsMut<[T]> + IntoIterator<Item = T>>(self, mut all: L) -> impl Iterator<Item = T> {
        let ring = all.as_mut();
        if !ring.is_empty() {
            ring.rotate_left(self.turn % ring.len());
        }
        all.into_iter().take(self.records_max)
    }

    /// The same of a long list, of which only the part is touched.
    pub(super) fn of_slice<T>(self, all: &[T]) -> impl Iterator<Item = &T> {
        let (before, from) = all.split_at(self.turn % all.len().max(1));
        from.iter().chain(before).take(self.records_max)
    }

    /// The same of what is a list only when somebody goes through it. That is done twice, which costs less than to keep
    /// what is of no use.
    pub(super) fn of_many<T>(self, all: impl Iterator<Item = T> + Clone) -> Vec<T> {
        let count = all.clone().count();
        if count == 0 {
            return Vec::new();
        }
        let turn = self.turn % count;
        let (before, from) = (all.clone().take(turn), all.skip(turn));
        from.chain(before).take(self.records_max).collect()
    }
}
