//! The names in a client's certificate: its common name (CN), and the DNS names, URIs and addresses of mail in its
//! subject alternative name (RFC 5280).
//!
//! Only certificates whose signature was found to be good come here; what is read is bounded all the same, and any bytes
//! give a list of names.

/// Most names of one certificate.
const MAX_NAMES: usize = 64;

/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// `id-ce-subjectAltName`, 2.5.29.17.
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// Values one after the other, each as its tag and its content; ends at what is none.
struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, length], rest) = self.0.split_first_chunk()?;
        // Tags of several bytes are in no certificate.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, rest) = match length {
            0..=0x7f => (usize::from(length), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
                let add = |sum: usize, digit: &u8| sum << 8 | usize::from(*digit);
                (digits.iter().fold(0, add), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

fn inside(value: Option<(u8, &[u8])>, tag: u8) -> Option<Values<'_>> {
    value
        .filter(|(found, _)| *found == tag)
        .map(|(_, content)| Values(content))
}

/// The names in a certificate (DER), in its order, the common name first.
pub(super) fn names(certificate: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let _ = collect(certificate, &mut found);
    found.truncate(MAX_NAMES);
    found
}

/// `None`: what follows cannot be read.
fn collect(certificate: &[u8], found: &mut Vec<String>) -> Option<()> {
    let mut certificate = inside(Values(certificate).next(), SEQUENCE)?;
    let mut signed = inside(certificate.next(), SEQUENCE)?;
    let mut add = |text: &[u8]| {
        let text = std::str::from_utf8(text).ok();
        // A NUL byte in a name has fooled many.
        if let Some(text) = text.filter(|text| !text.is_empty() && !text.contains('\0')) {
            found.push(text.to_owned());
        }
    };
    // The version may be missing; then serial number, algorithm, issuer, validity, subject, key, extensions.
    let mut fields = Values(signed.0);
    if fields.next()?.0 == 0xa0 {
        signed.next();
    }
    let subject = inside(signed.nth(4), SEQUENCE)?;
    for (_, set) in subject.filter(|(tag, _)| *tag == SET) {
        for attribute in Values(set) {
            let mut attribute = inside(Some(attribute), SEQUENCE)?;
            let is_name = attribute.next() == Some((OBJECT, COMMON_NAME));
            if let Some((_, text)) = attribute.next().filter(|_| is_name) {
                add(text);
            }
        }
    }
    let extensions = signed.find(|(tag, _)| *tag == 0xa3);
    let extensions = inside(Values(extensions?.1).next(), SEQUENCE)?;
    for extension in extensions {
        let mut extension = inside(Some(extension), SEQUENCE)?;
        if extension.next() != Some((OBJECT, ALTERNATIVE_NAME)) {
            continue;
        }
        let octets = extension.find(|(tag, _)| *tag != BOOLEAN);
        let octets = octets.filter(|(tag, _)| *tag == OCTETS)?.1;
        for (tag, text) in inside(Values(octets).next(), SEQUENCE)? {
            // rfc822Name [1], dNSName [2], uniformResourceIdentifier [6].
            if matches!(tag, 0x81 | 0x82 | 0x86) {
                add(text);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn made() -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "alloy");
        for name in [
            SanType::URI(Ia5String::try_from("spiffe://example/ns/shop").unwrap()),
            SanType::Rfc822Name(Ia5String::try_from("a@example").unwrap()),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
        ] {
            params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn common_and_alternative_names_are_read() {
        let names = names(&made());
        let expected = [
            "alloy",
            "a.example",
            "spiffe://example/ns/shop",
            "a@example",
        ];
        assert_eq!(&names[names.len() - 4..], expected);
    }

    #[test]
    fn a_certificate_without_an_alternative_name_has_its_common_one() {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "only");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(names(certificate.der()), ["only"]);
    }

    proptest! {
        #[test]
        fn any_bytes_give_names(bytes: Vec<u8>, position: prop::sample::Index, byte: u8) {
            let _ = names(&bytes);
            let mut certificate = made();
            let position = position.index(certificate.len());
            certificate[position] = byte;
            let _ = names(&certificate);
            let _ = names(&certificate[..position]);
        }
    }
}
