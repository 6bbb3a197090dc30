//! A resource's message as it is kept: encoded, and packed where there is something like it.

use std::ops::RangeInclusive;

use lz4_flex::block::{
    compress_prepend_size_with_dict, decompress_into_with_dict, uncompressed_size,
};

use crate::Resource;

/// Of a shorter message there is little to save, and of longer ones, in bytes, there are few: to pack these takes long.
const WORTHWHILE: RangeInclusive<usize> = 128..=16 * 1_024;

/// What many messages are like: of each that is packed with it, what it has besides is kept.
#[derive(Debug)]
pub struct Example(Box<[u8]>);

impl<'a> FromIterator<&'a Resource> for Example {
    /// From resources as most are: a few kilobytes at most, since it is read whenever something is packed.
    fn from_iter<I: IntoIterator<Item = &'a Resource>>(resources: I) -> Self {
        let mut scratch = Vec::new();
        let mut all = Vec::new();
        for resource in resources {
            all.extend_from_slice(resource.body.read(&mut scratch));
        }
        Self(all.into())
    }
}

/// An encoded message.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    /// Packed: its length, and what it has besides the example.
    bytes: Box<[u8]>,
    packed_with: Option<&'static Example>,
}

impl From<Vec<u8>> for Body {
    fn from(message: Vec<u8>) -> Self {
        Self { bytes: message.into(), packed_with: None }
    }
}

impl Body {
    /// Packs a message that is not packed, if that saves a quarter: it is unpacked whenever it is sent.
    pub(crate) fn pack(&mut self, example: &'static Example) {
        if self.packed_with.is_some() || !WORTHWHILE.contains(&self.bytes.len()) {
            return;
        }
        let packed = compress_prepend_size_with_dict(&self.bytes, &example.0);
        if packed.len() * 4 > self.bytes.len() * 3 {
            return;
        }
        let packed = Self { bytes: packed.into(), packed_with: Some(example) };
        if packed.unpack(example, &mut Vec::new()) == Some(&*self.bytes) {
            *self = packed;
        }
    }

    /// Length of the message in bytes.
    pub(crate) fn len(&self) -> usize {
        let packed = || uncompressed_size(&self.bytes).map(|(len, _)| len);
        match self.packed_with {
            None => self.bytes.len(),
            Some(_) => packed().unwrap_or_else(|_| unreachable!("it was unpacked by `pack`")),
        }
    }

    /// The message; in `scratch` where it is packed.
    pub(crate) fn read<'a>(&'a self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match self.packed_with {
            None => &self.bytes,
            Some(example) => self
                .unpack(example, scratch)
                .unwrap_or_else(|| unreachable!("it was unpacked by `pack`")),
        }
    }

    fn unpack<'a>(&self, example: &Example, scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let (len, packed) = uncompressed_size(&self.bytes).ok()?;
        scratch.resize(len, 0);
        let written = decompress_into_with_dict(packed, scratch, &example.0).ok()?;
        (written == len).then_some(scratch)
    }

    /// How much is kept of it, in bytes.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static EXAMPLE: LazyLock<Example> = LazyLock::new(|| {
        Example(b"a tenant's cluster, and what it has in common. ".repeat(9).into())
    });

    /// How much is kept of a message, in bytes.
    fn kept(message: &[u8]) -> usize {
        let mut body = Body::from(message.to_vec());
        body.pack(&EXAMPLE);
        // Whatever was read before.
        let mut scratch = vec![1; 77];
        assert_eq!((body.len(), body.read(&mut scratch)), (message.len(), message));
        body.kept()
    }

    #[test]
    fn what_is_like_the_example_takes_little() {
        let message = [&b"another "[..], &EXAMPLE.0].concat();
        assert!(kept(&message) * 4 < message.len(), "{} bytes", kept(&message));
    }

    #[test]
    fn what_is_short_or_long_or_unlike_it_is_kept_as_it_is() {
        let unlike: Vec<u8> =
            (0..8_000_u32).flat_map(|n| n.wrapping_mul(n).to_be_bytes()).collect();
        for message in [&EXAMPLE.0[..127], &EXAMPLE.0.repeat(50), &unlike[..9_000], &[]] {
            assert_eq!(kept(message), message.len());
        }
    }

    proptest! {
        #[test]
        fn every_message_comes_back(
            parts in prop::collection::vec((0_usize..500, prop::collection::vec(any::<u8>(), 0..60)), 0..60),
        ) {
            let like = |(at, other): (usize, Vec<u8>)| {
                [EXAMPLE.0.get(at..).unwrap_or_default(), &other].concat()
            };
            let message: Vec<u8> = parts.into_iter().flat_map(like).collect();
            prop_assert!(kept(&message) <= message.len());
        }
    }
}
