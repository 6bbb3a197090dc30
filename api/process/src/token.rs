//! Join tokens: `fl1.<id>.<secret>.<pin>`, one string that lets an agent join and tells it the hub from an
//! impostor. The secret and the pin are 32 bytes each, base64url without padding.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fairlead_api::AgentId;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};

const VERSION: &str = "fl1";

/// A join token. Its secret is shown by [`Token::reveal`] alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Which token; the agent that joins by it has this name.
    pub id: AgentId,
    secret: [u8; 32],
    /// SHA-256 of the `SubjectPublicKeyInfo` of the hub's CA.
    pub pin: [u8; 32],
}

/// Why a text is no token. It repeats nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of this form at all.
    #[error(
        "a join token has four parts with dots between, the first of them {VERSION:?}; this has {0}"
    )]
    Parts(usize),
    /// Made by something else.
    #[error(
        "a join token begins with {VERSION:?}; this one is of another kind, or another version"
    )]
    Version,
    /// The second part.
    #[error("the join token's id must be 10 of a to z and 0 to 9; was it copied whole?")]
    Id,
    /// The third part.
    #[error("the join token's secret must be 43 characters of base64url; was it copied whole?")]
    Secret,
    /// The last part.
    #[error("the join token's last part must be 43 characters of base64url; was it copied whole?")]
    Pin,
}

impl Token {
    /// A new one for the hub whose CA has this pin.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(pin: [u8; 32]) -> anyhow::Result<Self> {
        let (secret, id) = (random()?, random::<{ AgentId::LENGTH }>()?);
        // 32 letters: no bias, none that is mistaken for another.
        let letters = b"abcdefghijkmnpqrstuvwxyz23456789";
        let id: String =
            id.iter().map(|byte| char::from(letters[usize::from(byte % 32)])).collect();
        Ok(Self { id: id.parse()?, secret, pin })
    }

    /// What the hub keeps of the secret: SHA-256, hexadecimal.
    pub fn secret_hash(&self) -> String {
        hex(digest(&SHA256, &self.secret).as_ref())
    }

    /// The token as its bearer needs it.
    pub fn reveal(&self) -> String {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        format!("{VERSION}.{}.{}.{}", self.id, text(&self.secret), text(&self.pin))
    }

    /// The secret, for the hub.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = text.trim().splitn(6, '.').collect();
        let [version, id, secret, pin] = parts.as_slice() else {
            return Err(TokenError::Parts(parts.len()));
        };
        if *version != VERSION {
            return Err(TokenError::Version);
        }
        Ok(Self {
            id: id.parse().map_err(|_| TokenError::Id)?,
            secret: bytes(secret).ok_or(TokenError::Secret)?,
            pin: bytes(pin).ok_or(TokenError::Pin)?,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.…", self.id)
    }
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// Random bytes of the system's.
///
/// # Errors
/// It gives none.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256, hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_keeps_its_secret() {
        let token = Token::new([7; 32]).unwrap();
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert_eq!(token.secret_hash().len(), 64);
        assert!(!format!("{token:?}").contains(token.reveal().split('.').nth(2).unwrap()));
    }

    #[test]
    fn what_fuzzing_found_is_taken_calmly() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manager/fuzz/corpus/token");
        let mut good = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let text = std::fs::read(file.unwrap().path()).unwrap();
            good += u32::from(String::from_utf8_lossy(&text).parse::<Token>().is_ok());
        }
        assert!(good > 0, "the corpus has a good one, from which others were made");
    }

    #[test]
    fn what_is_no_token_is_told_apart_without_being_repeated() {
        let good = Token::new([7; 32]).unwrap().reveal();
        let cut = &good[..good.len() - 1];
        let parts: Vec<_> = good.split('.').collect();
        let with = |index: usize, part: &str| {
            let mut parts = parts.clone();
            parts[index] = part;
            parts.join(".")
        };
        for (text, error) in [
            (String::new(), TokenError::Parts(1)),
            (with(0, "fl2"), TokenError::Version),
            (with(1, "UPPER"), TokenError::Id),
            (with(2, "short"), TokenError::Secret),
            (cut.to_owned(), TokenError::Pin),
            (format!("{good}.more"), TokenError::Parts(5)),
        ] {
            assert_eq!(text.parse::<Token>(), Err(error), "{text}");
        }
    }
}
