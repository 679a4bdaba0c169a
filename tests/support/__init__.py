"""What several tests share: small modules and data, dense references, fits in processes of their own."""
