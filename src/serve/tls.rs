//! The certificate that streams under TLS are served with.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::config::TlsConfig;

/// Reads certificate and key.
pub(super) fn config(tls: &TlsConfig) -> anyhow::Result<Arc<ServerConfig>> {
    let cannot = |what: &str, file: &Path| format!("cannot read {what} from {}", file.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert_file)
        .and_then(Iterator::collect)
        .with_context(|| cannot("the certificate", &tls.cert_file))?;
    anyhow::ensure!(!chain.is_empty(), "no certificate in {}", tls.cert_file.display());
    let key = PrivateKeyDer::from_pem_file(&tls.key_file)
        .with_context(|| cannot("the certificate's key", &tls.key_file))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .with_context(|| {
            let (cert, key) = (tls.cert_file.display(), tls.key_file.display());
            format!("the certificate in {cert} does not go with the key in {key}")
        })?;
    Ok(Arc::new(config))
}
