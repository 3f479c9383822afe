"""Homomorphic aggregation: the server adds up ciphertexts, a key holder decrypts only the sum."""
