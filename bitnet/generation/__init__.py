"""Token ids in, tokens and text out: requests, their scheduler, sampling, kept prefixes."""
