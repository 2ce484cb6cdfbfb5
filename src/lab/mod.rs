//! The lab: sites, NATs, a zone and a STUN server in network namespaces of this
//! machine. `zonemesh lab` and the tests stand on it.

pub mod process;
