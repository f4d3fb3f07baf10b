"""Scripts that drive a browser, each a process of its own: playwright and gevent's patches do not go together."""
