//! ICMP echo over the overlay, for `zonemesh ping`.
