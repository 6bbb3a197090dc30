//! A resource's message as it is kept: encoded, and packed where there is something like it.

use std::borrow::Cow;

use lz4_flex::block::{
    compress_prepend_size_with_dict, decompress_size_prepended_with_dict, uncompressed_size,
};

/// To pack a shorter message saves less than it costs.
const WORTHWHILE: usize = 128;

/// A message as many others are: of each that is packed with it, what it has besides is kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Example(Box<[u8]>);

impl From<Vec<u8>> for Example {
    /// From a message, encoded.
    fn from(message: Vec<u8>) -> Self {
        Self(message.into())
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
    /// Packs a message that is not packed, if that makes it less.
    pub(crate) fn pack(&mut self, example: &'static Example) {
        if self.packed_with.is_some() || self.bytes.len() < WORTHWHILE {
            return;
        }
        let packed = compress_prepend_size_with_dict(&self.bytes, &example.0);
        if packed.len() < self.bytes.len() {
            *self = Self { bytes: packed.into(), packed_with: Some(example) };
        }
    }

    /// Length of the message in bytes.
    pub(crate) fn len(&self) -> usize {
        match self.packed_with {
            None => self.bytes.len(),
            Some(_) => uncompressed_size(&self.bytes).map_or(0, |(len, _)| len),
        }
    }

    /// The message.
    pub(crate) fn read(&self) -> Cow<'_, [u8]> {
        let Some(example) = self.packed_with else { return Cow::Borrowed(&self.bytes) };
        let message = decompress_size_prepended_with_dict(&self.bytes, &example.0);
        Cow::Owned(message.unwrap_or_else(|error| unreachable!("packed by `pack`: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    static EXAMPLE: LazyLock<Example> = LazyLock::new(|| b"a tenant's cluster ".repeat(20).into());

    #[test]
    fn what_is_like_the_example_takes_little() {
        let message = [&b"another "[..], &EXAMPLE.0].concat();
        let mut body = Body::from(message.clone());
        body.pack(&EXAMPLE);
        assert!(body.bytes.len() * 4 < message.len(), "{} bytes", body.bytes.len());
        assert_eq!((body.len(), &*body.read()), (message.len(), &*message));
    }

    proptest! {
        #[test]
        fn every_message_comes_back(
            parts in prop::collection::vec((0_usize..400, prop::collection::vec(any::<u8>(), 0..40)), 0..40),
        ) {
            let like = |(at, other): (usize, Vec<u8>)| {
                [EXAMPLE.0.get(at..).unwrap_or_default(), &other].concat()
            };
            let message: Vec<u8> = parts.into_iter().flat_map(like).collect();
            let mut body = Body::from(message.clone());
            body.pack(&EXAMPLE);
            prop_assert!(body.bytes.len() <= message.len());
            prop_assert_eq!(body.len(), message.len());
            prop_assert_eq!(&*body.read(), &*message);
        }
    }
}
