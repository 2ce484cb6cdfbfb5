//! The certificate authorities of a file.

use std::path::Path;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Reads certificate authorities in PEM: one at least.
///
/// # Errors
/// With the reason, where the file cannot be read, holds none, or holds what is none.
pub fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let bad = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| bad(&error))? {
        let certificate = certificate.map_err(|error| bad(&error))?;
        roots.add(certificate).map_err(|error| bad(&error))?;
    }
    if roots.is_empty() {
        return Err(bad(&"holds no certificate in PEM"));
    }
    Ok(roots)
}
