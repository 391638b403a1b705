"""What tests share: an issuer, real processes, canaries."""
