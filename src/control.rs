//! The control socket: how `status` and `ping` talk to the daemon.
