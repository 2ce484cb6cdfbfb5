//! Names one datagram: WireGuard, STUN or junk.
