//! Reads and writes pins. A pin is a hash of a public key, in the format of curl's option
//! `--pinnedpubkey`.

use std::fmt;

use openssl::base64;

const PREFIX: &str = "sha256//";
/// The number of bytes of a SHA-256 hash.
const LENGTH: usize = 32;

/// The SHA-256 hash of a certificate's SubjectPublicKeyInfo (RFC 5280 section 4.1), shown as
/// `sha256//BASE64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; LENGTH]);

impl Pin {
    /// Computes the pin of a key. `public_key_info` is the key's SubjectPublicKeyInfo in DER.
    pub fn of(public_key_info: &[u8]) -> Pin {
        Pin(openssl::sha::sha256(public_key_info))
    }

    fn parse(text: &str) -> Option<Pin> {
        let hash = base64::decode_block(text.strip_prefix(PREFIX)?).ok()?;
        let pin = Pin(hash.try_into().ok()?);
        // Accept only the usual form of base64. OpenSSL's decoder also accepts other forms of
        // base64, for example with spaces.
        (pin.to_string() == text).then_some(pin)
    }

    /// Parses pins that are separated by `;`. Returns `None` if a pin is invalid, or if there is no
    /// pin.
    pub fn parse_all(text: &str) -> Option<Vec<Pin>> {
        text.split(';').map(|pin| Pin::parse(pin.trim())).collect()
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", base64::encode_block(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_has_the_form_of_curls_option() {
        // `text` is the output of: printf '' | openssl dgst -sha256 -binary | openssl base64
        let text = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(Pin::of(b"").to_string(), text);
        assert_eq!(Pin::parse_all(text), Some(vec![Pin::of(b"")]));
        let two = format!("{text}; {}", Pin::of(b"x"));
        assert_eq!(Pin::parse_all(&two), Some(vec![Pin::of(b""), Pin::of(b"x")]));
    }

    #[test]
    fn invalid_pins_are_refused() {
        let good = Pin::of(b"").to_string();
        let cases = [
            "",
            "sha256//",
            "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
            "sha256//AAAA",
            "sha256//?7DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha1//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "SHA256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            &format!("{good};"),
            &format!("{good};x"),
        ];
        for text in cases {
            assert_eq!(Pin::parse_all(text), None, "{text}");
        }
    }
}
