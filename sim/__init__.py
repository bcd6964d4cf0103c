"""The simulator: the real controller and agents over simulated machines, with a virtual clock or over real sockets."""
