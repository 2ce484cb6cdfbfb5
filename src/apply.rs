//! Makes a plan so, by netlink: the only place that changes the machine's network.
