"""HTTP: what the server tells monitoring and, on other listeners, everybody."""
