//! Random numbers that nobody can guess, from the kernel.

use crate::base::error::{Error, ErrorKind, Result};

/// `N` random bytes.
///
/// # Errors
/// [`ErrorKind::Io`]: the kernel gives none.
pub fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot get random bytes").because(error.to_string())
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_the_same() {
        let [one, other]: [[u8; 16]; 2] = [super::bytes().unwrap(), super::bytes().unwrap()];
        assert_ne!(one, other);
    }
}
