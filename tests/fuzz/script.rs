//! An input read as a list of decisions. A script that has ended decides zero, so every input is one.

pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(data: &'a [u8]) -> Script<'a> {
        Script { rest: data }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        let choice = if limit <= 256 { usize::from(self.byte()) } else { usize::from(self.u16()) };
        choice % limit
    }

    /// Changes a few bytes of `bytes`: somewhere, to a byte, a field of edge values, or another part of themselves.
    pub fn edit(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.u16() as usize % bytes.len();
        let rest = &mut bytes[at..];
        match self.below(6) {
            0 => rest[0] ^= 1 << (self.byte() % 8),
            1 => rest[0] = self.byte(),
            2 => put(rest, &self.u16().to_le_bytes()),
            3 => put(rest, &(u64::from(self.u16()) << (self.byte() % 64)).to_le_bytes()),
            4 => {
                let near = (1u64 << (self.byte() % 64)).wrapping_sub(u64::from(self.byte() % 4));
                put(rest, &near.to_le_bytes()[..1 << (self.byte() % 4)]);
            }
            _ => {
                let count = usize::from(self.byte());
                put(rest, self.take(count));
            }
        }
    }
}

fn put(to: &mut [u8], bytes: &[u8]) {
    let len = bytes.len().min(to.len());
    to[..len].copy_from_slice(&bytes[..len]);
}
