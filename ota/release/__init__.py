"""Signed releases: manifest, TUF repository, signing, the fetching client."""
