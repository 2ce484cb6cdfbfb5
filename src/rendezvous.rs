//! The tasks that talk to the zone, one socket each: publish and browse.
