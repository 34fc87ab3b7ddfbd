"""What the tests stand on: real servers started privately, fakes that speak the protocol, waiting for conditions."""
